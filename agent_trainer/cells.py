"""Pixels by areas: of an array in memory, or of a file's grid of cells, read one at a time."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cairn.images.image import windows

Pixels: TypeAlias = npt.NDArray[np.uint8]
Corners: TypeAlias = npt.NDArray[np.int64]
Area: TypeAlias = tuple[int, int, int, int]  # first row and column, rows, columns

KEPT_BYTES = 48 << 20  # of decoded cells


class Level(Protocol):
    """One size of an image."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    def reduced(self, height: int, width: int) -> Pixels:
        """Average the pixels under each of a smaller image's, uint8[channels, height, width]."""

    def patches(self, corners: Corners, side: int) -> Pixels:
        """Cut patches that lie inside, uint8[P, channels, side, side]."""


@dataclass(frozen=True)
class Whole:
    """An image in memory, uint8[channels, height, width]."""

    values: Pixels

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.values.shape[1])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.values.shape[2])

    def reduced(self, height: int, width: int) -> Pixels:
        """Average the pixels under each of a smaller image's."""
        sums = Sums(self.values.shape, height, width)
        for area in windows(self.height, self.width, (512, 512)):
            y, x, h, w = area
            sums.add(area, self.values[:, y : y + h, x : x + w])
        return sums.pixels()

    def patches(self, corners: Corners, side: int) -> Pixels:
        """Cut patches: one indexing of a view in which each pixel heads the patch below and right of it."""
        heads = np.lib.stride_tricks.sliding_window_view(self.values, (side, side), axis=(1, 2))
        return np.ascontiguousarray(heads.transpose(1, 2, 0, 3, 4)[corners[:, 0], corners[:, 1]])


@dataclass(frozen=True)
class Cells:
    """A level of a file, as a grid of cells that are read one at a time.

    shape   channels, rows, columns
    cell    rows and columns of a cell; those at the lower and right edges are smaller
    read    (first row and column, rows, columns) -> uint8[channels, rows, columns]
    kept    the cells read last, by their place in the grid; KEPT_BYTES of them, or one
    """

    shape: tuple[int, int, int]
    cell: tuple[int, int]
    read: Callable[[Area], Pixels]
    kept: OrderedDict[tuple[int, int], Pixels] = field(default_factory=OrderedDict)

    @property
    def height(self) -> int:
        """Rows."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[2]

    def reduced(self, height: int, width: int) -> Pixels:
        """Average the pixels under each of a smaller image's, cell after cell; none is kept."""
        sums = Sums(self.shape, height, width)
        for area in windows(self.height, self.width, self.cell):
            sums.add(area, self.read(area))
        return sums.pixels()

    def patches(self, corners: Corners, side: int) -> Pixels:
        """Cut patches; each cell is taken once, for all patches that touch it."""
        out = np.empty((len(corners), self.shape[0], side, side), np.uint8)
        for (row, column), touched in self._touched(corners, side).items():
            values = self._cell(row, column)
            top, left = row * self.cell[0], column * self.cell[1]
            for patch in touched:
                y, x = int(corners[patch, 0]) - top, int(corners[patch, 1]) - left
                part = values[:, max(y, 0) : y + side, max(x, 0) : x + side]
                to_y, to_x = max(-y, 0), max(-x, 0)
                out[patch, :, to_y : to_y + part.shape[1], to_x : to_x + part.shape[2]] = part
        return out

    def _touched(self, corners: Corners, side: int) -> dict[tuple[int, int], list[int]]:
        """List the patches that touch each cell, cells row by row: neighbours in the file follow one another."""
        first, last = corners // self.cell, (corners + side - 1) // self.cell
        touched: dict[tuple[int, int], list[int]] = {}
        for patch, ((top, left), (bottom, right)) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    touched.setdefault((row, column), []).append(patch)
        return dict(sorted(touched.items()))

    def _cell(self, row: int, column: int) -> Pixels:
        found = self.kept.get((row, column))
        if found is None:
            y, x = row * self.cell[0], column * self.cell[1]
            found = self.read((y, x, min(self.cell[0], self.height - y), min(self.cell[1], self.width - x)))
            self.kept[row, column] = found
            whole = self.shape[0] * self.cell[0] * self.cell[1]
            while len(self.kept) > max(1, KEPT_BYTES // whole):
                self.kept.popitem(last=False)
        self.kept.move_to_end((row, column))
        return found


class Sums:
    """The means of an image's areas, gathered part by part.

    r[i, j] = Σ_y Σ_x  A[i, y] · B[j, x] · v[y, x]      A[i, y] the share of area i's rows that row y is
    """

    def __init__(self, shape: tuple[int, ...], height: int, width: int) -> None:
        self._rows, self._columns = shape[1], shape[2]
        self.means = np.zeros((shape[0], height, width), np.float32)

    def add(self, area: Area, values: npt.NDArray[np.uint8 | np.bool_]) -> None:
        """Take in values[channels, h, w] of an area."""
        y, x, h, w = area
        _, height, width = self.means.shape
        top, rows = shares(y, h, self._rows, height)
        left, columns = shares(x, w, self._columns, width)
        part = rows @ values.astype(np.float32) @ columns.T
        self.means[:, top : top + len(rows), left : left + len(columns)] += part

    def pixels(self) -> Pixels:
        """Round the means to whole numbers, uint8."""
        return np.rint(self.means).clip(0, 255).astype(np.uint8)


def shares(first: int, count: int, pixels: int, areas: int) -> tuple[int, npt.NDArray[np.float32]]:
    """Tell what share of each area each of some pixels in a row is.

    first, count  the pixels wanted, of `pixels` in all, over which `areas` of equal width are laid
    returns       the first area that they touch, and float32[touched areas, count]; over all pixels an area's sum is 1
    """
    start = first * areas // pixels
    stop = -(-(first + count) * areas // pixels)
    edges = np.arange(start, stop + 1, dtype=np.float64) * pixels / areas
    places = np.arange(first, first + count, dtype=np.float64)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return start, (covered.clip(0) * areas / pixels).astype(np.float32)
