"""Volumes, raw files, pictures and OME-Zarr in the variants that hospitals have."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images import RawLayout, find_images, open_image

VALUES = np.random.default_rng(2).integers(-900, 900, (7, 6, 5), np.int16)  # columns, rows, slices


def save(path: Path, image: Any) -> None:
    nibabel.save(image, path)


def test_a_niftis_slope_and_intercept_are_applied(tmp_path: Path, read: Callable[..., Any]) -> None:
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    save(tmp_path / "a.nii.gz", image)
    (source,) = find_images(tmp_path)
    expected = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert expected.dtype == np.float64
    np.testing.assert_array_equal(read(source)[:, 0], expected.transpose(2, 1, 0))


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5), (7, 6, 5, 3)])
def test_the_fourth_axis_is_bands(tmp_path: Path, read: Callable[..., Any], shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save(tmp_path / "a.nii", nibabel.Nifti1Image(values, np.eye(4)))
    (source,) = find_images(tmp_path)
    whole = values.reshape((*shape, 1, 1)[:4])
    np.testing.assert_array_equal(read(source), whole.transpose(2, 3, 1, 0))


def test_nifti_2_and_the_other_byte_order_are_read(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "2").mkdir()
    save(tmp_path / "2" / "a.nii", nibabel.Nifti2Image(VALUES, np.eye(4)))
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    save(tmp_path / "b.nii", nibabel.Nifti1Image(VALUES, np.eye(4), header))
    for source in find_images(tmp_path):
        np.testing.assert_array_equal(read(source)[:, 0], VALUES.transpose(2, 1, 0))
    assert (tmp_path / "b.nii").read_bytes()[:4] == (348).to_bytes(4, "big")


def test_a_volume_of_five_axes_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    save(tmp_path / "a.nii", nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 2), np.float32), np.eye(4)))
    (source,) = find_images(tmp_path)
    with pytest.raises(ImageError, match="found 5 axes"):
        read(source)


def test_a_volume_that_unpacks_to_more_than_it_announces_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    save(tmp_path / "a.nii", nibabel.Nifti1Image(VALUES, np.eye(4)))
    data = (tmp_path / "a.nii").read_bytes() + bytes(40 << 20)
    (tmp_path / "a.nii").unlink()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data))
    (source,) = find_images(tmp_path)
    with pytest.raises(ImageError, match="unpacks to more than its header announces"):
        read(source)


def test_raw_files_may_be_planar_and_in_the_other_byte_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (4, 12, 10), np.uint16)
    (tmp_path / "a.fw").write_bytes(values.astype(">u2").tobytes())
    (source,) = find_images(tmp_path)
    with open_image(source, {"CD3": 2}, RawLayout(12, 10, 4, bands_last=False, dtype=">u2")) as image:
        (tile,) = image.tiles(["CD3", "0"])
        np.testing.assert_array_equal(tile.values, values[[2, 0]])
        assert tile.values.dtype == np.uint16
        assert tile.values.dtype.isnative


@pytest.mark.parametrize(
    ("mode", "bands"), [("1", ("grey",)), ("P", ("R", "G", "B")), ("LA", ("grey", "A")), ("RGBA", ("R", "G", "B", "A"))]
)
def test_pictures_of_other_colour_kinds_are_read(
    tmp_path: Path, read: Callable[..., Any], mode: str, bands: tuple[str, ...]
) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    picture = Pillow.fromarray(colours).convert(mode)
    picture.save(tmp_path / "a.png")
    (source,) = find_images(tmp_path)
    with open_image(source) as image:
        assert image.bands == bands
    expected = np.asarray(picture.convert({"1": "L", "P": "RGB"}.get(mode, mode))).reshape(9, 8, len(bands))
    np.testing.assert_array_equal(read(source)[0], np.moveaxis(expected, -1, 0))


def zarr_image(folder: Path, values: Any, axes: Any, version: int = 2, **options: Any) -> None:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=version)
    scales = {"datasets": [{"path": "0"}]} | ({"axes": axes} if axes else {})
    group.attrs.update({"multiscales": [scales]} if version == 2 else {"ome": {"multiscales": [scales]}})
    group.create_array("0", shape=values.shape, dtype=values.dtype, **options)[:] = values


CUBE = np.random.default_rng(0).integers(0, 65535, (3, 40, 50), np.uint16)


@pytest.mark.parametrize(
    ("axes", "whole", "chunks"),
    [
        (["c", "y", "x"], CUBE, (1, 16, 16)),
        (["y", "x", "c"], CUBE.transpose(1, 2, 0), (16, 16, 3)),
        (["c", "x", "y"], CUBE.transpose(0, 2, 1), (2, 16, 16)),
        (None, CUBE[None, :, None], (1, 1, 1, 16, 16)),
    ],
)
def test_zarr_axes_may_stand_in_any_order(
    tmp_path: Path, read: Callable[..., Any], axes: Any, whole: Any, chunks: tuple[int, ...]
) -> None:
    zarr_image(tmp_path, whole, axes, chunks=chunks)
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source)[0], CUBE)
    np.testing.assert_array_equal(read(source, ["2", "0"], size=20)[0], CUBE[[2, 0]])


def test_sharded_zarr_is_read(tmp_path: Path, read: Callable[..., Any]) -> None:
    axes = [{"name": axis} for axis in "cyx"]
    zarr_image(tmp_path, CUBE, axes, 3, chunks=(1, 8, 8), shards=(1, 32, 32))
    (source,) = find_images(tmp_path)
    np.testing.assert_array_equal(read(source)[0], CUBE)


def test_a_zarr_of_time_points_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    zarr_image(tmp_path, CUBE, ["t", "y", "x"])
    (source,) = find_images(tmp_path)
    with pytest.raises(ImageError, match="one time point at most"):
        read(source)


def test_a_niftis_spacing_is_that_of_slices_rows_and_columns(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, np.diag([0.5, 0.75, 3, 1]))
    image.header.set_xyzt_units("mm")
    save(tmp_path / "a.nii", image)
    with open_image(find_images(tmp_path)[0]) as opened:
        assert opened.spacing_um == pytest.approx((3000, 750, 500))
        assert opened.pixel_size_um is None
