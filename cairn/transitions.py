"""Keys of replay tuples: a quantised state code, task, action, reward bin and next-state code (DESIGN §5, paper 1 §IV).

A state's code is its newest frame, pooled to a few cells and each cell cut at thresholds that the federation fits from
merged histograms. Whole numbers throughout, so that every site gives the same transition the same key.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError
from cairn.hashing import Keys
from cairn.keyspace import KeySpace

LEVELS = 256  # of a pooled cell

Cells = npt.NDArray[np.uint8]  # [n, cells]


def pool(frames: npt.NDArray[np.uint8], grid: Sequence[int]) -> Cells:
    """Average each cell of a grid laid over frames, rounded down.

    Along an axis of s pixels, cell i of g covers the pixels from ⌊i·s/g⌋ to ⌊(i+1)·s/g⌋.

    frames   uint8[n, channels, *box]; channels are averaged too
    grid     cells along each axis of the box, each at most the axis' pixels
    returns  uint8[n, ∏ grid], the last axis fastest
    Raises PlanError for a grid that does not fit.
    """
    box = frames.shape[2:]
    if len(grid) != len(box) or any(not 1 <= cells <= side for cells, side in zip(grid, box, strict=True)):
        raise PlanError(f"a grid of {tuple(grid)} cells does not fit a box of {box}")
    sums = frames[:, 0] if frames.shape[1] == 1 else frames.sum(axis=1, dtype=np.uint64)
    pixels = np.array([frames.shape[1]], np.uint64)
    for axis, (cells, side) in enumerate(zip(grid, box, strict=True)):
        edges = [i * side // cells for i in range(cells + 1)]
        sums = np.add.reduceat(sums, edges[:-1], axis=axis + 1, dtype=np.uint64)
        pixels = np.multiply.outer(pixels, np.diff(edges).astype(np.uint64)).reshape(*pixels.shape, cells)
    pooled: Cells = (sums // pixels).reshape(len(frames), math.prod(grid)).astype(np.uint8)
    return pooled


def cell_histogram(cells: Cells) -> npt.NDArray[np.int64]:
    """Count the levels of every cell: the table from which the thresholds are fitted.

    cells    uint8[n, cells]
    returns  int64[cells, 256]
    """
    place = np.arange(cells.shape[1], dtype=np.int64) * LEVELS
    return np.bincount((cells + place).ravel(), minlength=cells.shape[1] * LEVELS).reshape(-1, LEVELS)


def fit_thresholds(histogram: npt.NDArray[np.int64], radix: int) -> npt.NDArray[np.uint8]:
    """Cut every cell's levels into digits of equal mass, as far as whole levels allow.

    Digit d begins at the smallest level v with  #{level < v} ≥ d·n/r.

    histogram  int64[cells, 256], merged
    radix      digits, 2 to 256
    returns    uint8[cells, radix - 1], not falling; the digit of v is the number of thresholds ≤ v
    """
    below = np.concatenate([np.zeros((len(histogram), 1), np.int64), np.cumsum(histogram, axis=1)], axis=1)
    wanted = -(-np.arange(1, radix)[None, :] * below[:, -1:] // radix)
    found = np.stack([np.searchsorted(row, want) for row, want in zip(below, wanted, strict=True)])
    thresholds: npt.NDArray[np.uint8] = np.clip(found, 1, LEVELS - 1).astype(np.uint8)
    return thresholds


@dataclass(frozen=True)
class TransitionCoder:
    """How a transition (s_tm1, a_tm1, r_t, s_t) of a task becomes a key.

    grid          cells along each axis of the box
    thresholds    uint8[cells, radix - 1], not falling along a row
    tasks         number of tasks, 1 to 256
    actions       number of actions, 2 to 256
    reward_edges  rising, in the reward's unit (mm); a reward's bin is the number of edges ≤ it
    Raises PlanError when they do not make keys of at most 63 bits.
    """

    grid: tuple[int, ...]
    thresholds: npt.NDArray[np.uint8]
    tasks: int
    actions: int
    reward_edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.thresholds.shape[:1] != (math.prod(self.grid),) or self.thresholds.ndim != 2:
            raise PlanError(f"thresholds {self.thresholds.shape} do not belong to a grid of {self.grid} cells")
        if np.any(np.diff(self.thresholds.astype(np.int16), axis=1) < 0):
            raise PlanError("a cell's thresholds fall; publish them in rising order")
        edges = self.reward_edges
        rising = all(a < b for a, b in pairwise(edges))
        if not (edges and all(map(math.isfinite, edges)) and rising):
            raise PlanError(f"reward edges {self.reward_edges} do not rise")
        if not (1 <= self.tasks <= 256 and 2 <= self.actions <= 256):
            raise PlanError(f"{self.tasks} tasks and {self.actions} actions cannot be coded; up to 256 of each can")
        assert self.keyspace.bits <= 63  # a KeySpace checks its own size

    @property
    def radix(self) -> int:
        """Digits of a cell."""
        return int(self.thresholds.shape[1]) + 1

    @property
    def keyspace(self) -> KeySpace:
        """State, then task (if there are several), action, reward bin, next state."""
        state = (self.radix,) * len(self.thresholds)
        task = (self.tasks,) if self.tasks > 1 else ()
        return KeySpace((*state, *task, self.actions, len(self.reward_edges) + 1, *state))

    def digits(self, cells: Cells) -> Cells:
        """Cut pooled cells at the thresholds; uint8[n, cells] to uint8[n, cells]."""
        found = np.empty_like(cells)
        for cell, row in enumerate(self.thresholds):
            found[:, cell] = np.searchsorted(row, cells[:, cell], side="right")
        return found

    def keys(
        self,
        cells_tm1: Cells,
        task: npt.NDArray[np.integer],
        a_tm1: npt.NDArray[np.integer],
        r_t: npt.NDArray[np.float32],
        cells_t: Cells,
    ) -> Keys:
        """Write transitions as keys.

        cells_tm1, cells_t  uint8[n, cells], pooled
        task, a_tm1         integer[n]
        r_t                 float32[n], compared with the edges in float32
        returns             uint64[n]
        """
        bins = np.searchsorted(np.array(self.reward_edges, np.float32), r_t, side="right")
        between = [task, a_tm1, bins] if self.tasks > 1 else [a_tm1, bins]
        columns = [self.digits(cells_tm1), *(np.asarray(x)[:, None] for x in between), self.digits(cells_t)]
        return self.keyspace.encode(np.concatenate(columns, axis=1))
