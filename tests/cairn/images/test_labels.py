"""Label images: whole or not at all, every level the nearest neighbour of the one before."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn.errors import ImageError, StorageFull
from cairn.images import find_images, open_image
from cairn.images.labels import LabelWriter, explained

NAMES = ("background", "tumour", "immune")


def labels_of(depth: int, height: int, width: int) -> Any:
    return np.random.default_rng(5).integers(0, 3, (depth, height, width), np.uint8)


def write(path: Path, labels: Any, tile: int = 300, **about: Any) -> None:
    depth, height, width = labels.shape
    with LabelWriter(path, height, width, depth=depth, names=NAMES, **about) as writer:
        for z in range(depth):
            for y in range(0, height, tile):
                for x in range(0, width, tile):
                    writer.write(y, x, labels[z, y : y + tile, x : x + tile], z)


class Stop(Exception):
    """What ends a block early."""


@contextmanager
def stopped() -> Iterator[None]:
    with pytest.raises(Stop):
        yield


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the system refuse to grow any file of this process beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
@pytest.mark.parametrize("shape", [(1, 1300, 1700), (3, 700, 30), (1, 1, 1), (1, 512, 1024)])
def test_our_reader_reads_what_was_written(
    tmp_path: Path, read: Callable[..., Any], name: str, shape: tuple[int, int, int]
) -> None:
    labels = labels_of(*shape)
    write(tmp_path / name, labels, pixel_size_um=0.5)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source)[:, 0], labels)
    with open_image(source) as image:
        assert image.pixel_size_um == 0.5
        assert image.dtype == np.uint8


def test_tifffile_sees_a_tiled_pyramid_of_nearest_neighbours(tmp_path: Path) -> None:
    labels = labels_of(1, 1301, 2100)
    write(tmp_path / "a.ome.tif", labels, pixel_size_um=0.5)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.is_ome
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(1301, 2100), (651, 1050), (326, 525), (163, 263)]
        for number, level in enumerate(levels):
            np.testing.assert_array_equal(level.asarray(), labels[0, :: 2**number, :: 2**number])
            page = level.pages[0].keyframe
            assert page.is_tiled
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert page.is_reduced == (number > 0)
        assert len(tiff.pages) == 1  # the levels are sub-directories


def test_names_and_colours_are_in_the_metadata(tmp_path: Path) -> None:
    write(tmp_path / "a.ome.tif", labels_of(1, 20, 30), colours=("#000000", "#ff0080", "#0000ff"))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        page = tiff.pages[0]
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        assert (page.colormap[:, 1] // 257).tolist() == [255, 0, 128]
        text = tiff.ome_metadata or ""
    assert '<M K="label 1">tumour</M>' in text
    assert '<M K="colour 1">#ff0080</M>' in text
    write(tmp_path / "a.zarr", labels_of(1, 20, 30), colours=("#000000", "#ff0080", "#0000ff"))
    about = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["image-label"]
    assert about["properties"][1] == {"label-value": 1, "name": "tumour"}
    assert about["colors"][1] == {"label-value": 1, "rgba": [255, 0, 128, 255]}


def test_zarr_levels_are_nearest_neighbours_and_declared(tmp_path: Path) -> None:
    labels = labels_of(2, 1301, 600)
    write(tmp_path / "a.ome.zarr", labels, pixel_size_um=0.25)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    (scales,) = group.attrs["multiscales"]
    assert scales["version"] == "0.4"
    for number, dataset in enumerate(scales["datasets"]):
        assert dataset["coordinateTransformations"][0]["scale"] == [1.0, 0.25 * 2**number, 0.25 * 2**number]
        array = group[dataset["path"]]
        np.testing.assert_array_equal(array[:], labels[:, :: 2**number, :: 2**number])
    assert array.shape == (2, 326, 150)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_pixels_never_written_are_background(tmp_path: Path, read: Callable[..., Any], name: str) -> None:
    with LabelWriter(tmp_path / name, 600, 600, names=NAMES) as writer:
        writer.write(590, 590, np.ones((10, 10), np.uint8))
    (source,) = find_images(tmp_path)
    values = read(source)[0, 0]
    assert values.sum() == 100
    assert values[590:, 590:].all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 60), width=st.integers(1, 60), tile=st.integers(1, 70))
def test_tiles_of_any_size_make_the_same_image(
    tmp_path: Path, read: Callable[..., Any], height: int, width: int, tile: int
) -> None:
    labels = labels_of(1, height, width)
    write(tmp_path / "a.ome.tif", labels, tile)
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source)[:, 0], labels)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_an_exception_leaves_nothing(tmp_path: Path, name: str) -> None:
    with stopped(), LabelWriter(tmp_path / name, 100, 100) as writer:
        writer.write(0, 0, np.zeros((10, 10), np.uint8))
        raise Stop
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_an_exception_leaves_the_old_image_and_a_good_end_replaces_it(
    tmp_path: Path, read: Callable[..., Any], name: str
) -> None:
    old, new = labels_of(1, 40, 40), labels_of(1, 50, 50)
    write(tmp_path / name, old)
    with stopped(), LabelWriter(tmp_path / name, 50, 50):
        raise Stop
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source)[:, 0], old)
    write(tmp_path / name, new)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read(source)[:, 0], new)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_a_disk_that_takes_no_more_leaves_nothing_and_says_so(tmp_path: Path, name: str) -> None:
    labels = labels_of(1, 2000, 2000)
    writer = LabelWriter(tmp_path / name, 2000, 2000, names=NAMES).__enter__()
    writer.write(0, 0, labels[0])
    said = rf"{name}: the label image cannot be written \(File too large\)"
    with pytest.raises(ImageError, match=said), file_size_limit(20_000):
        writer.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_as_such() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(StorageFull, match=r"a\.tif: no room for the label image"),
        explained(Path("x/a.tif")),
    ):
        full.write(b"labels")


@pytest.mark.parametrize(
    ("y", "x", "tile"),
    [
        (0, 0, np.zeros((11, 3), np.uint8)),
        (8, 0, np.zeros((3, 3), np.uint8)),
        (-1, 0, np.zeros((3, 3), np.uint8)),
        (0, 8, np.zeros((3, 3), np.uint8)),
        (0, 0, np.zeros((3, 3), np.int64)),
        (0, 0, np.zeros(3, np.uint8)),
        (0, 0, np.full((3, 3), 3, np.uint8)),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tmp_path: Path, y: int, x: int, tile: Any) -> None:
    with pytest.raises(ImageError, match=r"a.ome.tif: "), LabelWriter(tmp_path / "a.ome.tif", 10, 10, names=NAMES) as w:
        w.write(y, x, tile)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file or directory"), LabelWriter(tmp_path / "x" / "a.tif", 10, 10):
        pass
    with pytest.raises(ImageError, match="at least one pixel"):
        LabelWriter(tmp_path / "a.tif", 0, 10)
    with pytest.raises(ImageError, match="1 to 256 names"):
        LabelWriter(tmp_path / "a.tif", 10, 10, names=("a",) * 257)


WRITE_LARGE = """
import sys
from pathlib import Path
import numpy as np
from cairn.images.labels import LabelWriter

tile = np.ones((1000, 2000), np.uint8)
with LabelWriter(Path(sys.argv[1]), 20_000, 30_000, names=("a", "b")) as writer:
    for y in range(0, 20_000, 1000):
        for x in range(0, 30_000, 2000):
            writer.write(y, x, tile)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_600_megapixels_are_written_within_300_megabytes(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_LARGE, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        assert (image.height, image.width) == (20_000, 30_000)
        assert next(image.tiles(image.bands)).values.all()
