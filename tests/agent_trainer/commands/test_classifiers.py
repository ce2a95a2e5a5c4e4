"""`cairn train apga` and `attention`, and what becomes of their models, against a real aggregator."""

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image as Pillow
from safetensors.numpy import save_file

from agent_trainer.algorithms import algorithm
from agent_trainer.classification import count, figures
from cairn.figures import told
from cairn.run import read_run
from cairn.v1 import training_pb2
from tests.aggregator.runs.parties import Parties

CLASSES = ["dark", "light"]
SMALL = {
    "apga": {"classes": CLASSES, "side": 16, "channels": 1, "classifier": "small", "masker": "small",
             "small_channels": [4]},
    "attention": {"classes": CLASSES, "channels": 1, "patch": 8, "patches": 3, "filters": 4, "reduction": 2},
}  # fmt: skip


def trained(parties: Parties, name: str, kind: str) -> None:
    """Leave a run of one round at the aggregator, with its checkpoint."""
    settings = json.dumps(SMALL[kind])
    parties.researcher.create(name, rounds=1, algorithm=kind, settings_json=settings)
    parties.trainer.claim()
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    of_site = told(figures(count(probabilities, np.array([0, 1, 1])), CLASSES, least=1))
    north = {**of_site, "examples": 30.0, "images/dark": 10.0, "images/light": 20.0}
    site = training_pb2.SiteRound(site="north", state="trained", metrics=north, bytes=1)
    parties.trainer.report(
        name, round=training_pb2.Round(round=1, seconds=1, sites=[site], metrics=of_site), ended="done"
    )
    folder = parties.checkpoints / name / "round-000001"
    folder.mkdir(parents=True)
    own = algorithm(kind)
    config = own.read_config(settings)
    about = {"run": name, "round": "1", "algorithm": kind, "settings": config.model_dump_json()}
    save_file(own.first_weights(config, 3), folder / "weights.safetensors", about)
    (folder / "state.json").write_text(json.dumps({"round": 1, "best_round": 0}))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A file of labelled images: six of each class, and one that cannot be read."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = rng.normal(level, 20, (24, 24)).clip(0, 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(folder / f"{name}-{number}.png")
    (tmp_path / "images" / "dark" / "broken.png").write_bytes(b"\x89PNG")
    path = tmp_path / "images.toml"
    path.write_text(tomli_w.dumps({"labelled": [{"kind": "folders", "images": "images"}]}))
    return path


@pytest.mark.parametrize("kind", ["apga", "attention"])
def test_classes_on_the_command_line_name_the_run_and_are_part_of_it(cairn, parties: Parties, kind: str) -> None:
    chosen = ("--class", "No Finding", "--class", "effusion", "--rounds", 2, "--min-sites", 1, "--set", "shots=100")
    said = cairn("train", kind, *chosen, "--no-watch", "--json").json
    run = read_run(parties.researcher.show(f"no-finding-effusion-{kind}").spec)
    assert said == run.model_dump(mode="json")
    assert (run.algorithm, run.settings) == (kind, {"classes": ["No Finding", "effusion"], "shots": 100})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("apga", "x", "--rounds", 1, "--min-sites", 1), "the run's APGA settings: classes: "),
        (("apga", "x", "--class", "a", "--class", "b", "--set", "patch=5"), "APGA settings: patch: "),
        (("attention", "x", "--class", "a", "--class", "b", "--set", "side=64"), "attention settings: side: "),
        (("attention", "x", "--class", "a", "--class", "a"), "attention settings: "),
        (("attention", "--config", "run.toml"), "is of a run of apga; ask for it with: cairn train apga"),
    ],
)
def test_settings_are_checked_by_their_own_algorithm_before_anything_is_sent(
    cairn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('name = "x"\nalgorithm = "apga"\n')
    said = cairn("train", *arguments, "--no-watch")
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert sentence in said.err


def test_runs_are_shown_listed_and_compared_by_their_own_goals(cairn, parties: Parties, tmp_path: Path) -> None:
    trained(parties, "chest", "apga")
    text = cairn("runs", "show", "chest").out
    for said in ("balanced accuracy", "0.75", "best balanced accuracy 0.75 in round 1", "north 0.75"):
        assert said in text
    assert "mm" not in text
    (listed,) = cairn("runs", "list", "--json").json["runs"]
    assert listed["best"] == 0.75
    assert "balanced accuracy 0.75" in cairn("runs", "list").out
    parties.researcher.create("sella")
    plot = tmp_path / "both.png"
    said = cairn("runs", "compare", "chest", "sella", "--json", "--plot", plot)
    assert said.err.startswith("these runs have different goals, whose values are not comparable: chest by balanced")
    assert said.json["goal"]["chest"] == {"metric": "validation/balanced_accuracy", "best": 0.75, "round": 1}
    assert said.json["goal"]["sella"] == {"metric": "validation/mean_mm"}
    with Pillow.open(plot) as picture:
        assert picture.size[0] > picture.size[1], "a panel for each goal"


@pytest.mark.parametrize("kind", ["apga", "attention"])
def test_a_classifier_is_measured_on_local_images(
    cairn, parties: Parties, tmp_path: Path, images: Path, kind: str
) -> None:
    trained(parties, "chest", kind)
    plot = tmp_path / "chest.png"
    said = cairn("evaluate", "chest", "--images", images, "--json", "--plot", plot)
    found = said.json
    assert (found["model"], found["round"], found["classes"]) == ("chest", 1, CLASSES)
    assert np.sum(found["confusion"], axis=1).tolist() == [6, 6]
    right = np.trace(found["confusion"])
    assert found["measures"]["n"] == 12
    assert found["measures"]["accuracy"] == pytest.approx(right / 12)
    mean = (found["of_class"]["dark"]["sensitivity"] + found["of_class"]["light"]["sensitivity"]) / 2
    assert found["measures"]["balanced_accuracy"] == pytest.approx(mean)
    assert {"auc", "ece"} <= found["measures"].keys()
    assert said.err.count("left out: ") == 1
    assert "broken.png" in said.err
    with Pillow.open(plot) as picture:
        assert picture.size[0] > 600
    table = cairn("evaluate", "chest", "--images", images, "--held-out").out
    for word in ("balanced accuracy", "sensitivity", "specificity", "predicted", "dark", "light"):
        assert word in table


def test_an_exported_classifier_is_measured_as_the_run_is_and_its_card_says_where_it_learned(
    cairn, parties: Parties, tmp_path: Path, images: Path
) -> None:
    trained(parties, "chest", "apga")
    about = ("--licence", "CC-BY-4.0", "--data", "made squares")
    made = cairn("export", "chest", "--out", tmp_path / "model", *about, "--json").json
    assert [Path(path).name for path in made["onnx"]] == ["model.onnx"]
    card = Path(made["card"]).read_text()
    assert "| site 1 | 30 | 10 | 20 |" in card
    assert "north" not in card
    assert "balanced_accuracy" in card
    given = ("--images", images, "--json")
    run, file = (cairn("evaluate", model, *given).json for model in ("chest", made["weights"]))
    assert {**run, "model": ""} == {**file, "model": ""}


def test_what_cannot_be_measured_is_one_sentence(cairn, parties: Parties, tmp_path: Path, images: Path) -> None:
    trained(parties, "chest", "apga")
    for arguments, sentence in (
        (
            ("--scenes", images),
            "chest is a model of apga; name a file with a list `labelled` to measure on with --images",
        ),
        (("--images", tmp_path / "none.toml"), "cannot be read (No such file or directory)"),
        (("--images", tmp_path / "other.toml"), "this site has no image of the run's classes (dark, light)"),
    ):
        other = {"labelled": [{"kind": "needles", "images": 2, "size": 64, "needle": 4}]}
        (tmp_path / "other.toml").write_text(tomli_w.dumps(other))
        said = cairn("evaluate", "chest", *arguments)
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert sentence in said.err
