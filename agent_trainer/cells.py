"""Pixels by areas: of an array in memory, or of a file's grid of cells, read one at a time."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

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
        y, x, _, _ = area
        _, height, width = self.means.shape
        top, part = area_sums(values, 1, y, self._rows, height)
        left, part = area_sums(part, 2, x, self._columns, width)
        part *= height / self._rows * width / self._columns
        self.means[:, top : top + part.shape[1], left : left + part.shape[2]] += part

    def pixels(self) -> Pixels:
        """Round the means to whole numbers, uint8."""
        return np.rint(self.means).clip(0, 255).astype(np.uint8)


def area_sums(
    values: npt.NDArray[Any], axis: int, first: int, pixels: int, areas: int
) -> tuple[int, npt.NDArray[np.float32]]:
    """Sum values along an axis by areas, each pixel counted by the share of it that lies in an area.

    first    the place of the first of them among `pixels`, over which `areas` of equal width are laid
    returns  the first area that they touch, and float32 sums, the axis now that of the areas touched
    """
    count = values.shape[axis]
    start, stop = first * areas // pixels, -(-(first + count) * areas // pixels)
    edges = (np.arange(start, stop + 1) * (pixels / areas) - first).clip(0, count)
    at = np.minimum(edges.astype(np.int64), count - 1)  # the pixel that an edge cuts; at the end the last, wholly
    cut = np.expand_dims((edges - at).astype(np.float32), tuple(i for i in range(values.ndim) if i != axis))
    dtype = np.float32 if values.dtype.kind == "f" else np.int32
    sums = np.add.reduceat(values, at, axis=axis, dtype=dtype).astype(np.float32)  # from each edge's pixel to the next
    sums = np.delete(sums, -1, axis)
    between: list[Any] = [slice(None)] * values.ndim
    between[axis] = np.flatnonzero(at[1:] == at[:-1])  # both edges in one pixel, where reduceat gives that pixel
    sums[tuple(between)] = 0
    return start, sums + np.diff(values.take(at, axis) * cut, axis=axis)
