"""Scenes from label images, written by the same code that a site writes them with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from agent_trainer.scenes.landmarks import Found
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import LabelImages
from agent_trainer.scenes.tissue import label_scenes, largest_centre
from cairn.errors import ImageError
from cairn.images.labels import LabelWriter

NAMES = ("background", "immune", "tumour", "other")
TUMOUR, IMMUNE = 2, 1


def write(path: Path, stack: np.ndarray, pixel_size_um: float | None = 0.5, names: tuple[str, ...] = NAMES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    depth, height, width = stack.shape
    with LabelWriter(path, height, width, depth=depth, pixel_size_um=pixel_size_um, names=names) as writer:
        for z, labels in enumerate(stack):
            writer.write(0, 0, labels, z)


def tissue(*spots: tuple[slice, slice], depth: int = 1, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    stack = np.zeros((depth, *size), np.uint8)
    stack[:, 50:, :] = IMMUNE
    for spot in spots:
        stack[:, spot[0], spot[1]] = TUMOUR
    return stack


SMALL, LARGE = (slice(2, 6), slice(2, 6)), (slice(20, 31), slice(40, 61))


def read(folder: Path, axes: int = 2, **changed: Any) -> Found:
    return label_scenes(LabelImages(folder=folder, **changed), axes)


def only(found: Found) -> Scene:
    assert found.problems == ()
    ((scene, split),) = found.scenes
    assert split is None
    return scene


@pytest.mark.parametrize("ending", ["ome.tif", "ome.zarr"])
def test_the_landmark_is_the_centre_of_the_largest_tumour_region(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"slide.states.{ending}", tissue(SMALL, LARGE))
    scene = only(read(tmp_path))
    assert scene.task == "tumour-centre"
    assert scene.spacing_mm == pytest.approx((0.0005, 0.0005))
    np.testing.assert_allclose(scene.landmark_px, [25, 50])


def test_the_binary_map_is_one_where_the_state_is_tumour(tmp_path: Path) -> None:
    labels = tissue(SMALL, LARGE)
    write(tmp_path / "slide.states.ome.tif", labels)
    np.testing.assert_array_equal(only(read(tmp_path)).image, np.repeat((labels == TUMOUR) * np.uint8(255), 4, axis=0))
    immune = only(read(tmp_path, state="immune", task="immune-centre"))
    np.testing.assert_array_equal(immune.image[0] > 0, labels[0] == IMMUNE)
    assert immune.task == "immune-centre"


def test_the_four_channels_are_sequential_slices_of_a_stack(tmp_path: Path) -> None:
    stack = np.concatenate([tissue((slice(10 + z, 20), slice(10, 20))) for z in range(6)])
    write(tmp_path / "block.states.ome.tif", stack)
    found = read(tmp_path)
    first, second = (scene for scene, _ in found.scenes)
    np.testing.assert_array_equal(first.image, (stack[0:4] == TUMOUR) * np.uint8(255))
    np.testing.assert_array_equal(second.image, (stack[2:6] == TUMOUR) * np.uint8(255))  # the last four
    assert first.name == second.name == "block.states.ome.tif"  # both on one side of a split


def test_a_stack_in_three_axes_is_a_volume(tmp_path: Path) -> None:
    stack = tissue(LARGE, depth=9)
    stack[:3] = stack[6:] = 0
    write(tmp_path / "block.states.ome.tif", stack)
    scene = only(read(tmp_path, 3, spacing_mm=(0.004, 0.0005, 0.0005)))
    assert scene.image.shape == (1, 9, 60, 80)
    np.testing.assert_allclose(scene.landmark_px, [4, 25, 50])
    found = read(tmp_path, 3)
    assert "set spacing_mm of its source, 3 numbers" in found.problems[0]


def test_consecutive_images_of_one_size_can_be_the_slices_of_a_block(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / f"slice-{number}.states.ome.tif", tissue((slice(number, 20), slice(10, 20))))
    write(tmp_path / "slice-6.states.ome.tif", tissue(LARGE, size=(60, 70)))
    found = read(tmp_path, sequence="folder")
    assert [scene.name for scene, _ in found.scenes] == [f"slice-{n}.states.ome.tif" for n in (0, 4, 6)]
    tops = [[int(np.nonzero(channel)[0].min()) for channel in scene.image] for scene, _ in found.scenes]
    assert tops == [[0, 1, 2, 3], [4, 5, 5, 5], [20, 20, 20, 20]]
    alone = read(tmp_path)
    assert len(alone.scenes) == 7
    assert all((scene.image == scene.image[0]).all() for scene, _ in alone.scenes)


def test_regions_hang_together_through_slices() -> None:
    apart = np.zeros((4, 20, 20), np.uint8)
    apart[:2, 2:5, 2:5] = 255  # 18 voxels
    apart[3, 10:14, 10:14] = 255  # 16
    np.testing.assert_allclose(largest_centre(apart, 3), [0.5, 3, 3])
    np.testing.assert_allclose(largest_centre(apart, 2), [3, 3])


def test_the_inmost_pixel_of_a_region_lies_inside_where_its_mean_does_not(tmp_path: Path) -> None:
    ring = tissue((slice(10, 45), slice(10, 60)))
    ring[0, 15:40, 15:48] = 0  # the right side is thicker, 12 against 5
    write(tmp_path / "slide.states.ome.tif", ring)
    y, x = np.rint(only(read(tmp_path)).landmark_px).astype(int)
    assert ring[0, y, x] == 0
    y, x = np.rint(only(read(tmp_path, centre="inmost")).landmark_px).astype(int)
    assert ring[0, y, x] == TUMOUR
    assert 52 <= x <= 55


@pytest.mark.parametrize("centre", ["mass", "inmost"])
def test_a_region_through_slices_has_its_centre_in_the_plane(tmp_path: Path, centre: str) -> None:
    write(tmp_path / "block.states.ome.tif", tissue(LARGE, depth=4))
    scene = only(read(tmp_path, centre=centre))
    np.testing.assert_allclose(scene.landmark_px, [25, 50], atol=0 if centre == "mass" else 6)
    assert (scene.image[:, 25, 50] == 255).all()


def test_a_coarser_map_holds_shares_and_finds_the_same_centre(tmp_path: Path) -> None:
    write(tmp_path / "slide.states.ome.tif", tissue(SMALL, LARGE, size=(61, 83)))
    scene = only(read(tmp_path, pixel_mm=0.002))  # four pixels
    assert scene.image.shape == (4, 16, 21)
    assert scene.spacing_mm == pytest.approx((0.002, 0.002))
    # Pixel 4k to 4k + 3 become pixel k, whose centre is at 4k + 1.5.
    np.testing.assert_allclose(np.array(scene.landmark_px) * 4 + 1.5, [25, 50], atol=1.1)
    assert {0, 255} < set(np.unique(scene.image).tolist())


def test_an_image_without_tumour_is_a_problem_and_the_rest_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.states.ome.tif", tissue())
    write(tmp_path / "b.states.ome.tif", tissue(LARGE))
    found = read(tmp_path)
    assert [scene.name for scene, _ in found.scenes] == ["b.states.ome.tif"]
    assert found.problems == ("a.states.ome.tif: no pixel is tumour, so there is no region to search",)


def test_a_label_image_without_the_state_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path / "a.states.ome.tif", tissue(LARGE), names=("background", "one", "two", "three"))
    tifffile.imwrite(tmp_path / "b.states.ome.tif", np.ones((30, 30), np.uint8))
    problems = read(tmp_path).problems
    assert problems[0].startswith("a.states.ome.tif: no label is named tumour, it has background, one, two, three;")
    assert problems[1].startswith("b.states.ome.tif: no label is named tumour, it has no names;")


def test_a_label_image_without_a_pixel_size_needs_the_setting(tmp_path: Path) -> None:
    write(tmp_path / "a.states.ome.tif", tissue(LARGE), pixel_size_um=None)
    assert "set spacing_mm of its source" in read(tmp_path).problems[0]
    assert only(read(tmp_path, spacing_mm=(0.001, 0.001))).spacing_mm == (0.001, 0.001)


def test_the_clusters_images_beside_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.states.ome.tif", tissue(LARGE))
    write(tmp_path / "a.clusters.ome.tif", tissue(LARGE), names=("background", "0: x", "1: tumour", "2: x"))
    assert only(read(tmp_path)).name == "a.states.ome.tif"


def test_a_truncated_label_image_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.states.ome.tif"
    write(path, tissue(LARGE))
    path.write_bytes(path.read_bytes()[:200])
    (problem,) = read(tmp_path).problems
    assert problem.startswith("a.states.ome.tif: ")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is no folder"):
        read(tmp_path / "none")
