"""Tables as few bytes: the high bytes of small numbers are alike, so they are laid together and compress to nothing.

For each block of 2^17 numbers: zigzag z = (x << 1) ^ (x >> (bits - 1)), so that small numbers of either sign are small
unsigned ones; then all lowest bytes, all second bytes, and so on; the whole as one zstd frame. Beside plain zstd on
sketches of images: a quarter to two fifths fewer bytes, packed eight times and unpacked twice as fast.
"""

import io
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import zstandard

BLOCK = 1 << 17  # numbers; a plane of bytes is then one zstd block, with statistics of its own
Table = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def pack(table: Table) -> bytes:
    """Pack a table; int32 or int64, little-endian, any shape."""
    flat, width = table.ravel(), table.dtype.itemsize
    planes = np.empty(table.nbytes, np.uint8)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        zigzag = (block << 1) ^ (block >> (8 * width - 1))
        into = planes[start * width : (start + len(block)) * width].reshape(width, len(block))
        into[:] = zigzag.view(np.uint8).reshape(len(block), width).T
    # zstd's own checksum guards a table for as long as it lies on a disk, at a twentieth of SHA-256's cost.
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(planes.data)


def unpack(file: BinaryIO, size: int, into: Table) -> bool:
    """Unpack the next `size` bytes of a file into a flat table; false when they do not make just that table.

    Bounded: a few bytes can unpack to terabytes, but no more is unpacked than the table has room for.
    """
    stored = _Stored(file, size)
    width = into.dtype.itemsize
    planes = np.empty(min(BLOCK, into.size) * width, np.uint8)
    unsigned = into.view(f"<u{width}")
    lowest = np.empty(min(BLOCK, into.size), unsigned.dtype)
    reader = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", stored), read_size=BLOCK)
    try:
        for start in range(0, into.size, BLOCK):
            block = unsigned[start : start + BLOCK]
            if not _fill(reader, planes[: len(block) * width]):
                return False
            numbers = block.view(np.uint8).reshape(len(block), width)
            for byte, plane in enumerate(planes[: len(block) * width].reshape(width, -1)):
                numbers[:, byte] = plane
            sign = np.bitwise_and(block, 1, out=lowest[: len(block)])
            block >>= 1
            block ^= np.negative(sign, out=sign)
        # The read behind the last byte takes in the end of the frame and compares its checksum.
        return not reader.read(1) and not stored.left
    except zstandard.ZstdError:
        return False


def read_plain(file: BinaryIO, size: int, into: Table) -> bool:
    """Read the next `size` bytes of a file into a flat table as they are; false when it has another size."""
    stored = _Stored(file, size)
    return size == into.nbytes and _fill(stored, into.view(np.uint8))


def _fill(reader: Any, into: npt.NDArray[np.uint8]) -> bool:
    view = memoryview(into.data)
    while view and (filled := reader.readinto(view)):
        view = view[filled:]
    return not view


class _Stored(io.RawIOBase):
    """The next bytes of a file, so many and no more."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:  # the buffer protocol has no name before Python 3.12
        view = memoryview(into).cast("B")[: self.left]
        read = self._file.readinto(view)  # type: ignore[attr-defined]  # every binary file has it; the stub does not
        self.left -= read
        return int(read)
