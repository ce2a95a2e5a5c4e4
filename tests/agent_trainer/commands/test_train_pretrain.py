"""`cairn train pretrain` as a researcher types it, against a real aggregator, and what then begins with its weights."""

from pathlib import Path

from safetensors.numpy import save_file

from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.practice import first_weights
from cairn.run import read_run
from tests.aggregator.runs.parties import Parties

ASKED = ("--rounds", 2, "--min-sites", 1, "--no-watch")


def test_a_run_of_pre_training_is_asked_for_by_its_task_and_encoder(cairn, parties: Parties) -> None:
    said = cairn(
        "train", "pretrain", "eyes", "--method", "jigsaw", "--encoder", "dqn", "--set", "agent.box=60",
        "--set", "grid=2", *ASKED, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    run = read_run(parties.researcher.show("eyes").spec)
    assert run.algorithm == "pretrain"
    assert run.settings == {"method": "jigsaw", "encoder": "dqn", "agent": {"box": 60}, "grid": 2}
    wrong = cairn("train", "pretrain", "other", "--method", "colour", *ASKED)
    assert (wrong.code, wrong.err.count("\n"), "method: " in wrong.err) == (1, 1, True)


def test_weights_that_a_classifier_begins_with_are_sent_and_the_file_s_place_is_not(
    cairn, parties: Parties, tmp_path: Path
) -> None:
    path = tmp_path / "eyes.safetensors"
    save_file(first_weights(PretrainConfig(side=16, channels=1, small_channels=(4, 8)), 1), path)
    chosen = (
        "classifier=small",
        "side=16",
        "channels=1",
        "small_channels=[4, 8]",
        "masker=small",
        f"transfer.weights={path}",
    )
    options = [option for setting in chosen for option in ("--set", setting)]
    said = cairn("train", "apga", "few", "--class", "a", "--class", "b", *options, *ASKED)
    assert said.code == 0, said.err
    run = read_run(parties.researcher.show("few").spec)
    assert run.first_weights
    assert run.settings["transfer"]["weights"].startswith("eyes.safetensors sha256:")
    options[5] = "channels=3"
    wrong = cairn("train", "apga", "more", "--class", "a", "--class", "b", *options, *ASKED)
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "features.0.weight is (4, 1, 3, 3) for (4, 3, 3, 3)" in wrong.err
