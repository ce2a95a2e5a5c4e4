"""`cairn train segmentation`, and what becomes of its models: outlines in files, measures, an exported graph."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import pytest
import tomli_w
from PIL import Image as Pillow

from agent_trainer.exports.card import ModelCard, SiteCard
from agent_trainer.exports.files import export, read_weights
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import Learner, first_weights
from cairn.errors import TrainingError
from cairn.run import read_run
from tests.agent_trainer.volumes.scans import write
from tests.aggregator.runs.parties import Parties

SMALL = SegmentationConfig(
    classes=("ball", "box"), modality="mr", network="unet", width=4, depth=2, blocks=0, patch=(16, 16, 16),
    spacing_mm=(2.0, 2.0, 2.0),
)  # fmt: skip
SITE = SiteCard("north", 8, {"": {"n": 2, "dice": 0.8, "dice of ball": 0.9}}, {"ball": 8, "box": 7})
CARD = ModelCard("organs", 3, 4, "fedavg", "made volumes", "CC0-1.0", (SITE,), {"": {"n": 2, "dice": 0.8}})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file as `cairn export` writes it, with its graph beside it."""
    folder = tmp_path_factory.mktemp("model")
    made = export(folder, "segmentation", first_weights(SMALL, 3), SMALL, CARD)
    assert made.difference < 1e-4
    return made.weights


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A file of sources: three volumes of which the last cannot be read; one of them lies on its side."""
    rng = np.random.default_rng(0)
    turned = np.array([[0, 0, -1, 4], [-2, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]], float)
    for name, affine in (("a", np.diag([1.0, 2, 1, 1])), ("b", turned), ("c", np.eye(4))):
        labels = np.zeros((20, 16, 24), np.uint8)
        labels[2:8, 3:9, 4:10], labels[12:18, 9:15, 14:20] = 1, 2
        write(tmp_path / "images" / f"{name}.nii.gz", (labels + rng.random(labels.shape)).astype(np.float32), affine)
        write(tmp_path / "labels" / f"{name}.nii.gz", labels, affine)
    (tmp_path / "images" / "c.nii.gz").write_bytes(b"cut off")
    source = {"kind": "files", "images": "images", "labels": "labels", "modality": "mr",
              "classes": {"ball": 1, "box": 2}}  # fmt: skip
    path = tmp_path / "volumes.toml"
    path.write_text(tomli_w.dumps({"volumes": [source]}))
    return path


def test_what_is_asked_for_on_the_command_line_is_the_run(cairn: Any, parties: Parties) -> None:
    chosen = ("--class", "Left Kidney", "--modality", "ct", "--rounds", 2, "--min-sites", 1)
    more = ("--set", "augmentation.flip=0.5", "--set", "augmentation.noise=0.1", "--set", "network=unet")
    said = cairn("train", "segmentation", *chosen, *more, "--no-watch", "--json").json
    run = read_run(parties.researcher.show("left-kidney-segmentation").spec)
    assert said == run.model_dump(mode="json")
    augmentation = {"flip": 0.5, "noise": 0.1}
    assert run.settings == {
        "classes": ["Left Kidney"], "modality": "ct", "augmentation": augmentation, "network": "unet"
    }  # fmt: skip
    for wrong, sentence in (
        (("--modality", "xray"), "the run's segmentation settings: modality: "),
        (("--modality", "ct", "--set", "augmentation.flop=0.5"), "segmentation settings: augmentation.flop: "),
        (("--modality", "ct", "--set", "network.depth=3"), "segmentation settings: network: "),
        (
            ("--modality", "ct", "--set", "loss=dice", "--set", "loss.x=3"),
            "loss is 'dice'; expected a table of settings",
        ),
    ):
        told = cairn(
            "train", "segmentation", "x", "--class", "a", "--rounds", 1, "--min-sites", 1, *wrong, "--no-watch"
        )
        assert (told.code, told.out, told.err.count("\n")) == (1, "", 1)
        assert sentence in told.err


def test_volumes_are_outlined_on_their_own_grids_with_measures_and_pictures(
    command: Any, model: Path, volumes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = command("evaluate", model, "--volumes", volumes, "--out", out, "--json")
    found = said.json
    assert (found["model"], found["round"], found["classes"]) == (str(model), 3, ["ball", "box"])
    assert found["measures"]["n"] == 2
    assert {"dice", "hd95_mm", "surface_dice/box"} <= found["measures"].keys()
    assert said.err.startswith("left out: c.nii.gz: cannot be read as NIfTI")
    learner = Learner(SMALL, seed=0)
    learner.load(first_weights(SMALL, 3))
    for name in "ab":
        given, made = (nibabel.load(folder / f"{name}.nii.gz") for folder in (tmp_path / "images", out))
        assert made.shape == given.shape
        np.testing.assert_allclose(made.affine, given.affine)
        labels = np.asanyarray(made.dataobj)
        volume = next(one for one in found["volumes"] if one["name"] == name)["classes"]["ball"]
        assert volume["found_ml"] == pytest.approx((labels == 1).sum() * 2 / 1000)
        truth = np.asanyarray(nibabel.load(tmp_path / "labels" / f"{name}.nii.gz").dataobj)
        both = ((labels == 1) & (truth == 1)).sum()
        assert volume["dice"] == pytest.approx(2 * both / ((labels == 1).sum() + (truth == 1).sum()))
        with Pillow.open(out / f"{name}.png") as picture:
            assert picture.size[0] > 600
    rows = list(csv.DictReader((out / "measures.csv").read_text().splitlines()))
    assert [(row["volume"], row["class"]) for row in rows] == [(n, k) for n in "ab" for k in ("ball", "box")]
    assert json.loads((out / "measures.json").read_text()) == {key: found[key] for key in found if key != "folder"}


def test_a_folder_of_volumes_without_labels_is_outlined_too(
    command: Any, model: Path, volumes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = command("evaluate", model, "--volumes", tmp_path / "images", "--out", out)
    assert said.code == 0, said.err
    assert "2 volumes segmented" in said.out
    assert {path.name for path in out.iterdir()} == {
        "a.nii.gz", "a.png", "b.nii.gz", "b.png", "measures.csv", "measures.json"
    }  # fmt: skip
    assert json.loads((out / "measures.json").read_text())["measures"] == {}
    both = command("evaluate", model, "--volumes", volumes, "--volumes", tmp_path / "images", "--out", out, "--json")
    assert [one["name"] for one in both.json["volumes"]] == ["a", "b", "a", "b"]
    assert (out / "a-2.png").is_file()


def test_what_cannot_be_outlined_is_one_sentence(command: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "ct.toml").write_text(tomli_w.dumps({"volumes": [{"kind": "generated", "modality": "ct"}]}))
    for arguments, sentence in (
        ((), "is a model of segmentation; name a file with a list `volumes`, or a folder of volumes, with --volumes"),
        (("--volumes", tmp_path / "none.toml"), "cannot be read (No such file or directory)"),
        (("--volumes", tmp_path / "empty"), "there is no volume to segment"),
        (("--volumes", tmp_path / "ct.toml"), "this site has no volumes of MR with labels of ball, box"),
    ):
        said = command("evaluate", model, *arguments, "--out", tmp_path / "out")
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert sentence in said.err


def test_an_exported_network_answers_as_at_the_sites(model: Path) -> None:
    session = onnxruntime.InferenceSession(model.parent / "segmentation.onnx", providers=["CPUExecutionProvider"])
    window = np.random.default_rng(0).random((3, 1, 16, 16, 16), np.float32)
    (found,) = session.run(None, {"window": window})
    learner = Learner(SMALL, seed=0)
    learner.load(first_weights(SMALL, 3))
    for given, answer in zip(window, found, strict=True):
        np.testing.assert_allclose(learner.probabilities(given[0]), answer, atol=1e-5)
    card = (model.parent / "MODEL_CARD.md").read_text()
    for said in (
        "| north | 8 | 8 | 7 |",
        "dice of ball",
        "resampled to 2 × 2 × 2 mm",
        "0 the background, then ball, box",
    ):
        assert said in card
    with pytest.raises(TrainingError, match="is of another architecture"):
        read_weights(model, "segmentation", SMALL.model_copy(update={"width": 8}))
