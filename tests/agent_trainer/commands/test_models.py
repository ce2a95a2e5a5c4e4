"""`cairn evaluate` and `cairn export` of a checkpoint that lies at a real aggregator."""

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image as Pillow
from safetensors.numpy import load_file, save_file

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Learner
from tests.agent_trainer.commands.conftest import round_of
from tests.aggregator.runs.parties import Parties

SMALL = DqnConfig(
    tasks=("liver", "heart"), box=12, channels=(4, 8), kernels=(3, 3), hidden=(16,), step_limit=10, envs=4
)
MADE = {"kind": "generated", "images": 3, "size": 40, "seed": 9, "spacing_mm": 0.5}


@pytest.fixture
def trained(parties: Parties) -> Parties:
    """A run whose first round has left its checkpoint."""
    parties.researcher.create("organs", rounds=1)
    parties.trainer.claim()
    parties.trainer.report("organs", round=round_of(1), ended="done")
    folder = parties.checkpoints / "organs" / "round-000001"
    folder.mkdir(parents=True)
    weights = Learner(SMALL, 2, 4, seed=3).weights()
    about = {"run": "organs", "round": "1", "algorithm": "dqn", "settings": SMALL.model_dump_json()}
    save_file(weights, folder / "weights.safetensors", about)
    (folder / "state.json").write_text(json.dumps({"round": 1, "best_round": 0}))
    return parties


def scenes(folder: Path, *sources: object) -> Path:
    path = folder / "scenes.toml"
    path.write_text(tomli_w.dumps({"scenes": list(sources)}))
    return path


def test_a_model_is_measured_on_local_images_of_every_landmark(cairn, trained: Parties, tmp_path: Path) -> None:
    given = ("--scenes", scenes(tmp_path, MADE), "--starts", 2)
    found = cairn("evaluate", "organs", *given, "--animate", tmp_path / "pictures", "--json").json
    assert (found["model"], found["round"]) == ("organs", 1)
    assert {task: one["n"] for task, one in found["tasks"].items()} == {"liver": 3, "heart": 3}
    assert all(0 < one["median_mm"] < 30 for one in found["tasks"].values())
    assert sorted(Path(picture).name for picture in found["pictures"]) == ["search-heart.gif", "search-liver.gif"]
    with Pillow.open(found["pictures"][0]) as picture:
        assert picture.is_animated
    table = cairn("evaluate", "organs", *given, "--held-out").out
    assert f"{found['tasks']['liver']['mean_mm']:.3g}" not in table, "other images, another error"
    assert "liver" in table


def test_an_exported_model_is_measured_as_the_run_is(cairn, trained: Parties, tmp_path: Path) -> None:
    out = tmp_path / "model"
    about = ("--licence", "CC-BY-4.0", "--data", "made trunks")
    made = cairn("export", "organs", "--out", out, *about, "--json").json
    assert made["onnx_difference"] < 1e-4
    kept = load_file(trained.checkpoints / "organs" / "round-000001" / "weights.safetensors")
    exported = load_file(made["weights"])
    assert all(np.array_equal(exported[name], array) for name, array in kept.items())
    card = Path(made["card"]).read_text()
    assert "CC-BY-4.0" in card
    assert "made trunks" in card
    assert "north" not in card, "sites are named only when they agree"
    given = ("--scenes", scenes(tmp_path, MADE), "--starts", 1, "--json")
    assert cairn("evaluate", made["weights"], *given).json["tasks"] == cairn("evaluate", "organs", *given).json["tasks"]


def test_one_image_alone_can_be_measured_and_one_that_cannot_be_read_is_named(
    cairn, trained: Parties, tmp_path: Path
) -> None:
    Pillow.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "places.csv").write_text("image,task,x_mm,y_mm\none.png,liver,5,5\nbroken.png,liver,5,5\n")
    source = {"kind": "landmarks", "landmarks": "places.csv", "images": ".", "spacing_mm": [0.5, 0.5]}
    said = cairn("evaluate", "organs", "--scenes", scenes(tmp_path, source), "--starts", 1, "--json")
    assert said.json["tasks"]["liver"]["n"] == 1
    assert said.err.startswith("left out: broken.png: ")


@pytest.mark.parametrize(
    ("model", "text", "sentence"),
    [
        ("organs", "", "has no list `scenes`; write [[scenes]] tables as in site.toml"),
        ("organs", "scenes = ", "has no list `scenes`"),
        ("organs", 'scenes = [{ kind = "paintings" }]', "scenes "),
        ("organs", 'scenes = [{ kind = "generated", tasks = ["spleen"] }]', "it has spleen"),
        ("nowhere", 'scenes = [{ kind = "generated" }]', "there is no run 'nowhere'"),
        ("scenes.toml", 'scenes = [{ kind = "generated" }]', "is no weights file of a run"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    cairn, trained: Parties, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, text: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes.toml").write_text(text)
    said = cairn("evaluate", model, "--scenes", "scenes.toml")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("cairn: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_a_round_that_is_not_kept_is_one_sentence(cairn, trained: Parties, tmp_path: Path) -> None:
    said = cairn("evaluate", "organs", "--round", 7, "--scenes", scenes(tmp_path, MADE))
    assert (said.code, "keeps no checkpoint of round 7; it keeps those of 1" in said.err) == (1, True)
