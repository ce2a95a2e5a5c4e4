"""DICOM files by series: what belongs together, told by the headers alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom

from cairn.errors import ImageError
from cairn.images.reading import explained

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # marks on another image, no image itself
TAGS = ["SOPClassUID", "SeriesInstanceUID", "Rows"]


def dicom_series(paths: Sequence[Path]) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Sort files of one folder into series: format, files in the order of their names.

    Reports, plans and segmentations are left out. A file that cannot be read stands for itself, so that it is seen.
    """
    series: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        try:
            with explained(path.name):
                head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
                kind, of = str(head.get("SOPClassUID", "")), str(head.get("SeriesInstanceUID", path.name))
        except ImageError:
            yield "dicom", (path,)
            continue
        if "Rows" in head and kind != SEGMENTATION:
            form = "dicom-slide" if kind == SLIDE else "dicom"
            series.setdefault((form, of), []).append(path)
    for (form, _), files in series.items():
        yield form, tuple(files)
