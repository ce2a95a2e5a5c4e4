"""TIFF of every kind: OME-TIFF, BigTIFF, pyramids, multi-page, interleaved, QPTIFF, component_data, SVS.

`tiff_layout` says which page and sample holds which band of which slice; this file turns that into an `Image` by
decoding the segments (strips or tiles) of those pages by hand, several at once where they are compressed.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tifffile import TiffFile, TiffPage

from cairn.errors import ImageError
from cairn.images.formats.tiff_layout import Layout, layout_of
from cairn.images.formats.tiff_levels import smaller_layouts
from cairn.images.image import CHUNK_BYTES, Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained, read_bytes, read_into
from cairn.images.source import ImageSource

# By type code; 13, 16, 17 and 18 are those of BigTIFF and SubIFDs.
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True)
class Plane:
    """One sample of one page, or all interleaved samples of it, as segments (strips or tiles) in the file.

    first            the plane's first segment among the page's
    offsets, counts  int64[segments], the plane's own, row by row; bytes
    rows, columns    of a segment; strips span the width
    stored           dtype in the file's byte order
    raw              whether the bytes are the values, so that any rows of a strip can be read
    """

    file: BinaryIO
    name: str
    page: TiffPage
    first: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    rows: int
    columns: int
    samples: int
    stored: np.dtype[Any]
    raw: bool

    @property
    def chunk(self) -> tuple[int, int]:
        """What is read at once: a row where the bytes are the values and strips span the width."""
        return (1 if self.raw and not self.page.is_tiled else self.rows), self.columns

    def segments(self, at: Window) -> Iterator[tuple[int, int, int]]:
        """List the segments that a window touches: number, and first row and column in the image."""
        across = -(-int(self.page.imagewidth) // self.columns)
        for row in range(at.y // self.rows, -(-(at.y + at.h) // self.rows)):
            for column in range(at.x // self.columns, -(-(at.x + at.w) // self.columns)):
                yield row * across + column, row * self.rows, column * self.columns


@contextmanager
def open_tiff(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open a TIFF file. Raises ImageError."""
    name = source.name
    with explained(name):
        file = source.paths[0].open("rb")
    with file:
        pages = check_pages(file, name)
        with explained(name, "corrupt, its header or directories cannot be understood; export it again"):
            tiff = TiffFile(file)
        with tiff, ThreadPoolExecutor(how.decoders) as pool:
            with explained(name, "corrupt, its directories or metadata cannot be understood; export it again"):
                if len(tiff.pages) != pages:
                    raise ImageError(f"{name}: found {len(tiff.pages)} readable pages of {pages}; export it again")
                layout = layout_of(tiff, name)
                image = image_of(file, layout, name, pool)
            yield replace(image, levels=lambda: levels_of(tiff, layout, file, name, pool))


def levels_of(tiff: TiffFile, layout: Layout, file: BinaryIO, name: str, pool: ThreadPoolExecutor) -> tuple[Image, ...]:
    """Describe the image's smaller copies. Raises ImageError."""
    with explained(name, "corrupt, the directories of its smaller copies cannot be understood; export it again"):
        pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
        return tuple(image_of(file, smaller, name, pool) for smaller in smaller_layouts(pages, layout))


def check_pages(file: BinaryIO, name: str) -> int:
    """Count the pages by following the chain of directories, which must lie within the file with all that they name.

    Readers stop at a broken link and take the pages before it for all; they leave out metadata that was cut off.
    """
    size = os.fstat(file.fileno()).st_size
    head = os.pread(file.fileno(), 16, 0)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 4 else 0
    if version not in (42, 43) or len(head) < (8 if version == 42 else 16):
        raise ImageError(f"{name}: is not a TIFF; expected the file to be what its suffix says")
    # BigTIFF widens the fields: count of entries, an entry's tag, type, count and place, link to the next directory.
    fields = ("H", "HHII", "I") if version == 42 else ("Q", "HHQQ", "Q")
    counter, entry, link = (order + field for field in fields)
    at: int = struct.unpack_from(link, head, 4 if version == 42 else 8)[0]
    seen: set[int] = set()
    while at:
        if at in seen:
            raise ImageError(f"{name}: corrupt, its directories run in a circle; export it again")
        seen.add(at)
        start = at + struct.calcsize(counter)
        entries = struct.unpack(counter, os.pread(file.fileno(), start - at, at))[0] if start <= size else 0
        end = start + entries * struct.calcsize(entry)
        after = end + struct.calcsize(link)
        if start > size or after > size:
            raise ImageError(
                f"{name}: truncated, page {len(seen)} is described beyond the end of the file; copy or export it again"
            )
        directory = os.pread(file.fileno(), after - start, start)
        for _, kind, count, place in struct.iter_unpack(entry, directory[: end - start]):
            length = TYPE_BYTES.get(kind, 0) * count
            if length > struct.calcsize(link) and place + length > size:
                raise ImageError(
                    f"{name}: truncated, page {len(seen)} has metadata beyond the file's end; copy or export it again"
                )
        at = struct.unpack(link, directory[end - start :])[0]
    if not seen:
        raise ImageError(f"{name}: found a TIFF without pages; expected at least one")
    return len(seen)


def image_of(file: BinaryIO, layout: Layout, name: str, pool: ThreadPoolExecutor) -> Image:
    """Describe the image that a layout makes of a file's pages. Raises ImageError for a layout that cannot be read."""
    first = layout.planes[0][0].page
    planes: dict[tuple[int, int], Plane] = {}
    for places in layout.planes:
        for place in places:
            same = (place.page.imagelength, place.page.imagewidth, place.page.dtype) == (
                first.imagelength,
                first.imagewidth,
                first.dtype,
            )
            if not same:
                raise ImageError(
                    f"{name}: found pages of {first.imagewidth} × {first.imagelength} {first.dtype} and of "
                    f"{place.page.imagewidth} × {place.page.imagelength} {place.page.dtype}; expected all alike"
                )
            key = plane_key(place.page, place.sample)
            if key not in planes:
                planes[key] = plane_of(file, place.page, key[1], name)
    dtype = np.dtype(first.dtype).newbyteorder("=")

    def read(bands: Sequence[int], at: Window) -> Values:
        out = np.empty((len(bands), at.h, at.w), dtype)
        slots: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for slot, band in enumerate(bands):
            place = layout.planes[at.z][band]
            slots[plane_key(place.page, place.sample)].append((slot, place.sample))
        jobs: list[tuple[Plane, tuple[int, int, int], list[tuple[int, int]]]] = []
        for key, wanted in slots.items():
            if planes[key].raw:
                read_raw(planes[key], at, wanted, out)
            else:
                jobs.extend((planes[key], segment, wanted) for segment in planes[key].segments(at))
        # Segments of one tile do not overlap in `out`, so the threads need no lock.
        list(pool.map(lambda job: decode_into(job[0], job[1], at, job[2], out), jobs))
        return out

    some = planes[plane_key(first, layout.planes[0][0].sample)]
    return Image(
        name=name,
        bands=layout.bands,
        depth=len(layout.planes),
        height=first.imagelength,
        width=first.imagewidth,
        dtype=dtype,
        pixel_size_um=layout.pixel_size_um,
        chunk=some.chunk,
        read=read,
        bands_apart=some.samples == 1,
    )


def plane_key(page: TiffPage, sample: int) -> tuple[int, int]:
    """Name the plane that holds a sample: interleaved samples share one."""
    return int(page.offset), sample if page.planarconfig == 2 else 0


def plane_of(file: BinaryIO, page: TiffPage, sample: int, name: str) -> Plane:
    """Find a plane's segments and check that they can be what they claim. Raises ImageError."""
    if page.dtype is None or np.dtype(page.dtype).kind not in "uif":
        kind = page.dtype or f"{page.bitspersample} bits, sample format {page.sampleformat}"
        raise ImageError(f"{name}: found values of type {kind}; expected real numbers of 8 to 64 bits")
    height, width, tiled = int(page.imagelength), int(page.imagewidth), bool(page.is_tiled)
    if 0 in page.shaped or page.imagedepth > 1:
        raise ImageError(f"{name}: found a page of {width} × {height} × {page.imagedepth} pixels; expected a plane")
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    rows, columns = (page.tilelength, page.tilewidth) if tiled else (min(page.rowsperstrip, height), width)
    if rows < 1 or columns < 1:
        raise ImageError(f"{name}: corrupt, found segments of {columns} × {rows} pixels; export it again")
    number = -(-height // rows) * -(-width // columns)
    offsets = np.array(page.dataoffsets[sample * number : (sample + 1) * number], np.int64)
    counts = np.array(page.databytecounts[sample * number : (sample + 1) * number], np.int64)
    if len(offsets) != number or len(counts) != number:
        raise ImageError(f"{name}: corrupt, found {len(offsets)} segments in a page of {number}; export it again")
    size = os.fstat(file.fileno()).st_size
    if np.any(offsets < 0) or np.any(counts < 0) or np.any((offsets > size - counts) & (counts > 0)):
        raise ImageError(f"{name}: truncated, its pixels go on beyond its end at byte {size}; copy or export it again")
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_subsampled
    raw = bool(plain and page.bitspersample == 8 * stored.itemsize)
    if raw:
        stored_rows = np.full(number, rows) if tiled else np.minimum(rows, height - np.arange(number) * rows)
        expected = stored_rows * (columns * samples * stored.itemsize)
        if np.any((counts < expected) & (counts > 0)):
            raise ImageError(f"{name}: corrupt, found segments shorter than their pixels; export it again")
        if not tiled and np.all(counts > 0) and np.array_equal(offsets[1:], (offsets + expected)[:-1]):
            offsets, counts, rows = offsets[:1], expected.sum(keepdims=True), height  # strips without gaps are one
    if (tiled or not raw) and rows * columns * samples * stored.itemsize > CHUNK_BYTES:
        raise ImageError(
            f"{name}: found strips or tiles of {columns} × {rows} pixels; "
            f"expected at most {CHUNK_BYTES >> 20} MiB each, store it in tiles"
        )
    return Plane(file, name, page, sample * number, offsets, counts, rows, columns, samples, stored, raw)


def read_raw(plane: Plane, at: Window, slots: list[tuple[int, int]], out: Values) -> None:
    """Copy a window out of a plane whose bytes are the values, straight into place where the shapes agree.

    slots  (place in out, sample) of each band that is wanted
    """
    for segment, top, left in plane.segments(at):
        # Of a tile all rows are read, of a strip those in the window.
        start, stop = (
            (top, top + plane.rows) if plane.page.is_tiled else (max(top, at.y), min(top + plane.rows, at.y + at.h))
        )
        part = overlap(at, start, left, stop - start, plane.columns)
        if plane.counts[segment] == 0:
            fill(plane, part, slots, out)
            continue
        offset = int(plane.offsets[segment]) + (start - top) * plane.columns * plane.samples * plane.stored.itemsize
        target = out[slots[0][0]][part]
        straight = len(slots) == 1 and plane.samples == 1 and plane.stored.isnative and target.flags.c_contiguous
        if straight and target.shape == (stop - start, plane.columns):
            read_into(plane.file, offset, target, plane.name)
            continue
        values = np.empty((stop - start, plane.columns, plane.samples), plane.stored)
        read_into(plane.file, offset, values, plane.name)
        place(values[max(at.y - start, 0) :, max(at.x - left, 0) :], part, slots, out)


def decode_into(
    plane: Plane, where: tuple[int, int, int], at: Window, slots: list[tuple[int, int]], out: Values
) -> None:
    """Decode one segment and lay it into the window. Raises ImageError, and whatever a codec raises."""
    segment, top, left = where
    part = overlap(at, top, left, plane.rows, plane.columns)
    count = int(plane.counts[segment])
    if count == 0:
        fill(plane, part, slots, out)
        return
    data = read_bytes(plane.file, int(plane.offsets[segment]), count, plane.name)
    values, _, _ = plane.page.decode(data, plane.first + segment, jpegtables=plane.page.jpegtables)
    place(values[0, max(at.y - top, 0) :, max(at.x - left, 0) :], part, slots, out)


def overlap(at: Window, top: int, left: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Return where in a window a segment lies."""
    return (
        slice(max(0, top - at.y), min(top + rows - at.y, at.h)),
        slice(max(0, left - at.x), min(left + columns - at.x, at.w)),
    )


def fill(plane: Plane, part: tuple[slice, slice], slots: list[tuple[int, int]], out: Values) -> None:
    """Write a segment that the file leaves out: the value that the page names for it, mostly 0."""
    for slot, _ in slots:
        out[slot][part] = plane.page.nodata


def place(values: Values, part: tuple[slice, slice], slots: list[tuple[int, int]], out: Values) -> None:
    """Lay decoded values[rows, columns, samples] into their part of the window; too few do not fit and raise."""
    shape = out[0][part].shape
    cut = values[: shape[0], : shape[1]]
    if cut.shape[:2] != shape:  # an assignment would spread a single row over all
        raise ValueError(f"{cut.shape} pixels decoded of {shape}")
    if values.shape[2] == 1:
        for slot, _ in slots:
            out[slot][part] = cut[..., 0]
        return
    for (slot, _), plane in zip(slots, bands_first(cut, [sample for _, sample in slots]), strict=True):
        out[slot][part] = plane
