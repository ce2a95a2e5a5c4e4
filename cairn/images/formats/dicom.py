"""DICOM series (CT, MR, radiographs): slices sorted by their position, in the units of the modality."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array

from cairn.errors import ImageError
from cairn.images.gpu_decoding import GpuDecoder, lossless
from cairn.images.image import CHUNK_BYTES, Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained
from cairn.images.source import ImageSource

# Lossless JPEG and JPEG-LS, for which pydicom has no decoder of its own. PS3.5 annex A.4
CODECS = {
    "1.2.840.10008.1.2.4.57": imagecodecs.jpeg_decode,
    "1.2.840.10008.1.2.4.70": imagecodecs.jpeg_decode,
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_decode,
}
# JPEG 2000 that is without loss by its name, plain and with high throughput: any decoder gives the same values.
LOSSLESS_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"}
BROKEN = "is not DICOM or its header is truncated; copy or export it again"


@dataclass(frozen=True)
class Slice:
    """One frame of one file: where it lies, and value = stored·slope + intercept (PS3.3 C.11.1)."""

    path: Path
    frame: int
    position: float | None
    number: int
    slope: float
    intercept: float


@contextmanager
def open_dicom(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open the files of a series. Raises ImageError.

    dtype is that stored where nothing is rescaled, int32 for whole slopes and intercepts, else float64. Grey values
    come as they are stored also where the display would invert them (MONOCHROME1).
    """
    name = source.name
    slices: list[Slice] = []
    first: Any = None
    for path in source.paths:
        with explained(path.name, BROKEN):
            head = pydicom.dcmread(path, stop_before_pixels=True)
            first = first or head
            check_alike(first, head, path.name)
            slices.extend(slices_of(head, path))
    with explained(name, BROKEN):
        slices = in_order(slices, name)
        stored = stored_dtype(first, name)
        samples = int(first.SamplesPerPixel)
        height, width = int(first.Rows), int(first.Columns)
        if height * width * samples * stored.itemsize > CHUNK_BYTES:
            raise ImageError(
                f"{name}: found slices of {width} × {height}; expected at most {CHUNK_BYTES >> 20} MiB each"
            )
        scales = {value for one in slices for value in (one.slope, one.intercept)}
        plain = all(one.slope == 1 and one.intercept == 0 for one in slices)
        whole = all(value.is_integer() for value in scales) and stored.itemsize <= 2 and max(map(abs, scales)) < 2**15
        dtype = stored if plain else np.dtype(np.int32 if whole else np.float64)

        def read(bands: Sequence[int], at: Window) -> Values:
            one = slices[at.z]
            with explained(one.path.name):
                values = decoded(one, how.gpu).reshape(height, width, samples)
            part = values[at.y : at.y + at.h, at.x : at.x + at.w]
            out = bands_first(part, bands).astype(dtype, copy=False)
            return out if plain else (out * dtype.type(one.slope) + dtype.type(one.intercept)).astype(dtype)

        image = Image(
            name=name,
            bands=("R", "G", "B") if samples == 3 else (str(first.get("Modality") or "0"),),
            depth=len(slices),
            height=height,
            width=width,
            dtype=dtype,
            pixel_size_um=pixel_size_of(first),
            spacing_um=spacing_of(first, slices),
            chunk=(height, width),
            read=read,
            bands_apart=False,
        )
    yield image


def check_alike(first: Any, head: Any, name: str) -> None:
    """Refuse a file that cannot be a slice of the same image. Raises ImageError."""
    for tag in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PixelRepresentation"):
        if first[tag].value != head[tag].value:
            raise ImageError(f"{name}: found {tag} {head[tag].value}; expected {first[tag].value} as in the series")
    if "ModalityLUTSequence" in head:
        raise ImageError(f"{name}: found a modality look-up table; expected slope and intercept")


def slices_of(head: Any, path: Path) -> Iterator[Slice]:
    """List the frames of a file; enhanced files say of each frame what plain ones say of the file."""
    shared = head.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    frames = head.get("PerFrameFunctionalGroupsSequence")
    count = int(head.get("NumberOfFrames") or 1)
    if frames is not None and len(frames) != count:
        raise ImageError(f"{path.name}: corrupt, it describes {len(frames)} frames of {count}; export it again")
    for i in range(count):
        groups = [frames[i]] if frames is not None else []

        def find(sequence: str, groups: list[Any] = groups) -> Any:
            return next((group[sequence].value[0] for group in (*groups, shared[0]) if sequence in group), head)

        rescale = find("PixelValueTransformationSequence")
        position = position_of(find("PlanePositionSequence"), find("PlaneOrientationSequence"))
        slope, intercept = float(rescale.get("RescaleSlope", 1)), float(rescale.get("RescaleIntercept", 0))
        yield Slice(path, i, position, int(head.get("InstanceNumber") or 0), slope, intercept)


def position_of(plane: Any, orientation: Any) -> float | None:
    """Return how far along the stack's normal a slice lies, in mm (PS3.3 C.7.6.2.1.1)."""
    at, axes = plane.get("ImagePositionPatient"), orientation.get("ImageOrientationPatient")
    if not at or not axes:
        return None
    return float(np.dot(np.cross(np.array(axes[:3], float), np.array(axes[3:], float)), np.array(at, float)))


def in_order(slices: list[Slice], name: str) -> list[Slice]:
    """Sort slices by position, or by number where positions are not given. Raises ImageError for two in one place."""
    positions = [one.position for one in slices if one.position is not None]
    if len(positions) < len(slices):
        return sorted(slices, key=lambda one: (one.number, one.path.name, one.frame))
    if len({round(position, 3) for position in positions}) < len(positions):
        raise ImageError(
            f"{name}: found several slices in one place among {len(slices)}; expected one volume a series, export "
            "phases and echoes as series of their own"
        )
    return sorted(slices, key=lambda one: one.position or 0.0)


def stored_dtype(head: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of decoded values. Raises ImageError."""
    bits, samples = int(head.BitsAllocated), int(head.SamplesPerPixel)
    if bits not in (8, 16, 32) or samples not in (1, 3) or head.PhotometricInterpretation == "PALETTE COLOR":
        raise ImageError(
            f"{name}: found {samples} samples of {bits} bits as {head.PhotometricInterpretation}; "
            "expected grey or RGB of 8, 16 or 32 bits"
        )
    return np.dtype(f"{'i' if head.PixelRepresentation else 'u'}{bits // 8}")


def decoded(one: Slice, gpu: GpuDecoder | None = None) -> Values:
    """Decode one frame."""
    tags = ["BitsAllocated", "BitsStored", "NumberOfFrames", "PixelRepresentation", "SamplesPerPixel"]
    head = pydicom.dcmread(one.path, stop_before_pixels=True, specific_tags=tags)
    syntax = str(head.file_meta.TransferSyntaxUID)
    if syntax in CODECS:
        values = np.asarray(CODECS[syntax](frame_of(one)))
        return values.view(f"i{values.itemsize}") if head.PixelRepresentation else values

    def plain() -> Values:
        return np.asarray(pixel_array(one.path, index=one.frame))

    many = int(head.get("NumberOfFrames") or 1) > 1  # of which that way reads one, and `frame_of` all
    if syntax not in LOSSLESS_2000 or head.SamplesPerPixel != 1 or many:
        return plain()
    dtype, bits = np.dtype(f"{'i' if head.PixelRepresentation else 'u'}{head.BitsAllocated // 8}"), int(head.BitsStored)
    frame = frame_of(one)
    if lossless(frame, dtype, bits) is None:
        return plain()

    def let_go() -> Values:  # of the interpreter, which pydicom's way to the same OpenJPEG holds all the time
        return np.asarray(imagecodecs.jpeg2k_decode(frame))

    return gpu(frame, dtype, bits, let_go) if gpu else let_go()


def frame_of(one: Slice) -> bytes:
    """Return one frame as it is stored, compressed."""
    full = pydicom.dcmread(one.path)
    frame: bytes = get_frame(full.PixelData, one.frame, number_of_frames=int(full.get("NumberOfFrames") or 1))
    return frame


def pixel_size_of(head: Any) -> float | None:
    """Return the side of a pixel in µm, None when it is not given or not square."""
    rows, columns = in_plane(head) or (0.0, 1.0)
    return rows if math.isclose(rows, columns, rel_tol=0.01) else None


def in_plane(head: Any) -> tuple[float, float] | None:
    """Return the distance of rows and of columns in µm, None when it is not given."""
    shared = head.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    spacing = (measures[0] if measures else head).get("PixelSpacing") or head.get("ImagerPixelSpacing")
    return (float(spacing[0]) * 1e3, float(spacing[1]) * 1e3) if spacing else None


def spacing_of(head: Any, slices: Sequence[Slice]) -> tuple[float, float, float] | None:
    """Return the distance of slices, rows and columns in µm; None for one slice or for slices not evenly apart."""
    plane, positions = in_plane(head), [one.position for one in slices if one.position is not None]
    if plane is None or len(positions) < max(2, len(slices)):
        return None
    apart = np.diff(positions)
    return (float(apart.mean()) * 1e3, *plane) if np.ptp(apart) <= 0.01 * apart.mean() else None
