"""A run that begins with a file of the researcher's: from `cairn train`, through a real aggregator, to the middle."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_practice import first_weights
from agent_trainer.rounds.desk import GrpcDesk
from agent_trainer.rounds.layout import flatten
from agent_trainer.rounds.middle import begun
from cairn.run import read_run
from tests.aggregator.runs.parties import Parties

SETTINGS = {"side": 16, "channels": 1, "classifier": "small", "masker": "small", "small_channels": [4, 8]}
ASKED = ("train", "apga", "few", "--class", "a", "--class", "b", "--rounds", 2, "--min-sites", 1, "--no-watch")


def test_weights_of_a_file_here_are_what_the_middle_begins_with_and_its_place_is_told_nobody(
    cairn, parties: Parties, tmp_path: Path
) -> None:
    config = ApgaConfig.model_validate({**SETTINGS, "classes": ["a", "b"]})
    elsewhere = first_weights(config, 77)
    file = tmp_path / "private place" / "net.safetensors"
    file.parent.mkdir()
    classifier = {name.removeprefix("classifier."): w for name, w in elsewhere.items() if name.startswith("classifier")}
    save_file(classifier, file)
    own = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    said = cairn(*ASKED, *own, "--set", f"classifier_weights={file}", "--seed", 3, "--json").json

    named = f"net.safetensors sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert said["settings"]["classifier_weights"] == named
    spec = parties.researcher.show("few").spec
    assert said == read_run(spec).model_dump(mode="json")
    file.unlink()

    with parties.trainer.open_channel() as channel:
        desk = GrpcDesk(channel)
        claimed = desk.claim()
        run = begun(claimed, tmp_path / "checkpoints", desk)
    expected = {**first_weights(config, 3), **{n: w for n, w in elsewhere.items() if n.startswith("classifier")}}
    np.testing.assert_array_equal(run._weights, flatten({name: expected[name] for name in first_weights(config, 3)}))
    for path in parties.running.folder.rglob("*"):
        assert not path.is_file() or b"private place" not in path.read_bytes(), path


def test_a_file_that_is_not_there_or_of_another_network_is_one_sentence_and_no_run(
    cairn, parties: Parties, tmp_path: Path
) -> None:
    save_file({"conv.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    own = ("--set", 'classifier="small"', "--set", 'masker="small"', "--set", "side=16")
    for name, sentence in (("gone.pth", "there is no file"), ("other.safetensors", "of another network")):
        said = cairn(*ASKED, *own, "--set", f"classifier_weights={tmp_path / name}")
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1), said.err
        assert name in said.err
        assert sentence in said.err or "cannot be read" in said.err
    assert cairn("runs", "list", "--json").json["runs"] == []
