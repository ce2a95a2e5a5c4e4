"""Patches of images of any size: the same pixels as numpy's slices, and no more of the file than they need."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from agent_trainer.cells import Area, Cells, area_sums
from agent_trainer.patches import Big, in_memory, open_big
from cairn.errors import ImageError

Array = npt.NDArray[Any]
IMAGE = np.random.default_rng(5).integers(0, 256, (3, 150, 170), np.uint8)


def sliced(image: Array, corners: Array, side: int) -> Array:
    """Cut patches the naive way."""
    return np.stack([image[:, y : y + side, x : x + side] for y, x in corners.tolist()])


def averaged(image: Array, height: int, width: int) -> Array:
    """Average areas exactly: each pixel repeated until areas hold whole ones."""
    large = image.repeat(height, axis=1).repeat(width, axis=2).astype(float)
    return large.reshape(len(image), height, image.shape[1], width, image.shape[2]).mean((2, 4))


def in_cells(image: Array, cell: tuple[int, int], areas: list[Area] | None = None) -> Big:
    """Read an array as if it were a file of cells, noting what is read."""

    def read(area: Area) -> Array:
        y, x, h, w = area
        assert 0 <= y < y + h <= image.shape[1]
        assert 0 <= x < x + w <= image.shape[2]
        if areas is not None:
            areas.append(area)
        return image[:, y : y + h, x : x + w]

    return Big("cells", len(image), (Cells(image.shape, cell, read),))


@st.composite
def cut(draw: st.DrawFn) -> tuple[Array, Array, int, tuple[int, int]]:
    """Draw an image, corners of patches in it, their side, and the size of cells."""
    height, width, channels = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 3]))
    side = draw(st.integers(1, min(height, width)))
    places = st.tuples(st.integers(0, height - side), st.integers(0, width - side))
    corners = np.array(draw(st.lists(places, min_size=0, max_size=8)), np.int64).reshape(-1, 2)
    cell = draw(st.tuples(st.integers(1, 45), st.integers(1, 45)))
    image = np.random.default_rng(height * 41 + width).integers(0, 256, (channels, height, width), np.uint8)
    return image, corners, side, cell


@settings(deadline=None)
@given(cut())
def test_patches_are_slices_of_the_image(case: tuple[Array, Array, int, tuple[int, int]]) -> None:
    image, corners, side, cell = case
    expected = sliced(image, corners, side) if len(corners) else np.empty((0, len(image), side, side), np.uint8)
    for big in (in_memory(image), in_cells(image, cell)):
        found = big.patches(corners, side)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 33))
def test_a_reduced_image_is_the_mean_of_areas(height: int, width: int, rows: int, columns: int, cell: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (3, height, width), np.uint8)
    expected = averaged(image, rows, columns)
    for big in (in_memory(image), in_cells(image, (cell, cell))):
        found = big.reduced(rows, columns)
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_reducing_by_a_whole_factor_is_average_pooling() -> None:
    big = in_memory(IMAGE)
    pooled = IMAGE.reshape(3, 15, 10, 17, 10).mean((2, 4))
    np.testing.assert_allclose(big.reduced(15, 17), pooled, atol=0.51)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test_areas_hold_the_same_in_whatever_parts_the_pixels_come(pixels: int, areas: int, data: st.DataObject) -> None:
    values = np.random.default_rng(pixels).integers(0, 256, (2, pixels), np.uint8)
    expected = values.repeat(areas, axis=1).reshape(2, areas, pixels).sum(axis=2) / areas
    middle = data.draw(st.integers(0, pixels))
    total = np.zeros((2, areas))
    for first, last in ((0, middle), (middle, pixels)):
        if first < last:
            start, sums = area_sums(values[:, first:last], 1, first, pixels, areas)
            total[:, start : start + sums.shape[1]] += sums
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-2)


def test_cells_that_neighbouring_patches_share_are_read_once() -> None:
    areas: list[Area] = []
    big = in_cells(IMAGE, (50, 50), areas)
    corners = np.array([[40, 40], [45, 45], [45, 40], [0, 0]])
    big.patches(corners, 20)
    assert sorted(areas) == [(0, 0, 50, 50), (0, 50, 50, 50), (50, 0, 50, 50), (50, 50, 50, 50)]
    big.patches(corners + 1, 20)  # the same cells, still decoded
    assert len(areas) == 4


def test_only_the_last_cells_stay_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_trainer.cells.KEPT_BYTES", 2 * 3 * 50 * 50)
    areas: list[Area] = []
    big = in_cells(IMAGE, (50, 50), areas)
    for x in (0, 50, 100, 100, 50, 0):
        big.patches(np.array([[0, x]]), 50)
    assert [area[1] for area in areas] == [0, 50, 100, 0]


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (141, 0), (0, 161)])
def test_a_patch_that_reaches_beyond_the_image_is_refused(corner: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"^image: a patch of 10 × 10 reaches beyond 170 × 150 pixels"):
        in_memory(IMAGE).patches(np.array([(0, 0), corner]), 10)


def test_patches_at_all_four_borders_are_whole() -> None:
    corners = np.array([(0, 0), (0, 160), (140, 0), (140, 160)])
    np.testing.assert_array_equal(in_cells(IMAGE, (64, 64)).patches(corners, 10), sliced(IMAGE, corners, 10))


def test_an_image_smaller_than_a_patch_is_refused_with_both_sizes() -> None:
    message = r"^image: found 170 × 150 pixels; expected at least a patch, 151 × 151: leave the image out or choose"
    with pytest.raises(ImageError, match=message):
        in_memory(IMAGE).patches(np.array([[0, 0]]), 151)


def ome_tiff(folder: Path, image: Array) -> Path:
    tifffile.imwrite(folder / "a.ome.tif", image, tile=(64, 48), photometric="rgb", planarconfig="separate")
    return folder / "a.ome.tif"


def strips(folder: Path, image: Array) -> Path:
    tifffile.imwrite(folder / "a.tif", np.moveaxis(image, 0, -1), rowsperstrip=7, compression="zstd")
    return folder / "a.tif"


def ome_zarr(folder: Path, image: Array) -> Path:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=3)
    about = {"axes": [{"name": axis} for axis in "cyx"], "datasets": [{"path": "0"}]}
    group.attrs["ome"] = {"multiscales": [about], "omero": {"channels": [{"label": band} for band in "RGB"]}}
    group.create_array("0", shape=image.shape, chunks=(3, 64, 64), dtype=image.dtype)[:] = image
    return folder / "a.zarr"


def png(folder: Path, image: Array) -> Path:
    Pillow.fromarray(np.moveaxis(image, 0, -1)).save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize("write", [ome_tiff, strips, ome_zarr, png])
def test_every_format_gives_the_pixels_that_were_written(tmp_path: Path, write: Callable[[Path, Array], Path]) -> None:
    corners = np.random.default_rng(0).integers(0, (131, 151), (9, 2))
    with open_big(write(tmp_path, IMAGE), 3) as big:
        assert (big.height, big.width, big.channels) == (150, 170, 3)
        np.testing.assert_array_equal(big.patches(corners, 20), sliced(IMAGE, corners, 20))
        np.testing.assert_array_equal(big.reduced(15, 17), in_memory(IMAGE).reduced(15, 17))
    with open_big(write(tmp_path, IMAGE), 1) as grey:
        expected = np.rint(sliced(IMAGE, corners, 20).mean(axis=1, keepdims=True) - 1e-6)
        np.testing.assert_allclose(grey.patches(corners, 20), expected, atol=1)


def test_grey_images_are_three_times_the_same_where_colours_are_wanted(real_data: Path) -> None:
    path = next((real_data / "cxr_nih1024" / "Pneumonia").glob("*.jpg"))
    with open_big(path, 3) as big, open_big(path, 1) as grey:
        corners = np.array([[0, 0], [974, 974]])
        patches = big.patches(corners, 50)
        for channel in range(3):
            np.testing.assert_array_equal(patches[:, channel], grey.patches(corners, 50)[:, 0])


def test_a_real_slide_is_cut_as_openslide_cuts_it(real_data: Path) -> None:
    from openslide import OpenSlide

    path = real_data / "pathology" / "cmu-1-small-region.svs"
    corners = np.array([[0, 0], [2917, 2170], [1000, 217], [1001, 217]])
    with open_big(path, 3) as big, OpenSlide(path) as slide:
        assert (big.height, big.width) == (2967, 2220)
        expected = [np.asarray(slide.read_region((x, y), 0, (50, 50)).convert("RGB")) for y, x in corners.tolist()]
        np.testing.assert_array_equal(big.patches(corners, 50), np.moveaxis(np.array(expected), -1, 1))
        small, thumbnail = big.reduced(96, 72), np.asarray(slide.get_thumbnail((72, 96)).convert("RGB"))
        assert np.abs(small.mean((1, 2)) - thumbnail.mean((0, 1))).max() < 2


def test_what_is_small_is_read_from_the_smallest_copy_that_is_large_enough(tmp_path: Path) -> None:
    tile = {"tile": (32, 32), "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(np.full((512, 512), 10, np.uint8), subifds=2, **tile)
        writer.write(np.full((256, 256), 20, np.uint8), subfiletype=1, **tile)
        writer.write(np.full((128, 128), 30, np.uint8), subfiletype=1, **tile)
    with open_big(tmp_path / "a.ome.tif", 1) as big:
        assert [int(big.reduced(side, side)[0, 0, 0]) for side in (64, 128, 129, 257)] == [30, 30, 20, 10]
        assert big.patches(np.array([[0, 0]]), 4).max() == 10


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_values_are_scaled_between_their_own_percentiles(tmp_path: Path, dtype: Any) -> None:
    values = np.random.default_rng(1).normal(20_000, 1000, (200, 200)).astype(dtype)
    values[0, 0] = 60_000  # one hot pixel that must not make all others dark
    tifffile.imwrite(tmp_path / "a.tif", values)
    with open_big(tmp_path / "a.tif", 1) as big:
        whole = big.patches(np.array([[0, 0]]), 200)[0, 0].astype(float)
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(whole, expected, atol=2)


def test_pixels_that_are_no_numbers_come_out_black_and_an_image_of_them_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(0, 1, (64, 64)).astype(np.float32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "some.tif", values)
    with open_big(tmp_path / "some.tif", 1) as big:
        whole = big.patches(np.array([[0, 0]]), 64)[0, 0]
    assert (whole[3, 4], whole[5, 6]) == (0, 255)
    tifffile.imwrite(tmp_path / "all.tif", np.full((64, 64), np.nan, np.float32))
    with (
        pytest.raises(ImageError, match=r"^all.tif: found no number among its pixels"),
        open_big(tmp_path / "all.tif", 1),
    ):
        pass


def test_bands_that_are_no_colours_and_stacks_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bands.ome.tif", np.zeros((4, 32, 32), np.uint8), metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "stack.ome.tif", np.zeros((4, 32, 32), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(ImageError, match="found 4 bands; expected red"), open_big(tmp_path / "bands.ome.tif", 3):
        pass
    with pytest.raises(ImageError, match="found 4 slices; expected one"), open_big(tmp_path / "stack.ome.tif", 1):
        pass


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9])
def test_an_unreadable_slide_is_an_image_error_with_its_name(real_data: Path, tmp_path: Path, kept: float) -> None:
    data = (real_data / "pathology" / "cmu-1-small-region.svs").read_bytes()
    (tmp_path / "broken.svs").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=r"^broken.svs: "), open_big(tmp_path / "broken.svs", 3) as big:
        big.reduced(8, 8)


PEAK_MB = 150  # of which the interpreter with its libraries takes 80
READ = """
import sys
from pathlib import Path
import numpy as np
from agent_trainer.patches import open_big

with open_big(Path(sys.argv[1]), 3) as big:
    corners = np.random.default_rng(0).integers(0, (big.height - 50, big.width - 50), (20, 2))
    assert big.patches(corners, 50).shape == (20, 3, 50, 50)
    assert big.reduced(64, 64).max() == 7
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(big.height * big.width * 3, int(peak.split()[1]) // 1024)
"""


@pytest.mark.parametrize("copies", [True, False])
def test_a_large_slide_never_enters_memory(tmp_path: Path, copies: bool) -> None:
    side = 14_336 if copies else 7168  # 617 MB and 154 MB of pixels; without copies all of them stream by
    blank = np.full((512, 512, 3), 7, np.uint8)
    tile = {"tile": (512, 512), "photometric": "rgb", "compression": "zstd", "dtype": np.uint8, "buffersize": 1 << 24}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", bigtiff=True) as writer:
        for place, level in enumerate((side, side // 16) if copies else (side,)):
            tiles = (blank for _ in range((-(-level // 512)) ** 2))
            about = {"subifds": 1} if copies and not place else {"subfiletype": place}
            writer.write(tiles, shape=(level, level, 3), **about, **tile)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.ome.tif")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    size, peak = map(int, done.stdout.split())
    assert size == side * side * 3
    assert peak < PEAK_MB
