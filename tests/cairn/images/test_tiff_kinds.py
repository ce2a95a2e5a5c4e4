"""What TIFFs say of themselves: names, slices, pixel sizes, in each writer's own way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cairn.errors import ImageError
from cairn.images import find_images, open_image

PLANES = np.random.default_rng(1).integers(0, 255, (6, 20, 30), np.uint8)


def bands_of(folder: Path) -> tuple[str, ...]:
    (source,) = find_images(folder)
    with open_image(source) as image:
        return image.bands


def ome_text(pixels: str, inside: str) -> str:
    about = 'SizeX="30" SizeY="20" SizeT="1" Type="uint8"'
    return f'<?xml version="1.0"?><OME><Image><Pixels {about} {pixels}>{inside}</Pixels></Image></OME>'


def write_ome(folder: Path, text: str, pages: Any = PLANES) -> None:
    with tifffile.TiffWriter(folder / "a.ome.tif") as writer:
        for i, page in enumerate(pages):
            writer.write(page, description=text.encode() if i == 0 else None, metadata=None)


@pytest.mark.parametrize(
    ("order", "expected"), [("XYCZT", [[0, 1], [2, 3], [4, 5]]), ("XYZCT", [[0, 3], [1, 4], [2, 5]])]
)
def test_the_order_of_dimensions_says_which_page_is_which(
    tmp_path: Path, read: Callable[..., Any], order: str, expected: list[list[int]]
) -> None:
    write_ome(tmp_path, ome_text(f'SizeC="2" SizeZ="3" DimensionOrder="{order}"', ""))
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source), PLANES[expected])
    assert bands_of(tmp_path) == ("0", "1")


def test_tiff_data_elements_may_name_pages_one_by_one(tmp_path: Path, read: Callable[..., Any]) -> None:
    data = "".join(f'<TiffData FirstC="{c}" FirstZ="0" IFD="{5 - c}" PlaneCount="1"/>' for c in range(6))
    channels = "".join(f'<Channel Name="m{c}" SamplesPerPixel="1"/>' for c in range(6))
    write_ome(tmp_path, ome_text('SizeC="6" SizeZ="1" DimensionOrder="XYCZT"', channels + data))
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source, ["m0", "m5"])[0], PLANES[[5, 0]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', 0.25),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="mm" PhysicalSizeY="500" PhysicalSizeYUnit="µm"', 500.0),
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.5"', None),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ("", None),
    ],
)
def test_the_pixel_size_is_in_micrometres_and_none_where_pixels_are_not_square(
    tmp_path: Path, size: str, expected: float | None
) -> None:
    write_ome(tmp_path, ome_text(f'SizeC="6" SizeZ="1" DimensionOrder="XYCZT" {size}', ""))
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        assert image.pixel_size_um == expected


def test_colours_in_an_ome_tiff_are_three_bands(tmp_path: Path, read: Callable[..., Any]) -> None:
    values = np.moveaxis(PLANES[:3], 0, -1)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, photometric="rgb", ome=True, metadata={"axes": "YXS"})
    (source,) = find_images(tmp_path)
    assert bands_of(tmp_path) == ("R", "G", "B")
    np.testing.assert_array_equal(read(source, ["B", "R"])[0], PLANES[[2, 0]])


def test_an_ome_tiff_over_several_files_is_refused(tmp_path: Path) -> None:
    data = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{c}.ome.tif">u</UUID></TiffData>'
        for c in (0, 1)
    )
    write_ome(tmp_path, ome_text('SizeC="2" SizeZ="1" DimensionOrder="XYCZT"', data))
    with pytest.raises(ImageError, match="its planes lie in several files"):
        bands_of(tmp_path)


def test_a_renamed_ome_tiff_is_read(tmp_path: Path) -> None:
    data = '<TiffData IFD="0" PlaneCount="6"><UUID FileName="old name.ome.tif">u</UUID></TiffData>'
    write_ome(tmp_path, ome_text('SizeC="6" SizeZ="1" DimensionOrder="XYCZT"', data))
    assert len(bands_of(tmp_path)) == 6


def akoya(name: str, marker: str, kind: str = "FullResolution") -> str:
    return (
        f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType><Name>{name}</Name>"
        f"<Biomarker>{marker}</Biomarker></PerkinElmer-QPI-ImageDescription>"
    )


def test_akoyas_dyes_name_the_bands_where_markers_do_not_tell_them_apart(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.qptiff") as writer:
        for i in range(3):
            writer.write(PLANES[i], description=akoya(f"Opal {i}", "CD3"), metadata=None)
    assert bands_of(tmp_path) == ("Opal 0", "Opal 1", "Opal 2")


def test_a_brightfield_qptiff_is_in_colour(tmp_path: Path, read: Callable[..., Any]) -> None:
    whole = np.moveaxis(PLANES[:3], 0, -1)
    with tifffile.TiffWriter(tmp_path / "a.qptiff") as writer:
        writer.write(whole, description=akoya("", ""), metadata=None, photometric="rgb")
        writer.write(whole[::2, ::2], description=akoya("", "", "Thumbnail"), metadata=None, photometric="rgb")
    (source,) = find_images(tmp_path)
    assert bands_of(tmp_path) == ("R", "G", "B")
    np.testing.assert_array_equal(read(source)[0], PLANES[:3])


def test_a_qptiff_without_full_resolution_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.qptiff", PLANES[0], description=akoya("a", "b", "Thumbnail"), metadata=None)
    with pytest.raises(ImageError, match="no page of full resolution"):
        bands_of(tmp_path)


def test_imagej_stacks_without_labels_are_numbered(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PLANES[:4].reshape(2, 2, 20, 30), imagej=True, metadata={"axes": "ZCYX"})
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        assert (image.bands, image.depth) == (("0", "1"), 2)


def test_imagej_time_series_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PLANES, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ImageError, match="found 6 time points; expected one"):
        bands_of(tmp_path)


def test_mibis_own_tiffs_are_named_by_their_targets(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tiff") as writer:
        for name, plane in zip(("CD3", "dsDNA"), PLANES, strict=False):
            writer.write(plane, description=f'{{"channel.target": "{name}", "mibi.run": "x"}}', metadata=None)
    assert bands_of(tmp_path) == ("CD3", "dsDNA")


def test_reduced_pages_are_no_bands(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PLANES[0], metadata=None)
        writer.write(PLANES[0, ::2, ::2], subfiletype=1, metadata=None)
    assert bands_of(tmp_path) == ("0",)


def test_pages_in_colour_are_slices(tmp_path: Path, read: Callable[..., Any]) -> None:
    whole = PLANES.reshape(2, 3, 20, 30).transpose(0, 2, 3, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in whole:
            writer.write(page, photometric="rgb", metadata=None)
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source), PLANES.reshape(2, 3, 20, 30))


def test_strips_and_tiles_left_out_of_a_sparse_file_are_zero(tmp_path: Path, read: Callable[..., Any]) -> None:
    tiles = [np.full((16, 16), 7, np.uint8), None, None, np.full((16, 16), 9, np.uint8)]
    options = {"shape": (32, 32), "dtype": np.uint8, "tile": (16, 16), "metadata": None}
    for compression in (None, "deflate"):
        tifffile.imwrite(tmp_path / "a.tif", iter(tiles), compression=compression, **options)
        (source,) = find_images(tmp_path)
        values = read(source)[0, 0]
        assert (values[:16, :16] == 7).all()
        assert (values[16:, 16:] == 9).all()
        assert not values[:16, 16:].any()
