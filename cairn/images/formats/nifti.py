"""NIfTI volumes (.nii, .nii.gz): the axes are columns, rows, slices and, if there are four, bands."""

import gzip
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder

from cairn.errors import ImageError
from cairn.images.image import Image, Opening, Values, Window
from cairn.images.reading import explained, unpacking
from cairn.images.source import ImageSource

NOT_NIFTI = "is not NIfTI, its header cannot be read; expected the file to be what its suffix says"
SPARE_BYTES = 16 << 20  # extensions and padding after the pixels
CLASSES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # by the header's own size, its first field
MICROMETRES = {"meter": 1e6, "mm": 1e3, "micron": 1.0, "unknown": 1e3}  # the standard's default is mm


@contextmanager
def open_nifti(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open a NIfTI file; a compressed one is unpacked to a temporary file, which also checks its checksum.

    The file's slope and intercept are applied: values are float64 then. Raises ImageError.
    """
    _ = how
    name, path = source.name, source.paths[0]
    with ExitStack() as stack:
        with explained(name):
            file: BinaryIO = stack.enter_context(path.open("rb"))
        if path.suffix.lower() == ".gz":
            with unpacking(name):
                file = stack.enter_context(unpacked(file, name))
        with explained(name, NOT_NIFTI):
            volume = volume_of(file)
        shape, stored = volume.shape, np.dtype(volume.get_data_dtype())
        if not 2 <= len(shape) <= 4:
            raise ImageError(f"{name}: found {len(shape)} axes; expected 2 to 4 (columns, rows, slices, bands)")
        if stored.kind not in "uif":
            raise ImageError(f"{name}: found values of type {stored}; expected real numbers of 8 to 64 bits")
        width, height, depth, bands = (*shape, 1, 1)[:4]
        if (found := file.seek(0, 2)) < end_of(volume):
            raise ImageError(f"{name}: truncated, found {found} bytes of {end_of(volume)}; copy or export it again")
        dtype = stored.newbyteorder("=") if scaling(volume) == (1.0, 0.0) else np.dtype(np.float64)

        def read(wanted: Sequence[int], at: Window) -> Values:
            out = np.empty((len(wanted), at.h, at.w), dtype)
            for slot, band in enumerate(wanted):
                rest = (at.z, band)[: len(shape) - 2]
                out[slot] = volume.dataobj[(slice(at.x, at.x + at.w), slice(at.y, at.y + at.h), *rest)].T
            return out

        zooms = volume.header.get_zooms()
        unit = MICROMETRES.get(volume.header.get_xyzt_units()[0])
        square = unit is not None and zooms[0] > 0 and abs(zooms[0] - zooms[1]) <= 0.01 * zooms[0]
        yield Image(
            name=name,
            bands=tuple(str(i) for i in range(bands)),
            depth=depth,
            height=height,
            width=width,
            dtype=dtype,
            pixel_size_um=float(zooms[0]) * unit if unit and square else None,
            spacing_um=spacing_of(zooms, unit),
            chunk=(1, width),
            read=read,
        )


def spacing_of(zooms: Sequence[float], unit: float | None) -> tuple[float, float, float] | None:
    """Return the distance of slices, rows and columns in µm; None for a plane, or where a distance is missing."""
    if len(zooms) < 3 or unit is None or not all(math.isfinite(side) and side > 0 for side in zooms[:3]):
        return None
    return float(zooms[2]) * unit, float(zooms[1]) * unit, float(zooms[0]) * unit


def volume_of(file: BinaryIO) -> Any:
    """Read a header of either version; the pixels stay in the file."""
    file.seek(0)
    size = file.read(4)
    file.seek(0)
    cls = CLASSES.get(int.from_bytes(size, "little")) or CLASSES[int.from_bytes(size, "big")]
    holder = FileHolder(fileobj=file)
    volume = cls.from_file_map({"header": holder, "image": holder}, mmap=False)
    if volume.header["magic"] not in (b"n+1", b"n+2"):
        raise ImageError("pixels in another file")
    return volume


def scaling(volume: Any) -> tuple[float, float]:
    """Return the slope and intercept that reading applies."""
    return float(volume.dataobj.slope), float(volume.dataobj.inter)


@contextmanager
def unpacked(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Unpack a compressed volume to a temporary file; not more than its header announces. Raises ImageError."""
    limit = 0
    with tempfile.TemporaryFile() as scratch, gzip.GzipFile(fileobj=file) as stream:
        while True:
            with explained(name, "corrupt or truncated, it cannot be unpacked; copy or export it again"):
                piece = stream.read(1 << 20)
            if not piece:
                break
            with unpacking(name):
                scratch.write(piece)
                scratch.flush()
            if not limit:
                with explained(name, NOT_NIFTI):
                    limit = end_of(volume_of(scratch)) + SPARE_BYTES
                scratch.seek(0, 2)
            if scratch.tell() > limit:
                raise ImageError(f"{name}: corrupt, it unpacks to more than its header announces; export it again")
        scratch.seek(0)
        yield scratch


def end_of(volume: Any) -> int:
    """Return where the pixels end in the unpacked file."""
    return int(volume.dataobj.offset + math.prod(volume.shape) * volume.get_data_dtype().itemsize)
