"""How tiles lie over an image, how bands are found, and how large chunks go by way of a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.errors import ImageError
from cairn.images import Image, find_images, open_image
from cairn.images.image import TILE_BYTES, Values, Window, window_shape


def image_of(values: Values, chunk: tuple[int, int], **more: object) -> tuple[Image, list[Window]]:
    """Make an image of an array[z, band, y, x]; the list takes the windows that are read."""
    asked: list[Window] = []

    def read(bands: Sequence[int], at: Window) -> Values:
        asked.append(at)
        return np.ascontiguousarray(values[at.z][list(bands), at.y : at.y + at.h, at.x : at.x + at.w])

    bands = tuple(str(i) for i in range(values.shape[1]))
    depth, _, height, width = values.shape
    return Image("a", bands, height, width, values.dtype, chunk, read, depth=depth, **more), asked  # type: ignore[arg-type]


SIDES = st.integers(1, 40)


@settings(deadline=None)  # of a machine that others share
@given(image=st.tuples(st.integers(1, 3), SIDES, SIDES), chunk=st.tuples(SIDES, SIDES), size=st.integers(1, 60))
def test_every_pixel_comes_once_and_no_chunk_is_cut(
    image: tuple[int, int, int], chunk: tuple[int, int], size: int
) -> None:
    (depth, height, width), (rows, columns) = image, chunk
    values = np.arange(depth * 2 * height * width, dtype=np.int64).reshape(depth, 2, height, width)
    opened, asked = image_of(values, chunk)
    seen = np.zeros((depth, height, width), int)
    for tile in opened.tiles(["1", "0"], size):
        h, w = tile.values.shape[1:]
        window = np.s_[tile.y : tile.y + h, tile.x : tile.x + w]
        np.testing.assert_array_equal(tile.values, values[tile.z, ::-1][:, window[0], window[1]])
        seen[tile.z][window] += 1
    assert np.all(seen == 1)
    for at in asked:
        assert at.y % min(rows, height) == at.x % min(columns, width) == 0
        assert at.y + at.h == height or at.h % min(rows, height) == 0
        assert at.x + at.w == width or at.w % min(columns, width) == 0


@settings(deadline=None)  # of a machine that others share
@given(
    chunk=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    image=st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)),
    size=st.integers(1, 4096),
    pixel_bytes=st.integers(1, 1024),
)
def test_a_window_is_over_the_byte_limit_only_where_a_chunk_is(
    chunk: tuple[int, int], image: tuple[int, int], size: int, pixel_bytes: int
) -> None:
    rows, columns = window_shape(chunk, image, size, pixel_bytes)
    one = (min(chunk[0], image[0]), min(chunk[1], image[1]))
    assert rows % one[0] == 0
    assert columns % one[1] == 0 or columns == image[1]
    assert (rows, columns) <= (one[0], image[1]) or rows * columns <= size * size or columns == one[1]
    if one[0] * one[1] * pixel_bytes <= TILE_BYTES:
        assert rows * columns * pixel_bytes <= TILE_BYTES


@settings(deadline=None)  # of a machine that others share
@given(image=st.tuples(st.integers(1, 2), SIDES, SIDES), chunk=st.tuples(SIDES, SIDES), size=st.integers(1, 60))
def test_the_way_by_a_file_gives_the_same_pixels(
    image: tuple[int, int, int], chunk: tuple[int, int], size: int
) -> None:
    depth, height, width = image
    values = np.arange(depth * 3 * height * width, dtype=np.uint16).reshape(depth, 3, height, width)
    opened, asked = image_of(values, chunk)
    out = np.zeros_like(values)
    for tile in opened._spooled([2, 0, 1], size):
        h, w = tile.values.shape[1:]
        out[tile.z, [2, 0, 1], tile.y : tile.y + h, tile.x : tile.x + w] = tile.values
    np.testing.assert_array_equal(out, values)
    assert sum(at.h * at.w for at in asked) == 3 * depth * height * width


@pytest.mark.parametrize("readers", [0, 2])
def test_pages_in_one_large_strip_each_go_by_way_of_a_file(tmp_path: Path, readers: int) -> None:
    values = np.zeros((5, 3000, 3000), np.uint16)  # 18 MB a strip, 90 MB in all
    values[:, ::7, ::5] = np.arange(1, 6)[:, None, None]
    options = {"photometric": "minisblack", "compression": "zstd", "rowsperstrip": 3000}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        assert image.chunk == (3000, 3000)
        seen = 0
        for tile in image.tiles(image.bands, readers=readers):
            h, w = tile.values.shape[1:]
            assert tile.values.nbytes < 5 << 20
            np.testing.assert_array_equal(tile.values, values[:, tile.y : tile.y + h, tile.x : tile.x + w])
            seen += h * w
    assert seen == 9_000_000


def test_no_room_to_unpack_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    image, _ = image_of(np.zeros((1, 2, 3000, 3000), np.uint64), (3000, 3000))
    with pytest.raises(ImageError, match="a: cannot be unpacked to the temporary folder"):
        next(image.tiles(["0", "1"]))


def four_bands(names: tuple[str, ...] = ("DNA", "CD3", "CD45", "CD3")) -> Image:
    image, _ = image_of(np.zeros((1, 4, 2, 2), np.uint8), (1, 2))
    return Image("a.tif", names, 2, 2, image.dtype, (1, 2), image.read)


def test_a_mapping_finds_bands_by_the_sites_names_and_indices() -> None:
    image = four_bands()
    mapped = Image("a.tif", image.bands, 2, 2, image.dtype, (1, 2), image.read, mapping={"Nucleus": "DNA", "T": 3})
    assert mapped.indices(["T", "CD45", "Nucleus"]) == [3, 2, 0]


@pytest.mark.parametrize(
    ("mapping", "wanted", "says"),
    [
        ({}, "CD20", "a.tif: band CD20 is missing, it has DNA, CD3, CD45, CD3"),
        ({}, "CD-45", "did you mean CD45"),
        ({"B": "CD20"}, "B", "band B (mapped to CD20) is missing"),
        ({"B": 4}, "B", "band B is mapped to index 4, but it has DNA"),
        ({"B": -1}, "B", "band B is mapped to index -1"),
        ({}, "CD3", "2 bands are named CD3; map CD3 to an index"),
    ],
)
def test_a_band_that_cannot_be_found_is_explained(mapping: dict[str, str | int], wanted: str, says: str) -> None:
    image = four_bands()
    mapped = Image("a.tif", image.bands, 2, 2, image.dtype, (1, 2), image.read, mapping=mapping)
    with pytest.raises(ImageError) as caught:
        mapped.tiles([wanted])
    assert says in str(caught.value)


def test_open_image_takes_the_mapping(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint8), photometric="minisblack")
    (source,) = find_images(tmp_path)
    with open_image(source, {"CD45": "2", "DNA": 0}) as image:
        assert image.indices(["DNA", "CD45"]) == [0, 2]


def test_no_bands_or_no_size_is_refused() -> None:
    with pytest.raises(ImageError, match="asked for 0 bands"):
        four_bands().tiles([])
    with pytest.raises(ImageError, match="tiles of 0"):
        four_bands().tiles(["DNA"], 0)
