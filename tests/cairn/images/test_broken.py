"""Broken files: one ImageError of one sentence, never another exception, a warning or other pixels in silence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images import ImageSource, RawLayout, find_images, open_image

READ_ALL = """
import sys
from pathlib import Path
from cairn.errors import ImageError
from cairn.images import RawLayout, find_images, open_image

for source in find_images(Path(sys.argv[1])):
    try:
        with open_image(source, raw=RawLayout(70, 90, 3)) as image:
            for tile in image.tiles(image.bands):
                pass
    except ImageError as error:
        print(error)
"""


def problem(read: Callable[..., Any], source: ImageSource) -> str:
    """Return the message of the ImageError that reading raises."""
    with pytest.raises(ImageError) as caught:
        read(source)
    return str(caught.value)


def outcome(read: Callable[..., Any], source: ImageSource) -> tuple[Any, str]:
    """Return the values, or None and the message of the ImageError."""
    try:
        return read(source), ""
    except ImageError as error:
        return None, str(error)


def is_one_sentence_about(message: str, names: set[str]) -> bool:
    return any(message.startswith(f"{name}: ") for name in names) and "\n" not in message and "/" not in message


def pixel_files(made: Any) -> list[Path]:
    """Return the files that hold pixels: all but OME-Zarr's metadata."""
    return [path for path in made.files() if not path.name.startswith(".z") and path.name != "zarr.json"]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_truncated_file_is_refused(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make(form_name)
    source = made.source
    path = pixel_files(made)[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    values, message = outcome(read, source)
    if message:
        assert is_one_sentence_about(message, {source.name, path.name})
    else:
        # What was cut away was a smaller level of the pyramid or words about the image, no pixel.
        np.testing.assert_array_equal(values, made.values)
        assert form_name in {"ome-tiff-pyramid", "qptiff", "component-data"} or kept > 0.9
    assert capfd.readouterr().err == "", "libraries keep to themselves what they think of a broken file"


def test_a_file_short_of_its_last_pixels_is_refused(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str
) -> None:
    made = make(form_name)
    source = made.source
    if form_name in {"qptiff", "component-data", "ome-tiff-pyramid"}:
        pytest.skip("its last bytes are of a smaller level or thumbnail")
    path = pixel_files(made)[-1]
    path.write_bytes(path.read_bytes()[:-9])
    values, message = outcome(read, source)
    if message:
        assert is_one_sentence_about(message, {source.name, path.name})
    else:
        np.testing.assert_array_equal(values, made.values)


def test_an_empty_file_is_refused_as_such(make: Callable[..., Any], read: Callable[..., Any], form_name: str) -> None:
    made = make(form_name)
    source = made.source
    path = pixel_files(made)[-1]
    path.write_bytes(b"")
    message = problem(read, source)
    assert is_one_sentence_about(message, {source.name, path.name})
    assert "empty" in message or form_name.startswith("ome-zarr")


def test_text_under_an_images_name_is_refused(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str
) -> None:
    made = make(form_name)
    source = made.source
    path = pixel_files(made)[-1]
    path.write_bytes(b"patient,age\nJane Roe,47\n" * 40)
    message = problem(read, source)
    assert is_one_sentence_about(message, {source.name, path.name})
    assert "Jane" not in message


def test_a_vanished_file_is_refused(make: Callable[..., Any], read: Callable[..., Any], form_name: str) -> None:
    made = make(form_name)
    source = made.source
    for path in made.files():
        path.unlink()
    assert is_one_sentence_about(
        problem(read, source),
        {source.name, *(path.name for path in made.files())} | {path.name for path in source.paths},
    )


def test_flipped_bytes_raise_image_error_or_nothing_and_are_noticed_where_a_checksum_guards(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str
) -> None:
    made = make(form_name)
    source = made.source
    path = pixel_files(made)[-1]
    data = path.read_bytes()
    generator = np.random.default_rng(3)
    for at in generator.integers(0, len(data), 40):
        broken = bytearray(data)
        broken[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        values, message = outcome(read, source)
        if message:
            assert is_one_sentence_about(message, {source.name, path.name})
        elif made.form.checked and len(data) // 8 < at < len(data) // 2:  # surely pixels
            np.testing.assert_array_equal(values, made.values)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_tiffs_are_refused_by_their_type(tmp_path: Path, read: Callable[..., Any], dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), dtype))
    (source,) = find_images(tmp_path)
    message = problem(read, source)
    assert "complex" in message
    assert "expected real numbers" in message


def test_bit_images_are_refused_by_their_type(tmp_path: Path, read: Callable[..., Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), bool))
    (source,) = find_images(tmp_path)
    assert "expected real numbers" in problem(read, source)


def test_complex_nifti_is_refused_by_its_type(tmp_path: Path, read: Callable[..., Any]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "a.nii")
    (source,) = find_images(tmp_path)
    assert "complex64" in problem(read, source)


def test_zarr_of_strings_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["multiscales"] = [{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]
    group.create_array("0", shape=(4, 4), dtype="S5")
    (source,) = find_images(tmp_path)
    assert "expected real numbers" in problem(read, source)


def test_zarr_without_an_image_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    (source,) = find_images(tmp_path)
    assert "expected multiscales" in problem(read, source)


def test_cmyk_jpeg_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    Pillow.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    (source,) = find_images(tmp_path)
    assert "CMYK" in problem(read, source)


def test_a_png_under_a_jpegs_name_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    Pillow.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    (source,) = find_images(tmp_path)
    assert "found a PNG; expected a JPEG" in problem(read, source)


def test_a_raw_file_of_another_size_says_what_the_settings_expect(tmp_path: Path) -> None:
    (tmp_path / "a.fw").write_bytes(b"\0" * 100)
    (source,) = find_images(tmp_path)
    message = outcome(lambda one: open_image(one).__enter__(), source)[1]
    assert "found 100 bytes; expected 94456320 for 1344 × 1004 pixels of 35 bands" in message
    message = outcome(lambda one: open_image(one, raw=RawLayout(dtype="pixels")).__enter__(), source)[1]
    assert "write it as '<u2'" in message


def test_channels_of_another_size_in_a_folder_are_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    tifffile.imwrite(tmp_path / "CD3.tif", np.ones((8, 8), np.uint8))
    tifffile.imwrite(tmp_path / "CD4.tif", np.ones((9, 8), np.uint8))
    (source,) = find_images(tmp_path)
    assert "CD4.tif: found 8 × 9 uint8 beside CD3.tif" in problem(read, source)


def test_a_broken_channel_fails_its_folder_and_no_other(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("tiff-folder")
    (made.folder / "Point1" / "CD45.tif").write_bytes(b"II*\0")
    source = made.source
    assert source.format == "tiff-folder"
    assert problem(read, source).startswith("CD45.tif: ")


def test_pages_of_different_sizes_are_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.ones((8, 8), np.uint8), metadata=None)
        writer.write(np.ones((9, 9), np.uint8), metadata=None)
    (source,) = find_images(tmp_path)
    assert "found pages of 8 × 8 uint8 and of 9 × 9 uint8" in problem(read, source)


def test_directories_in_a_circle_are_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), np.uint8))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    link = first + 2 + 12 * entries
    data[link : link + 4] = data[4:8]
    (tmp_path / "a.tif").write_bytes(data)
    (source,) = find_images(tmp_path)
    assert "run in a circle" in problem(read, source)


def test_metadata_that_defines_entities_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    text = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaa">]><OME><Image/></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", np.ones((8, 8), np.uint8), description=text, metadata=None)
    (source,) = find_images(tmp_path)
    assert "defines entities" in problem(read, source)


def test_metadata_that_speaks_of_more_channels_than_there_are_pages_is_refused(
    tmp_path: Path, read: Callable[..., Any]
) -> None:
    text = (
        '<?xml version="1.0"?><OME><Image><Pixels DimensionOrder="XYCZT" SizeX="8" SizeY="8" SizeC="3" SizeZ="1" '
        'SizeT="1" Type="uint8"><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", np.ones((8, 8), np.uint8), description=text, metadata=None)
    (source,) = find_images(tmp_path)
    assert "speaks of 3 channels and 1 slices, but it has 1 pages" in problem(read, source)


def test_time_series_are_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.ones((2, 8, 8), np.uint8), ome=True, metadata={"axes": "TYX"})
    (source,) = find_images(tmp_path)
    assert "2 time points" in problem(read, source)


def test_slices_in_one_place_are_refused(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")
    path = made.files()[0]
    one = pydicom.dcmread(path)
    one.ImagePositionPatient = [0, 0, 0]
    one.save_as(path)
    assert "several slices in one place" in problem(read, made.source)


def test_a_picture_over_the_limit_is_refused_unread(tmp_path: Path, read: Callable[..., Any]) -> None:
    Pillow.new("L", (20_000, 7_000)).save(tmp_path / "a.png")
    (source,) = find_images(tmp_path)
    assert "expected at most 128 MiB" in problem(read, source)


@pytest.mark.parametrize(
    "form_name", ["ome-tiff-deflate", "dicom-jpeg2000", "dicom-slide", "nifti-gz", "png", "ome-zarr-0.5"]
)
@pytest.mark.parametrize("kept", [0.05, 0.7])
def test_a_broken_file_leaves_nothing_on_the_terminal_of_a_program(
    make: Callable[..., Any], form_name: str, kept: float
) -> None:
    made = make(form_name)
    path = pixel_files(made)[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(made.folder)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
