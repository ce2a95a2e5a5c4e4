"""Levels of a label image in files without names, each half the size of the one before by its nearest neighbour."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

TILE = 512  # pixels a side
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Labels:
    """What the numbers mean: names and hex colours of 0, 1, …; the pixel size in µm if known."""

    names: tuple[str, ...]
    colours: tuple[str, ...]
    pixel_size_um: float | None


class Level:
    """One level: uint8[depth, height, width] in a file, zero where nothing was written."""

    def __init__(self, file: BinaryIO, depth: int, height: int, width: int) -> None:
        self._fd = file.fileno()
        self.depth, self.height, self.width = depth, height, width
        os.ftruncate(self._fd, depth * height * width)

    def write(self, z: int, y: int, x: int, values: npt.NDArray[np.uint8]) -> None:
        """Put uint8[h, w] in its place."""
        whole = values.shape[1] == self.width
        for i, row in enumerate([values] if whole else values):
            left = np.ascontiguousarray(row).tobytes()
            at = (z * self.height + y + i) * self.width + x
            while left:
                done = os.pwrite(self._fd, left, at)
                left, at = left[done:], at + done

    def rows(self, z: int, y: int, count: int) -> npt.NDArray[np.uint8]:
        """Read up to `count` whole rows from row y on."""
        count = min(count, self.height - y)
        out = np.empty((count, self.width), np.uint8)
        view, at = out.reshape(-1).data, (z * self.height + y) * self.width
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], at + done)
            if got == 0:
                raise OSError("the file of labels is shorter than it was made")
            done += got
        return out

    def tiles(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Cut the level into tiles of TILE², padded with zeros at the edges, slice by slice and row by row."""
        for z in range(self.depth):
            for y in range(0, self.height, TILE):
                rows = self.rows(z, y, TILE)
                for x in range(0, self.width, TILE):
                    tile = np.zeros((TILE, TILE), np.uint8)
                    part = rows[:, x : x + TILE]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile


def reduced(level: Level, file: BinaryIO) -> Level:
    """Halve a level: every other row and column, as labels must not be averaged."""
    half = Level(file, level.depth, -(-level.height // 2), -(-level.width // 2))
    step = 2 * max(1, BLOCK_BYTES // (2 * level.width))
    for z in range(level.depth):
        for y in range(0, level.height, step):
            half.write(z, y // 2, 0, level.rows(z, y, step)[::2, ::2])
    return half
