"""What every reader gives: an image described, and its pixels in tiles.

A reader of a format is a function that opens a source and yields an `Image`: facts about the file and one function
`read` that takes any window. How windows are laid over the file, how bands are found by name and how failures become
one sentence is the same for all formats and stands here.
"""

import math
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import islice, repeat
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError
from cairn.images.ahead import ahead
from cairn.images.gpu_decoding import GpuDecoder
from cairn.images.reading import explained, listed, read_into, unpacking

Values: TypeAlias = npt.NDArray[Any]
BandMapping: TypeAlias = Mapping[str, str | int]
TILE = 512  # pixels a side, where the file leaves the choice
TILE_BYTES = 64 << 20  # of one tile, all bands
CHUNK_BYTES = 256 << 20  # of one decoded strip or tile of a file; more is refused
AHEAD_BYTES = 256 << 20  # of tiles that are being read or wait to be taken, where two of them are not more already
DECODERS = min(4, os.cpu_count() or 1)  # threads; the codecs let go of the interpreter


class Window(NamedTuple):
    """A rectangle of one slice: its first pixel, and rows and columns."""

    z: int
    y: int
    x: int
    h: int
    w: int


# (bands, window) -> values[len(bands), h, w], the file's dtype in native byte order, C-contiguous
Read: TypeAlias = Callable[[Sequence[int], Window], Values]


@dataclass(frozen=True)
class RawLayout:
    """The shape of raw files without a header, the [raw] table of a site's settings.

    Defaults are those of AstroPath's flat-field-corrected `.fw` files: little-endian uint16, bands last.
    """

    height: int = 1004
    width: int = 1344
    bands: int = 35
    bands_last: bool = True
    dtype: str = "<u2"


@dataclass(frozen=True)
class Opening:
    """What a reader is told beside the files.

    decoders  threads that decode the parts of an image, however many tiles are read at once
    gpu       decodes what it gives the same values of as the CPU
    """

    raw: RawLayout = RawLayout()
    decoders: int = DECODERS
    gpu: GpuDecoder | None = None


@dataclass(frozen=True)
class Tile:
    """A window of an image.

    z, y, x  the first pixel's place in the image
    values   native dtype[B, h, w], C-contiguous, in the order of the wanted band names
    """

    z: int
    y: int
    x: int
    values: Values


@dataclass(frozen=True)
class Image:
    """An opened image.

    name           the file's or folder's name, for messages
    bands          names found in the file, or "0", "1", …
    dtype          of the values, in native byte order
    pixel_size_um  side of a pixel in µm, None when unknown or not square
    spacing_um     between slices, rows and columns in µm, None when the format or the file does not give all three
    chunk          rows and columns that the file decodes at once; (1, width) when any rows can be read
    read           reads any window; windows on the chunk grid decode nothing twice
    bands_apart    whether one band can be read without decoding the others
    at_once        whether several threads may call `read` at the same time
    mapping        wanted name -> name or index in this file
    levels         finds the smaller copies of the image in the file, largest first; looked for only when called
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    dtype: np.dtype[Any]
    chunk: tuple[int, int]
    read: Read
    depth: int = 1
    pixel_size_um: float | None = None
    spacing_um: tuple[float, float, float] | None = None
    bands_apart: bool = True
    at_once: bool = True
    mapping: BandMapping = field(default_factory=dict)
    levels: Callable[[], "tuple[Image, ...]"] = tuple

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.depth) < 1 or not self.bands:
            raise ImageError(
                f"{self.name}: found an image of {self.width} × {self.height} pixels, {self.depth} slices and "
                f"{len(self.bands)} bands; expected at least one of each"
            )
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 8:
            raise ImageError(f"{self.name}: found values of type {self.dtype}; expected real numbers of 8 to 64 bits")

    def indices(self, wanted: Sequence[str]) -> list[int]:
        """Find each wanted band's place in the file, by the mapping and then by name. Raises ImageError."""
        return [self._index(name) for name in wanted]

    def _index(self, wanted: str) -> int:
        here = self.mapping.get(wanted, wanted)
        has = f"it has {listed(self.bands)}"
        if isinstance(here, int):
            if 0 <= here < len(self.bands):
                return here
            raise ImageError(f"{self.name}: band {wanted} is mapped to index {here}, but {has}")
        if self.bands.count(here) == 1:
            return self.bands.index(here)
        if here in self.bands:
            raise ImageError(
                f"{self.name}: {self.bands.count(here)} bands are named {here}; map {wanted} to an index, {has}"
            )
        mapped = f" (mapped to {here})" if here != wanted else ""
        near = get_close_matches(here, self.bands, n=1)
        hint = f"; did you mean {near[0]}" if near else ""
        raise ImageError(f"{self.name}: band {wanted}{mapped} is missing, {has}{hint}")

    def tiles(
        self, wanted: Sequence[str], size: int = TILE, part: range | None = None, readers: int = 0
    ) -> Generator[Tile]:
        """Walk over the whole image, every pixel once, slice by slice and in rows of tiles.

        wanted   band names, at least one
        size     a tile's side in pixels where the file leaves the choice; a tile holds whole chunks of the file, so it
                 is larger where chunks are larger, and full-width where the file is stored in strips
        part     numbers of the tiles to walk over, within `tile_count`; all of them when None
        readers  threads that read ahead, a tile each, as many of them as the format and AHEAD_BYTES allow; with 0 a
                 tile is read when it is taken
        Raises ImageError, at once for a missing band and from the generator for unreadable pixels. Close the generator
        before the image where it was not taken to its end.
        """
        if not wanted or size < 1:
            raise ImageError(
                f"{self.name}: asked for {len(wanted)} bands in tiles of {size}; expected 1 or more of each"
            )
        bands = self.indices(wanted)
        if self._needs_spool(bands):
            spooled = self._spooled(bands, size)
            return ahead(repeat(partial(next, spooled, None)), 1, 2) if readers else spooled
        places = self._places(bands, size)
        places = places if part is None else islice(places, part.start, part.stop)
        if not readers:
            return self._direct(bands, places)
        rows, columns = self._tile_shape(bands, size)
        most = max(2, AHEAD_BYTES // (rows * columns * self._in_memory(bands)))
        readers = min(readers, most) if self.at_once else 1
        return ahead((partial(self._read, bands, at) for at in places), readers, min(readers + 1, most))

    def tile_count(self, wanted: Sequence[str], size: int = TILE) -> int:
        """Count the tiles that `tiles` can read apart; 1 where only all of them together. Raises ImageError."""
        bands = self.indices(wanted)
        if self._needs_spool(bands):
            return 1
        rows, columns = self._tile_shape(bands, size)
        return self.depth * math.ceil(self.height / rows) * math.ceil(self.width / columns)

    def _in_memory(self, bands: Sequence[int]) -> int:
        return (len(bands) if self.bands_apart else max(len(bands), len(self.bands))) * self.dtype.itemsize

    def _needs_spool(self, bands: Sequence[int]) -> bool:
        return self.bands_apart and len(bands) > 1 and math.prod(self.chunk) * self._in_memory(bands) > TILE_BYTES

    def _tile_shape(self, bands: Sequence[int], size: int) -> tuple[int, int]:
        return window_shape(self.chunk, (self.height, self.width), size, self._in_memory(bands))

    def _places(self, bands: Sequence[int], size: int, slices: Iterable[int] | None = None) -> Iterator[Window]:
        shape = self._tile_shape(bands, size)
        for z in range(self.depth) if slices is None else slices:
            for window in windows(self.height, self.width, shape):
                yield Window(z, *window)

    def _direct(self, bands: Sequence[int], places: Iterable[Window]) -> Generator[Tile]:
        for at in places:
            yield self._read(bands, at)

    def _read(self, bands: Sequence[int], at: Window) -> Tile:
        with explained(self.name):
            return Tile(at.z, at.y, at.x, self.read(bands, at))

    def _spooled(self, bands: Sequence[int], size: int) -> Generator[Tile]:
        """Walk by way of a file over an image whose chunks are too large to hold one of each band; slice by slice."""
        itemsize = self.dtype.itemsize
        plane = self.height * self.width * itemsize
        rows = window_shape((1, self.width), (self.height, self.width), size, len(bands) * itemsize)
        with ExitStack() as stack:
            with unpacking(self.name):
                file = stack.enter_context(tempfile.TemporaryFile())
            for z in range(self.depth):
                for slot, band in enumerate(bands):
                    for tile in self._direct([band], self._places([band], 1, [z])):
                        with unpacking(self.name):
                            write_rows(file, slot * plane, tile, self.width)
                for y, x, h, w in windows(self.height, self.width, rows):
                    out = np.empty((len(bands), h, w), self.dtype)
                    for slot in range(len(bands)):
                        read_into(file, slot * plane + y * self.width * itemsize, out[slot], self.name)
                    yield Tile(z, y, x, out)


def write_rows(file: BinaryIO, offset: int, tile: Tile, width: int) -> None:
    """Write a tile's first band to its place in a plane of the given width at an offset."""
    values = tile.values[0]
    for row, line in enumerate(values if values.shape[1] < width else [values]):
        file.seek(offset + ((tile.y + row) * width + tile.x) * values.itemsize)
        file.write(np.ascontiguousarray(line).tobytes())
    file.flush()


def window_shape(chunk: tuple[int, int], image: tuple[int, int], size: int, pixel_bytes: int) -> tuple[int, int]:
    """Choose rows and columns of a window: whole chunks, near size² pixels, at most TILE_BYTES if a chunk allows."""
    ch, cw = min(chunk[0], image[0]), min(chunk[1], image[1])
    columns = max(1, min(size * size // ch, size, TILE_BYTES // (pixel_bytes * ch)) // cw) * cw
    rows = min(size * size // columns, TILE_BYTES // (pixel_bytes * columns)) // ch * ch
    return max(rows, ch), min(columns, image[1])


def windows(height: int, width: int, shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Lay windows of a shape over an image, cut at its edges: y, x, height, width of each."""
    for y in range(0, height, shape[0]):
        for x in range(0, width, shape[1]):
            yield y, x, min(shape[0], height - y), min(shape[1], width - x)
