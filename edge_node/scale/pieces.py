"""What is counted apart: pieces of the work, and sums that say which pieces they hold.

A piece is an image, or a band of tiles of a large one. Every piece has a number, and a sum carries the numbers of its
pieces; two sums that share one are never added, so that no pixel can be in a tally twice, however often a piece was
counted anew because a worker was lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cairn import moments
from cairn.errors import PlanMismatch
from cairn.plan import CodebookPlan, Plan
from cairn.tally import Tables
from edge_node.counting import IN_WORDS
from edge_node.status import Problem
from edge_node.worker import Wanted

Narrow = Mapping[str, npt.NDArray[np.int32] | npt.NDArray[np.int64]]
Held = tuple[tuple[int, int], ...]  # numbers as ranges [first, end), rising, not touching

LEAST, MOST = 1 << 20, 1 << 28  # pixels that are counted at once
SHARES = 3  # for each worker, so that none waits long for the last one


@dataclass(frozen=True)
class Piece:
    """An image, or a band of its tiles.

    number  among all pieces of the count, from 0
    image   number of the image among those to be counted
    tiles   of a part of an image; None for all of it
    """

    number: int
    image: int
    wanted: Wanted
    tiles: range | None = None

    @property
    def pixels(self) -> int:
        """Of a part of an image about as many."""
        if self.tiles is None:
            return self.wanted.pixels
        first, end = (self.wanted.pixels * at // self.wanted.tiles for at in (self.tiles.start, self.tiles.stop))
        return end - first


@dataclass(frozen=True)
class Sum:
    """What some pieces hold together.

    held    the pieces' numbers, those of images that were left out among them
    tables  None: no pixel was counted. int32 where every cell fits, as they wait in memory and travel between workers
    unfit   images that were left out, each with why
    """

    held: Held
    tables: Narrow | None
    unfit: tuple[tuple[int, Problem], ...] = ()


def countable_in_pieces(plan: Plan) -> bool:
    """Tell whether workers may share a plan: label images are written, and private pixels chosen, by one process."""
    return not isinstance(plan.stage, CodebookPlan) and plan.privacy is None


def share(pixels: int, workers: int, cells: int) -> int:
    """Choose how many pixels are counted at once: few enough to go round, and as many as the tables have cells.

    Tables are made, sent and added for each, 13.8 million cells of a counts tally by the defaults.
    """
    return min(max(pixels // (SHARES * max(workers, 1)), cells, LEAST), MOST)


def cut(wanted: Sequence[Wanted], pixels: int) -> list[tuple[Piece, ...]]:
    """Lay images out in batches of about `pixels`: whole images next to each other, or a part of a larger one alone.

    An image belongs to the batch in which its first pixel lies, so that no small rest is left for one worker to count.
    """
    batches: list[tuple[Piece, ...]] = []
    together: list[Piece] = []
    number = counted = 0
    for image, one in enumerate(wanted):
        parts = min(-(-one.pixels // pixels), one.tiles)
        if parts > 1:
            for part in range(parts):
                tiles = range(one.tiles * part // parts, one.tiles * (part + 1) // parts)
                batches.append((Piece(number, image, one, tiles),))
                number += 1
            continue
        together.append(Piece(number, image, one))
        number, before, counted = number + 1, counted, counted + one.pixels
        if counted // pixels > before // pixels:
            batches.append(tuple(together))
            together = []
    return [*batches, tuple(together)] if together else batches


def joined(sums: Sequence[Sum], *, one_image: bool = False) -> Sum:
    """Add sums into a new one, the given ones stay as they are: whoever lost the result can make it again.

    one_image  they are parts of one image: when one was left out, all are
    Raises PlanMismatch when a piece is in two of them.
    """
    held = hold(held for one in sums for held in one.held)
    unfit = tuple(found for one in sums for found in one.unfit)
    if unfit and one_image:
        return Sum(held, None, unfit[:1])
    counted = [one.tables for one in sums if one.tables is not None]
    if not counted:
        return Sum(held, None, unfit)
    tables = {name: _added([each[name] for each in counted]) for name in counted[0]}
    for name in IN_WORDS:
        if name in tables:
            tables[name] = tables[name].astype(np.int64)
            moments.carry(tables[name])
    return Sum(held, narrow(tables), unfit)


def _added(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Add tables, in int32 where no sum of their cells can pass it: a third of the time."""
    fits = all(part.dtype == np.int32 for part in parts) and sum(map(_largest, parts)) < 2**31
    total = parts[0].astype(np.int32 if fits else np.int64)
    for part in parts[1:]:
        np.add(total, part, out=total)
    return total


def _largest(table: npt.NDArray[Any]) -> int:
    return max(int(table.max()), -int(table.min())) if table.size else 0


def narrow(tables: Mapping[str, npt.NDArray[Any]]) -> Narrow:
    """Write each table in int32 where all of it fits."""
    return {
        name: table.astype(np.int32) if table.dtype != np.int32 and _largest(table) < 2**31 else table
        for name, table in tables.items()
    }


def wide(tables: Narrow) -> Tables:
    """Copy tables to int64."""
    return {name: table.astype(np.int64) for name, table in tables.items()}


def hold(ranges: Iterable[tuple[int, int]]) -> Held:
    """Join ranges of pieces' numbers. Raises PlanMismatch when one is there twice."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and first < found[-1][1]:
            raise PlanMismatch(f"piece {first} of the images was to be added twice; count the plan again")
        if found and first == found[-1][1]:
            found[-1] = found[-1][0], end
        else:
            found.append((first, end))
    return tuple(found)


def whole(found: Sum, pieces: int) -> None:
    """Refuse a sum that does not hold every piece. Raises PlanMismatch."""
    if found.held != (((0, pieces),) if pieces else ()):
        missing = pieces - sum(end - first for first, end in found.held)
        raise PlanMismatch(f"the sum lacks {missing} of {pieces} pieces of the images; count the plan again")


def same_image(batches: Sequence[tuple[Piece, ...]]) -> Iterator[tuple[bool, list[int]]]:
    """Group the batches' numbers: the parts of one image together (True), every other batch by itself (False)."""
    parts: dict[int, list[int]] = {}
    for number, batch in enumerate(batches):
        if batch[0].tiles is None:
            yield False, [number]
        else:
            parts.setdefault(batch[0].image, []).append(number)
    for numbers in parts.values():
        yield True, numbers
