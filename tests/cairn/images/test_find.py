"""What counts as an image under a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image as Pillow
from pydicom.uid import generate_uid

from cairn.errors import ImageError
from cairn.images import find_images


def found(folder: Path) -> list[tuple[str, str]]:
    return [(source.id, source.format) for source in find_images(folder)]


def grey(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.ones((8, 8), np.uint8))


def test_every_form_is_found_as_one_image(make: Callable[..., Any], form_name: str) -> None:
    made = make(form_name)
    (source,) = find_images(made.folder)
    assert source.raw_bytes == sum(path.stat().st_size for path in made.files())


def test_images_are_found_in_subfolders_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/z/1.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("L", (4, 4)).save(tmp_path / name)
    assert found(tmp_path) == [("a/z/1.png", "raster"), ("b/2.png", "raster"), ("c.png", "raster")]


def test_other_hidden_and_temporary_files_are_passed_over(tmp_path: Path) -> None:
    names = ("README.md", "cells.csv", "a.xml", ".a.png", "~a.png", "a.png~", "a.tif.part", "a.tif.tmp", "noending")
    for name in names:
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / ".trash").mkdir()
    Pillow.new("L", (4, 4)).save(tmp_path / ".trash" / "a.png")
    assert found(tmp_path) == []


def test_a_folder_of_single_channel_tiffs_is_one_image(tmp_path: Path) -> None:
    for name in ("p1/TIFs/CD3.tif", "p1/TIFs/CD4.tif", "p2/CD3.tif", "p2/CD4.tiff"):
        grey(tmp_path / name)
    assert found(tmp_path) == [("p1/TIFs", "tiff-folder"), ("p2", "tiff-folder")]


def test_the_folder_itself_can_be_the_image(tmp_path: Path) -> None:
    grey(tmp_path / "site" / "CD3.tif")
    grey(tmp_path / "site" / "CD4.tif")
    assert found(tmp_path / "site") == [("site", "tiff-folder")]


def test_a_single_grey_tiff_and_stacks_are_images_of_their_own(tmp_path: Path) -> None:
    grey(tmp_path / "a" / "one.tif")
    for name in ("x.tif", "y.tif"):
        tifffile.imwrite(tmp_path / name, np.ones((3, 8, 8), np.uint8), photometric="minisblack")
    assert found(tmp_path) == [("a/one.tif", "tiff"), ("x.tif", "tiff"), ("y.tif", "tiff")]


def test_ome_tiffs_of_one_channel_are_not_put_together(tmp_path: Path) -> None:
    for name in ("x.ome.tif", "y.ome.tif"):
        grey(tmp_path / name)
    assert found(tmp_path) == [("x.ome.tif", "tiff"), ("y.ome.tif", "tiff")]


def test_dicom_files_without_an_ending_are_found_by_their_content(make: Callable[..., Any]) -> None:
    made = make("dicom")
    for i, path in enumerate(made.files()):
        path.rename(path.with_name(f"1.2.840.{i}"))
    assert found(made.folder) == [("scan/1.2.840.0", "dicom")]


def test_two_series_in_a_folder_are_two_images_and_a_later_one_renames_none(make: Callable[..., Any]) -> None:
    made = make("dicom")
    before = found(made.folder)
    other = generate_uid()
    for path in made.files():
        one = pydicom.dcmread(path)
        one.SeriesInstanceUID = other
        one.save_as(path.with_name(f"A{path.name}"))
    after = found(made.folder)
    assert len(after) == 2
    assert before[0] in after


def test_a_dicom_report_is_no_image(make: Callable[..., Any]) -> None:
    made = make("dicom")
    one = pydicom.dcmread(made.files()[0])
    del one.Rows, one.PixelData
    one.SeriesInstanceUID = generate_uid()
    one.save_as(made.folder / "scan" / "report.dcm")
    assert len(found(made.folder)) == 1


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    Pillow.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert found(tmp_path) == [("a.png", "raster")]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    Pillow.new("L", (4, 4)).save(tmp_path / "store" / "a.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "day1").symlink_to(tmp_path / "store")
    assert found(tmp_path / "site") == [("day1/a.png", "raster")]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="images: is no folder"):
        find_images(tmp_path / "images")


def test_the_stamp_changes_when_any_file_does(make: Callable[..., Any], form_name: str) -> None:
    import os

    made = make(form_name)
    source = made.source
    before = source.stamp()
    assert source.stamp() == before
    path = made.files()[-1]
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1_000_000_000))  # put back an older file
    assert source.stamp() != before
    assert source.stamp()[0] == before[0]
    with path.open("ab") as file:
        file.write(b"x")
    assert source.stamp()[0] == before[0] + 1


def test_the_stamp_of_a_vanished_file_is_refused(make: Callable[..., Any]) -> None:
    made = make("png")
    source = made.source
    made.files()[0].unlink()
    with pytest.raises(ImageError, match="no such file any more"):
        source.stamp()
