"""Landmark files and masks, against small images of several formats and against real ones."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from agent_trainer.scenes.landmarks import Found, landmark_scenes
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import LandmarkFiles
from cairn.errors import ImageError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of two PNGs, one of them in colour."""
    (tmp_path / "images").mkdir()
    Pillow.fromarray(RNG.integers(0, 255, (30, 40), np.uint8)).save(tmp_path / "images" / "1.png")
    Pillow.fromarray(RNG.integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "images" / "2.png")
    return tmp_path


def read(
    folder: Path, text: str, name: str = "l.csv", run: tuple[str, ...] = ("a", "b"), axes: int = 2, **changed: Any
) -> Found:
    (folder / name).write_text(text, encoding="utf-8")
    given = {"landmarks": folder / name, "images": folder / "images", "spacing_mm": (0.5, 0.5)} | changed
    return landmark_scenes(LandmarkFiles(**given), axes, run)


def only(found: Found) -> Scene:
    assert found.problems == ()
    ((scene, _),) = found.scenes
    return scene


def test_a_row_is_a_landmark(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,4.5\n2.png,b,1,2\n")
    assert [(s.name, s.task) for s, _ in found.scenes] == [("1.png", "a"), ("2.png", "b")]
    np.testing.assert_allclose(found.scenes[0][0].landmark_mm, [4.5, 3])
    assert found.scenes[0][0].image.shape == (1, 30, 40)


def test_a_row_is_an_image_with_a_pair_of_columns_a_landmark(folder: Path) -> None:
    found = read(folder, "image,split,xa,ya,xb,yb\n1.png,train,1,2,3,4\n2.png,test,5,6,,\n")
    assert [(s.name, s.task, split) for s, split in found.scenes] == [
        ("1.png", "a", "train"),
        ("1.png", "b", "train"),
        ("2.png", "a", "test"),
    ]
    np.testing.assert_allclose(found.scenes[1][0].landmark_mm, [4, 3])
    assert np.shares_memory(found.scenes[0][0].image, found.scenes[1][0].image)


def test_json_says_the_same(folder: Path) -> None:
    rows = [{"image": "1.png", "task": "a", "x_mm": 3, "y_mm": 4.5, "split": "train"}]
    found = read(folder, json.dumps(rows), "l.json")
    np.testing.assert_allclose(found.scenes[0][0].landmark_mm, [4.5, 3])
    assert found.scenes[0][1] == "train"


def test_the_runs_tasks_take_the_files_landmarks_by_the_mapping(folder: Path) -> None:
    found = read(folder, "image,x1,y1,x2,y2\n1.png,1,2,3,4\n", run=("sella", "nasion"), tasks={"sella": "2"})
    assert only(found).task == "sella"
    np.testing.assert_allclose(only(found).landmark_mm, [4, 3])


def test_landmarks_of_no_task_of_the_run_are_passed_over_and_named(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,4\n1.png,gonion,3,4\n")
    assert only(found).task == "a"
    assert found.others == {"gonion"}


@pytest.mark.parametrize("name", ["1.png", "1"])
def test_an_image_is_found_by_its_name_with_and_without_ending(folder: Path, name: str) -> None:
    assert only(read(folder, f"image,task,x_mm,y_mm\n{name},a,3,4\n")).name == "1.png"


def test_colours_are_averaged_and_a_band_can_be_chosen(folder: Path) -> None:
    colours = np.zeros((30, 40, 3), np.uint8)
    colours[:15, :, 0], colours[:, :20, 1] = 200, 100
    Pillow.fromarray(colours).save(folder / "images" / "2.png")
    text = "image,task,x_mm,y_mm\n2.png,a,3,4\n"
    assert [*np.unique(only(read(folder, text)).image)] == [0, 85, 170, 255]
    np.testing.assert_array_equal(only(read(folder, text, band="G")).image[0, :, :20], 255)


def test_a_png_without_spacing_is_refused_with_what_to_do(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,4\n", spacing_mm=None)
    assert found.scenes == ()
    assert found.problems == (
        "1.png: the file does not say how many mm a pixel is; set spacing_mm of its source, "
        "2 numbers in the order y, x",
    )


def test_a_landmark_outside_is_a_problem_and_the_rest_goes_on(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,15\n1.png,b,20,3\n2.png,a,nan,3\n2.png,b,3,3\n")
    assert [(s.name, s.task) for s, _ in found.scenes] == [("2.png", "b")]
    assert ["outside the image" in problem for problem in found.problems] == [True] * 3


def test_plain_tiffs_of_one_folder_are_images_of_their_own_and_their_masks_too(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in (1, 2):
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", RNG.integers(0, 255, (30, 40), np.uint8))
        mask = np.zeros((30, 40), np.uint8)
        mask[10 * number, 20] = 1
        tifffile.imwrite(tmp_path / "masks" / f"{number}.tif", mask)
    found = read(tmp_path, "image,task,x_mm,y_mm\n1.tif,a,3,4.5\n2,b,1,2\n")
    assert [s.name for s, _ in found.scenes] == ["1.tif", "2.tif"]
    settings = LandmarkFiles(
        landmarks=tmp_path / "masks", images=tmp_path / "images", spacing_mm=(0.5, 0.5), tasks={"a": "1"}
    )
    found = landmark_scenes(settings, 2, ("a",))
    assert found.problems == ()
    assert [(s.name, s.landmark_mm.tolist()) for s, _ in found.scenes] == [("1.tif", [5, 10]), ("2.tif", [10, 10])]


def test_an_image_of_nan_is_a_problem_and_the_rest_goes_on(folder: Path) -> None:
    values = np.ones((30, 40), np.float32)
    values[2, 2] = np.nan
    tifffile.imwrite(folder / "images" / "3.tif", values)
    found = read(folder, "image,task,x_mm,y_mm\n3.tif,a,3,4\n1.png,a,3,4\n")
    assert [s.name for s, _ in found.scenes] == ["1.png"]
    assert found.problems == ("3.tif: 1 pixels are NaN or infinite; expected numbers, export the image again",)


def test_a_truncated_image_is_a_problem_and_the_rest_goes_on(folder: Path) -> None:
    path = folder / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:500])
    found = read(folder, "image,task,x_mm,y_mm\n2.png,a,3,4\n1.png,a,3,4\n")
    assert [s.name for s, _ in found.scenes] == ["1.png"]
    assert found.problems[0].startswith("2.png: corrupt")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("9.png,a,3,4", "9.png: no image of this name"),
        ("2.png,a,3,four", "l.csv: row 1: x_mm and y_mm are not all numbers"),
        ("2.png,a,3", "l.csv: row 1: x_mm and y_mm are not all numbers"),
        (",a,3,4", "l.csv: row 1 names no image"),
        ("2.png,,3,4", "l.csv: row 1 names no task"),
    ],
)
def test_a_row_that_makes_no_sense_is_a_problem(folder: Path, row: str, problem: str) -> None:
    found = read(folder, f"image,task,x_mm,y_mm\n{row}\n1.png,a,3,4\n")
    assert [s.name for s, _ in found.scenes] == ["1.png"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith(problem)


def test_of_two_places_the_first_is_taken(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,4\n1,a,5,6\n")
    np.testing.assert_allclose(found.scenes[0][0].landmark_mm, [4, 3])
    assert len(found.scenes) == 1
    assert found.problems == ("1.png: a has two places; expected one, the first is taken",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "picture,x,y\n", "found the columns picture, x, y; expected image, task, x_mm"),
        ("l.csv", "", r"found the columns \(none\)"),
        ("l.csv", 'image,x1,y1\n"1.png,1,2', "is not CSV"),
        ("l.json", "[", r"is not JSON \(line 1\)"),
        ("l.json", '{"image": 1}', "expected a list of objects"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(folder: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ImageError, match=rf"^{name}: .*{message}"):
        read(folder, text, name)


def test_a_missing_file_or_folder_is_refused(folder: Path) -> None:
    settings = LandmarkFiles(landmarks=folder / "no.csv", images=folder / "images")
    with pytest.raises(ImageError, match=r"^no\.csv: no such file"):
        landmark_scenes(settings, 2, ("a",))
    with pytest.raises(ImageError, match="is no folder"):
        landmark_scenes(settings.model_copy(update={"images": folder / "none"}), 2, ("a",))


def test_one_image_alone_can_be_read(folder: Path) -> None:
    text = "image,task,x_mm,y_mm\n1.png,a,3,4\n2.png,a,3,4\n"
    (folder / "l.csv").write_text(text)
    settings = LandmarkFiles(landmarks=folder / "l.csv", images=folder / "images", spacing_mm=(1, 1))
    assert only(landmark_scenes(settings, 2, ("a",), only="2.png")).name == "2.png"


def test_a_coarser_image_keeps_its_landmark_in_its_place(folder: Path) -> None:
    y, x = np.mgrid[:60, :80]
    spot = 255 * np.exp(-((y - 23) ** 2 + (x - 51) ** 2) / 60)
    Pillow.fromarray(spot.astype(np.uint8)).save(folder / "images" / "3.png")
    found = read(folder, "image,task,x_mm,y_mm\n3.png,a,5.1,2.3\n", spacing_mm=(0.1, 0.1), pixel_mm=0.4)
    scene = only(found)
    assert scene.spacing_mm == pytest.approx((0.4, 0.4))
    assert scene.image.shape == (1, 15, 20)
    brightest = np.unravel_index(scene.image[0].argmax(), (15, 20))
    np.testing.assert_allclose(scene.landmark_px, brightest, atol=0.5)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Make a NIfTI volume of 20 slices of 30 × 40 with a bright voxel, and its mask: 1 there, 2 in a block."""
    values = RNG.integers(0, 50, (40, 30, 20)).astype(np.int16)  # columns, rows, slices
    values[25:28, 10:13, 5:8] = 500
    mask = np.zeros(values.shape, np.float32)  # as the real ones are
    mask[26, 11, 6] = 1
    mask[10:15, 20:22, 15:19] = 2
    for name, data in (("images", values), ("labels", mask)):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(data, np.diag([0.5, 0.75, 3, 1])), tmp_path / name / "v.nii.gz")
    return tmp_path


def masked(folder: Path, axes: int, **changed: Any) -> Found:
    settings = LandmarkFiles(landmarks=folder / "labels", images=folder / "images", **changed)
    return landmark_scenes(settings, axes, ("1", "2", "tail"))


def test_a_landmark_is_the_centre_of_a_value_in_a_mask(volumes: Path) -> None:
    found = masked(volumes, 3)
    first, second = (scene for scene, _ in found.scenes)
    assert first.spacing_mm == pytest.approx((3, 0.75, 0.5))
    assert first.image.shape == (1, 20, 30, 40)
    np.testing.assert_allclose(first.landmark_px, [6, 11, 26], rtol=1e-6)
    np.testing.assert_allclose(second.landmark_px, [16.5, 20.5, 12], rtol=1e-6)
    assert first.image[0, 6, 11, 26] == 255


def test_a_value_of_a_mask_can_be_named(volumes: Path) -> None:
    assert only(masked(volumes, 3, tasks={"tail": "2"})).task == "tail"


def test_in_two_axes_a_volume_gives_the_slice_of_the_landmark(volumes: Path) -> None:
    scene = only(masked(volumes, 2, tasks={"tail": "1"}))
    assert scene.image.shape == (1, 30, 40)
    assert scene.spacing_mm == pytest.approx((0.75, 0.5))
    np.testing.assert_allclose(scene.landmark_px, [11, 26], rtol=1e-6)
    assert scene.image[0, 11, 26] == 255


def test_in_two_axes_four_sequential_slices_can_be_the_channels(volumes: Path) -> None:
    whole = only(masked(volumes, 3, tasks={"tail": "1"})).image[0]
    scene = only(masked(volumes, 2, tasks={"tail": "1"}, slices=4))
    np.testing.assert_array_equal(scene.image, whole[5:9])


def test_a_volume_needs_the_distance_of_its_slices(volumes: Path) -> None:
    found = masked(volumes, 3, spacing_mm=(1.0, 1.0))
    assert found.scenes == ()
    assert "set spacing_mm of its source, 3 numbers in the order z, y, x" in found.problems[0]


def test_a_plane_in_a_run_of_three_axes_is_a_problem(folder: Path) -> None:
    found = read(folder, "image,task,x_mm,y_mm\n1.png,a,3,4\n", axes=3)
    assert found.problems == ("1.png: found one slice; expected a volume, as the run searches in three axes",)


def test_a_landmark_without_z_in_a_volume_is_a_problem(volumes: Path) -> None:
    found = read(volumes, "image,task,x_mm,y_mm\nv.nii.gz,a,3,4\n", axes=3, spacing_mm=None)
    assert "has 2 coordinates; expected 3" in found.problems[0]


@pytest.mark.parametrize("z", ["-2", "58.6", "nan"])
def test_a_landmark_in_no_slice_is_a_problem(volumes: Path, z: str) -> None:
    for axes in (2, 3):
        found = read(volumes, f"image,task,x_mm,y_mm,z_mm\nv,a,3,4,{z}\n", axes=axes, spacing_mm=None)
        assert found.scenes == ()
        assert "outside the image" in found.problems[0]


def test_a_mask_of_fractions_is_a_problem(volumes: Path) -> None:
    half = nibabel.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4))
    nibabel.save(half, volumes / "labels" / "v.nii.gz")
    found = masked(volumes, 3)
    assert found.problems == (
        "v.nii.gz: found values that are no whole numbers; expected a mask, 0 and a number a landmark",
    )


def test_the_cephalograms_have_nineteen_landmarks_each(real_data: Path) -> None:
    ceph = real_data / "ceph"
    tasks = tuple(str(i) for i in range(1, 20))
    found = landmark_scenes(
        LandmarkFiles(landmarks=ceph / "landmarks_mm.csv", images=ceph, spacing_mm=(1, 1)), 2, tasks
    )
    assert found.problems == ()
    assert len(found.scenes) == 300 * 19
    splits = [split for scene, split in found.scenes if scene.task == "1"]
    assert (splits.count("train"), splits.count("test1")) == (150, 150)
    first = found.scenes[0][0]
    assert (first.name, first.image.shape) == ("001.png", (1, 240, 194))
    np.testing.assert_allclose(first.landmark_mm, [99.4, 83.41])


def test_the_hippocampus_has_a_front_and_a_back(real_data: Path) -> None:
    mri = real_data / "hippocampus"
    settings = LandmarkFiles(landmarks=mri / "labels", images=mri / "images", tasks={"anterior": "1", "posterior": "2"})
    found = landmark_scenes(settings, 3, ("anterior", "posterior"))
    assert found.problems == ()
    assert len(found.scenes) == 220
    by_name: dict[str, dict[str, Any]] = {}
    for scene, _ in found.scenes:
        by_name.setdefault(scene.name, {})[scene.task] = scene.landmark_mm
    assert all(one["anterior"][1] > one["posterior"][1] for one in by_name.values())  # rows run to the front
