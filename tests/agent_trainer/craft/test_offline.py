"""Augmented copies on disk: patients, masks, what goes on, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from agent_trainer.commands.craft import app
from agent_trainer.craft.augmentation import Augmentation
from agent_trainer.craft.offline import Order, check_apart, write_copies
from agent_trainer.craft.originals import of_labelled, of_volumes
from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders
from agent_trainer.labelled.sources import load_labelled
from cairn.errors import CairnError, ConfigError, ImageError

PATIENT = "^([0-9]+)_"
SETTINGS = Augmentation(rotate=1, rotate_degrees=40, noise=0.5)


def folder(path: Path, patients: int = 6) -> LabelledFolders:
    """Two images a patient, in two classes: a bright square on noise; and its mask beside."""
    rng = np.random.default_rng(0)
    for patient in range(patients):
        for number in range(2):
            pixels, mask = rng.integers(0, 60, (24, 30), np.uint8), np.zeros((24, 30), np.uint8)
            mask[6:14, 8:20] = 3
            name = f"{'ab'[patient % 2]}/{patient:03}_{number}.png"
            for place, array in (("images", pixels + 60 * mask), ("masks", mask)):
                (path / place / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path / place / name)
    return LabelledFolders(images=path / "images", patient=PATIENT)


def write(source: LabelledFolders, out: Path, masks: Path | None = None, **order: Any) -> Any:
    originals, _ = of_labelled(source, (), 0.3, masks)
    *_, last = write_copies(originals, out, Order(**{"settings": SETTINGS, "copies": 3, "seed": 1, **order}))
    return last


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_copies_keep_their_patient_and_stay_on_its_side_of_the_split(tmp_path: Path) -> None:
    source = folder(tmp_path)
    assert write(source, tmp_path / "out").written == len(lines(tmp_path / "out"))
    more = LabelledFiles(images=tmp_path / "out/images", labels=tmp_path / "out/labels.csv")
    before, after = (load_labelled(some, ("a", "b"), 0.3) for some in ((source,), (source, more)))
    assert len(after.train) == 4 * len(before.train)
    assert after.validation == before.validation  # of whom there are no copies
    assert not {one.patient for one in after.train} & {one.patient for one in after.validation}
    assert {one.patient for one in after.train} == {one.patient for one in before.train}


def test_a_mask_is_moved_with_its_image(tmp_path: Path) -> None:
    source = folder(tmp_path)
    write(source, tmp_path / "out", tmp_path / "masks", settings=Augmentation(rotate=1, rotate_degrees=60, elastic=1))
    moved = []
    for line in lines(tmp_path / "out"):
        image, mask = (np.asarray(Image.open(tmp_path / "out" / kind / line["image"])) for kind in ("images", "masks"))
        assert set(np.unique(mask)) == {0, 3}
        assert ((image > 120) == (mask == 3)).mean() > 0.97
        moved.append(not (mask[6:14, 8:20] == 3).all())
    assert any(moved)


def test_the_manifest_says_of_what_an_image_is_and_what_happened(tmp_path: Path) -> None:
    write(folder(tmp_path), tmp_path / "out")
    line = lines(tmp_path / "out")[0]
    assert (tmp_path / "images" / line["source"]).exists()
    assert line["patient"] == Path(line["source"]).name.split("_")[0]
    assert line["label"] == line["source"][0]
    assert abs(line["changes"]["rotate"][0]) <= 40
    assert {"noise" in one["changes"] for one in lines(tmp_path / "out")} == {True, False}
    rows = list(csv.DictReader((tmp_path / "out/labels.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [one["image"] for one in lines(tmp_path / "out")]


def test_what_was_cut_short_goes_on_and_what_is_there_is_not_touched(tmp_path: Path) -> None:
    source = folder(tmp_path)
    write(source, tmp_path / "whole")
    originals, _ = of_labelled(source, (), 0.3, None)
    begun = write_copies(originals, tmp_path / "cut", Order(SETTINGS, 3, 1))
    next(begun)
    begun.close()
    assert not (tmp_path / "cut/labels.csv").exists()
    first = next((tmp_path / "cut/images").rglob("*.png"))
    before = first.stat().st_mtime_ns
    last = write(source, tmp_path / "cut")
    assert (last.there, last.written) == (3, 3 * len(originals) - 3)
    assert first.stat().st_mtime_ns == before
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert write(source, tmp_path / "cut", copies=4).written == len(originals)  # more of them may be asked


def test_an_image_that_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = folder(tmp_path)
    originals, _ = of_labelled(source, (), 0.3, None)
    originals[0].image.write_bytes(b"no picture")
    last = write(source, tmp_path / "out")
    assert last.written == 3 * (len(originals) - 1)
    assert len(last.problems) == 1
    assert originals[0].image.name in last.problems[0]


def test_volumes_are_written_with_their_labels_as_they_lie(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -5], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    for number in range(4):
        labels = np.zeros((14, 16, 12), np.uint8)
        labels[4:9, 5:11, 3:8] = 2
        values = (rng.normal(100, 5, labels.shape) + 400.0 * labels).astype(np.int16)
        for place, array in (("images", values), ("labels", labels)):
            (tmp_path / place).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / place / f"case_{number}.nii.gz")
    originals, _ = of_volumes(tmp_path / "images", tmp_path / "labels", None, 0.3)
    settings = Augmentation(rotate=1, rotate_degrees=30, shift=1)
    *_, last = write_copies(originals, tmp_path / "out", Order(settings, 2, 0))
    assert last.written == 2 * len(originals) < 8
    for line in lines(tmp_path / "out"):
        image, labels = (nibabel.load(tmp_path / "out" / kind / line["image"]) for kind in ("images", "masks"))
        assert np.allclose(image.affine, affine)
        assert ((np.asarray(image.dataobj) > 500) == (np.asarray(labels.dataobj) == 2)).mean() > 0.97
    # As a source of its own, with the pattern that the command names, every copy has its volume's patient.
    again, _ = of_volumes(tmp_path / "out/images", tmp_path / "out/masks", "^(.+)[.][0-9]+$", 0)
    assert {one.patient for one in again} == {one.patient for one in originals}


def refused(tmp_path: Path, what: str) -> None:
    source = folder(tmp_path)
    match what:
        case "inside":
            check_apart(tmp_path / "images/more", tmp_path / "images")
        case "copies of copies":
            write(source, tmp_path / "out")
            check_apart(tmp_path / "again", tmp_path / "out/images")
        case "not empty":
            write(source, tmp_path / "masks")
        case "another order":
            write(source, tmp_path / "out")
            write(source, tmp_path / "out", seed=2)
        case "no patient":
            write(LabelledFolders(images=source.images, patient="^(00[0-3])_"), tmp_path / "out")
        case "no mask":
            next((tmp_path / "masks").rglob("*.png")).unlink()
            of_labelled(source, (), 0.0, tmp_path / "masks")
        case "another size":
            for mask in (tmp_path / "masks").rglob("*.png"):
                Image.new("L", (9, 9)).save(mask)
            write(source, tmp_path / "out", tmp_path / "masks")


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("inside", ConfigError, "lie in one another"),
        ("copies of copies", ConfigError, "holds augmented copies already"),
        ("not empty", ConfigError, "nothing is overwritten"),
        ("another order", ConfigError, "other settings, seed or side"),
        ("no patient", ConfigError, "copies could come to other patients"),
        ("no mask", ImageError, "an image is not moved without its mask"),
        ("another size", ImageError, "its mask has 9 × 9 pixels, the image 30 × 24"),
    ],
)
def test_what_would_mix_patients_or_overwrite_is_refused(
    tmp_path: Path, what: str, error: type[CairnError], said: str
) -> None:
    with pytest.raises(error, match=said):
        refused(tmp_path, what)


def test_the_command_takes_a_searchs_best_and_says_what_it_did(tmp_path: Path) -> None:
    folder(tmp_path)
    best = tmp_path / "best.toml"
    best.write_text("[settings]\nlearning_rate = 0.001\n[settings.augmentation]\nrotate = 0.7\n")
    asked = ["augment", str(tmp_path / "images"), str(tmp_path / "out"), "--config", str(best), "--copies", "2"]
    told = CliRunner().invoke(app, [*asked, "--patient", PATIENT, "--set", "noise=0.3", "--side", "16", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["written"] == len(lines(tmp_path / "out"))
    with Image.open(tmp_path / "out/images" / lines(tmp_path / "out")[0]["image"]) as image:
        assert image.size == (16, 16)
    held = json.loads((tmp_path / "out/augmentation.json").read_text())["settings"]
    assert (held["rotate"], held["noise"]) == (0.7, 0.3)
    for wrong, said in (("rotate=2", "less than or equal to 1"), ("rotate", "expected NAME=VALUE")):
        failed = CliRunner().invoke(app, [*asked[:3], "--set", wrong])
        assert isinstance(failed.exception, ConfigError)
        assert said in str(failed.exception)
