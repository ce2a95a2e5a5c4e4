"""The smaller copies of an image that its file holds, by format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from cairn.errors import ImageError
from cairn.images import Image, ImageSource, find_image, find_images, open_image
from cairn.images.image import Window

COLOURS = np.random.default_rng(1).integers(0, 256, (320, 256, 3), np.uint8)
PLANES = np.random.default_rng(2).integers(0, 999, (2, 320, 256), np.uint16)


def values_of(image: Image) -> npt.NDArray[Any]:
    return image.read(range(len(image.bands)), Window(0, 0, 0, image.height, image.width))


def ome_colours(folder: Path) -> list[npt.NDArray[Any]]:
    tile = {"photometric": "rgb", "tile": (32, 32), "compression": "zstd"}
    with tifffile.TiffWriter(folder / "a.ome.tif") as writer:
        writer.write(COLOURS, subifds=2, metadata={"axes": "YXS"}, **tile)
        writer.write(COLOURS[::2, ::2], subfiletype=1, **tile)
        writer.write(COLOURS[::4, ::4], subfiletype=1, **tile)
    return [np.moveaxis(COLOURS[::step, ::step], -1, 0) for step in (2, 4)]


def ome_bands(folder: Path) -> list[npt.NDArray[Any]]:
    tile = {"photometric": "minisblack", "tile": (32, 32)}
    with tifffile.TiffWriter(folder / "a.ome.tif") as writer:
        writer.write(PLANES, subifds=1, metadata={"axes": "CYX", "Channel": {"Name": ["DNA", "CD45"]}}, **tile)
        writer.write(PLANES[:, ::2, ::2], subfiletype=1, **tile)
    return [PLANES[:, ::2, ::2]]


def svs(folder: Path) -> list[npt.NDArray[Any]]:
    """Aperio's order: the image, a thumbnail in strips, a smaller copy in tiles, label and macro in strips."""
    about = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(folder / "a.svs") as writer:
        writer.write(COLOURS, tile=(32, 32), description="Aperio Image Library |MPP = 0.5", **about)
        writer.write(COLOURS[::8, ::8], description="Aperio thumbnail", **about)
        writer.write(COLOURS[::4, ::4], tile=(32, 32), description="Aperio smaller", **about)
        writer.write(COLOURS[:100, :80], subfiletype=1, description="Aperio label", **about)
        writer.write(COLOURS[:50, :200], subfiletype=9, description="Aperio macro", **about)
    return [np.moveaxis(COLOURS[::step, ::step], -1, 0) for step in (4, 8)]


def qptiff(folder: Path) -> list[npt.NDArray[Any]]:
    def text(kind: str, name: str) -> str:
        head = "<PerkinElmer-QPI-ImageDescription>"
        return f"{head}<ImageType>{kind}</ImageType><Name>{name}</Name></PerkinElmer-QPI-ImageDescription>"

    with tifffile.TiffWriter(folder / "a.qptiff") as writer:
        for step, kind in ((1, "FullResolution"), (2, "ReducedResolution")):
            for name, plane in zip("ab", PLANES, strict=True):
                writer.write(plane[::step, ::step], tile=(32, 32), description=text(kind, name), metadata=None)
    return [PLANES[:, ::2, ::2]]


def ome_zarr(folder: Path) -> list[npt.NDArray[Any]]:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    datasets = [{"path": str(level)} for level in range(3)]
    group.attrs["multiscales"] = [{"axes": [{"name": axis} for axis in "cyx"], "datasets": datasets}]
    levels = [PLANES[:, :: 2**level, :: 2**level] for level in range(3)]
    for level, values in enumerate(levels):
        group.create_array(str(level), shape=values.shape, chunks=(1, 64, 64), dtype=values.dtype)[:] = values
    return levels[1:]


@pytest.mark.parametrize("write", [ome_colours, ome_bands, svs, qptiff, ome_zarr])
def test_smaller_copies_come_largest_first_with_the_values_that_were_written(
    tmp_path: Path, write: Callable[[Path], list[npt.NDArray[Any]]]
) -> None:
    expected = write(tmp_path)
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        levels = image.levels()
        assert [level.bands for level in levels] == [image.bands] * len(expected)
        for level, values in zip(levels, expected, strict=True):
            assert (level.height, level.width) == values.shape[1:]
            np.testing.assert_array_equal(values_of(level), values)
        assert (image.height, image.width) == (320, 256)


def test_openslide_gives_the_levels_of_its_pyramid(tmp_path: Path) -> None:
    about = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
    flat = np.repeat(np.repeat(COLOURS[::16, ::16], 16, axis=0), 16, axis=1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(flat, **about)
        writer.write(flat[::4, ::4], subfiletype=1, **about)
    with open_image(ImageSource("a.tif", (tmp_path / "a.tif",), "slide")) as image:
        (level,) = image.levels()
        np.testing.assert_array_equal(np.moveaxis(values_of(level), 0, -1), flat[::4, ::4])


def test_an_image_without_smaller_copies_has_no_levels(tmp_path: Path, real_data: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANES, photometric="minisblack")
    for path in (tmp_path / "a.ome.tif", next((real_data / "bccd").glob("*.jpg"))):
        with open_image(find_image(path)) as image:
            assert image.levels() == ()


def test_a_real_slide_has_its_thumbnail_and_neither_label_nor_macro(real_data: Path) -> None:
    with open_image(find_image(real_data / "pathology" / "cmu-1-small-region.svs")) as image:
        (level,) = image.levels()
        assert (level.height, level.width) == (768, 574)
        whole, small = values_of(image).mean(axis=(1, 2)), values_of(level).mean(axis=(1, 2))
        np.testing.assert_allclose(small, whole, atol=2)


def test_one_path_names_its_image(tmp_path: Path) -> None:
    for name in ("DNA.tif", "CD45.tif"):
        (tmp_path / "Point1").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "Point1" / name, PLANES[0])
    ome_zarr(tmp_path)
    assert find_image(tmp_path / "Point1").format == "tiff-folder"
    assert find_image(tmp_path / "Point1" / "DNA.tif").format == "tiff"
    assert find_image(tmp_path / "a.zarr") == ImageSource("a.zarr", (tmp_path / "a.zarr",), "zarr")


@pytest.mark.parametrize("name", ["notes.txt", "nothing.ome.tif", "empty"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=f"^{name}: is no image; expected"):
        find_image(tmp_path / name)
