"""Volumes as networks take them: one orientation, one spacing, values in [0, 1], labels by the run's classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_trainer.volumes.grids import from_ras, resampled, size_at, to_ras
from agent_trainer.volumes.reading import on_disk, read_volume, scaled
from agent_trainer.volumes.settings import MadeVolumes, VolumeFiles
from agent_trainer.volumes.sources import Case, find_cases, load_volumes
from cairn.errors import ConfigError, ImageError
from tests.agent_trainer.volumes.scans import straight, write

MM = (1.0, 1.0, 1.0)


def source(folder: Path, **change: Any) -> VolumeFiles:
    given = {"images": folder / "images", "labels": folder / "labels", "classes": {"heart": 1, "liver": [2, 3]}}
    return VolumeFiles(**{**given, "modality": "mr", **change})


def pair(folder: Path, name: str, labels: Any = None, values: Any = None, **change: Any) -> None:
    rng = np.random.default_rng(len(name))
    write(
        folder / "images" / f"{name}.nii.gz", rng.random((6, 5, 4), np.float32) if values is None else values, **change
    )
    found = rng.integers(0, 4, (6, 5, 4)).astype(np.uint8) if labels is None else labels
    write(folder / "labels" / f"{name}.nii.gz", found, **change)


def case(folder: Path, **change: Any) -> Case:
    return find_cases(source(folder, **change))[0][0]


def test_hounsfield_units_are_scaled_by_fixed_ends_and_mr_by_the_volumes_own_percentiles() -> None:
    hu = np.array([-2000, -1000, 0, 500, 3000], np.int16)
    np.testing.assert_allclose(scaled("x", hu, "ct"), [0, 0, 0.5, 0.75, 1])
    mr = np.arange(101, dtype=np.float32)
    found = scaled("x", mr, "mr")
    np.testing.assert_allclose(found[[0, 5, 50, 95, 100]], [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(scaled("x", 7 * mr + 3, "mr"), found, atol=1e-6)


def test_axes_are_turned_to_the_right_the_front_and_the_top_and_back() -> None:
    rng = np.random.default_rng(0)
    body = rng.random((3, 4, 5))  # right, front, top
    file = body[::-1].transpose(2, 0, 1)  # up, left, front
    affine = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    np.testing.assert_array_equal(to_ras(file, affine), body)
    np.testing.assert_array_equal(from_ras(body, affine), file)


def test_a_finer_grid_begins_at_the_same_face_and_is_linear_between_voxels() -> None:
    ramp = np.broadcast_to(np.arange(4.0, dtype=np.float32)[:, None, None], (4, 2, 2))
    assert size_at(ramp.shape, (2.0, 1.0, 1.0), MM) == (8, 2, 2)
    fine = resampled(ramp, (2.0, 1.0, 1.0), MM, nearest=False)
    np.testing.assert_allclose(fine[:, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    labels = resampled(ramp.astype(np.uint8), (2.0, 1.0, 1.0), MM, nearest=True)
    assert labels[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    back = resampled(labels, MM, (2.0, 1.0, 1.0), nearest=True, shape=ramp.shape)
    np.testing.assert_array_equal(back, ramp)


def test_a_case_is_the_same_volume_however_its_file_lies(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values, labels = rng.random((6, 5, 4), np.float32), rng.integers(0, 4, (6, 5, 4)).astype(np.uint8)
    pair(tmp_path / "a", "x", labels, values, affine=straight(1, 2, 3))
    turned = np.array([[0, 0, -1, 0], [-2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]], float) @ np.diag([1, 1, 1, 1])
    file, outlines = (array[::-1, ::-1].transpose(1, 2, 0) for array in (values, labels))
    pair(tmp_path / "b", "x", outlines, file, affine=turned)
    one, other = (read_volume(case(tmp_path / name), ("heart", "liver"), "mr", MM) for name in "ab")
    assert one.image.shape == (6, 10, 12)
    np.testing.assert_allclose(one.image, other.image, atol=1e-6)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_a_class_may_have_several_values_and_classes_that_the_run_lacks_are_background(tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4), np.float32)
    labels[0], labels[1], labels[2] = 1, 2, 3
    pair(tmp_path, "x", labels)
    both = read_volume(case(tmp_path), ("liver", "heart"), "mr", MM)
    assert both.labels[:, 0, 0].tolist() == [2, 1, 1, 0, 0, 0], "in the run's order, whatever float they were"
    alone = read_volume(case(tmp_path), ("heart",), "mr", MM)
    assert alone.labels[:, 0, 0].tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.full((6, 5, 4), 1.5, np.float32), r"a label is 1\.5; expected whole numbers"),
        (np.full((6, 5, 4), np.nan, np.float32), r"a label is nan; expected whole numbers"),
        (np.full((6, 5, 4), 7, np.uint8), r"have the values 7, which the settings do not know; name each in classes"),
        (np.arange(120).reshape(6, 5, 4).astype(np.uint8), r"have the values 4, 5, 6, 7, 8, 9 …, which the settings"),
        (np.zeros((6, 5, 3), np.uint8), r"labels have 6 × 5 × 3 voxels, the volume 6 × 5 × 4"),
    ],
)
def test_labels_that_nobody_named_or_that_are_no_labels_are_refused(tmp_path: Path, labels: Any, sentence: str) -> None:
    pair(tmp_path, "x", labels)
    with pytest.raises(ImageError, match=sentence):
        read_volume(case(tmp_path), ("heart", "liver"), "mr", MM)


def test_values_named_as_background_are_background(tmp_path: Path) -> None:
    pair(tmp_path, "x", np.full((6, 5, 4), 7, np.uint8))
    assert not read_volume(case(tmp_path, background=[0, 7]), ("heart",), "mr", MM).labels.any()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.where(np.arange(120) == 3, np.nan, 1).reshape(6, 5, 4), "x: 1 voxels are NaN or infinite"),
        (np.full((6, 5, 4), 3.0), "x: all voxels are 3; expected a volume that shows something"),
        (np.eye(1, 120).reshape(6, 5, 4), "from the 5th to the 95th percentile are all 0"),
    ],
)
def test_a_volume_that_shows_nothing_or_no_numbers_is_refused(tmp_path: Path, values: Any, sentence: str) -> None:
    pair(tmp_path, "x", values=values.astype(np.float32))
    with pytest.raises(ImageError, match=sentence):
        read_volume(case(tmp_path), ("heart", "liver"), "mr", MM)


def test_volumes_of_one_patient_are_on_one_side_and_those_without_labels_are_left_out(tmp_path: Path) -> None:
    for name in ("p1_a", "p1_b", "p2_a", "p3_a", "p4_a", "p5_a"):
        pair(tmp_path, name)
    (tmp_path / "labels" / "p5_a.nii.gz").unlink()
    (tmp_path / "images" / "._p1_a.nii.gz").write_bytes(b"of macOS")
    found = load_volumes([source(tmp_path, patient="^(p[0-9])")], ("heart",), "mr", 0.5)
    sides = [{one.patient for one in side} for side in (found.train, found.validation)]
    assert sides[0] | sides[1] == {"p1", "p2", "p3", "p4"}
    assert not sides[0] & sides[1]
    assert all(sides)
    assert found.problems == ("volumes without labels of their name in labels: p5_a; left out",)


def test_a_volume_in_whose_name_nobody_is_found_is_a_patient_of_its_own_and_named(tmp_path: Path) -> None:
    for name in ("p1_a", "p1_b", "other"):
        pair(tmp_path, name)
    cases, problems = find_cases(source(tmp_path, patient="^(p[0-9])"))
    assert [one.patient for one in cases] == ["other", "p1", "p1"]
    assert problems == ["volumes in whose names `patient` finds nobody: other; each is taken for a patient"]


def test_endings_are_taken_off_names(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "images" / f"p{number}_0000.nii")
        write(tmp_path / "labels" / f"p{number}_seg.nii.gz")
    cases, problems = find_cases(source(tmp_path, image_ending="_0000", label_ending="_seg"))
    assert ([one.name for one in cases], problems) == (["p0", "p1"], [])


def test_a_site_without_volumes_of_the_run_says_why(tmp_path: Path) -> None:
    pair(tmp_path, "x")
    with pytest.raises(ConfigError, match=r"no volumes of CT with labels of heart.* is of MR, the run of CT"):
        load_volumes([source(tmp_path)], ("heart",), "ct", 0.2)
    with pytest.raises(ConfigError, match="has no labels of spleen, which the run tells apart; it is left out"):
        load_volumes([source(tmp_path)], ("heart", "spleen"), "mr", 0.2)
    with pytest.raises(ConfigError, match="gone: no such folder, or it may not be read"):
        load_volumes([source(tmp_path, images=tmp_path / "gone")], ("heart",), "mr", 0.2)
    with pytest.raises(ImageError, match=r"has one of the volumes of MR .* expected at least two"):
        load_volumes([source(tmp_path)], ("heart",), "mr", 0.2)
    assert load_volumes([source(tmp_path)], ("heart",), "mr", 0.2, learning=False).train


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": {"heart": 1, "liver": 1}}, "the label value 1 is of two classes"),
        ({"classes": {"heart": 0}}, "the label value 0 is of two classes, or of one and the background"),
        ({"orientation": "RAX"}, "'RAX' is no orientation"),
        ({"orientation": "RLS"}, "'RLS' is no orientation"),
        ({"patient": "p[0-9]"}, "has no group"),
        ({"spacing_mm": (0, 1, 1)}, "greater than or equal to 0.01"),
    ],
)
def test_settings_of_a_source_that_cannot_be_are_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        source(tmp_path, **change)


def test_made_volumes_are_the_same_each_time_and_their_shapes_can_be_seen() -> None:
    made = MadeVolumes(volumes=3, size=24, seed=4)
    cases, _ = find_cases(made)
    first, again = (read_volume(cases[1], ("ball", "box"), "mr", MM) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    means = [first.image[first.labels == number].mean() for number in range(3)]
    assert means[1] > means[2] + 0.2 > means[0] + 0.4
    assert read_volume(cases[1], ("ball",), "mr", (2.0, 2.0, 2.0)).image.shape == (12, 12, 12)


def test_a_volume_on_disk_is_the_same_volume(tmp_path: Path) -> None:
    volume = read_volume(find_cases(MadeVolumes(size=16))[0][0], ("ball", "box"), "mr", MM)
    held = [on_disk(volume, tmp_path / "held") for _ in range(2)]
    for one in held:
        np.testing.assert_array_equal(one.image, volume.image)
        np.testing.assert_array_equal(one.labels, volume.labels)
    assert len(list((tmp_path / "held").iterdir())) == 4


def test_the_hippocampus_is_read_whatever_type_its_labels_are(real_data: Path) -> None:
    folder = real_data / "hippocampus"
    given = VolumeFiles(
        images=folder / "images", labels=folder / "labels", classes={"anterior": 1, "posterior": 2}, modality="mr"
    )
    found = load_volumes([given], ("anterior", "posterior"), "mr", 0.2)
    assert len(found.train) + len(found.validation) == 110
    assert 14 <= len(found.validation) <= 30
    for one in found.train[:5]:
        volume = read_volume(one, ("anterior", "posterior"), "mr", MM)
        assert set(np.unique(volume.labels)) == {0, 1, 2}
        assert (volume.image.min(), volume.image.max()) == (0, 1)
