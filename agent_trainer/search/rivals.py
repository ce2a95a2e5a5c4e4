"""What a controller is measured against: the paper's two hill climbers, and random search.

All are proposers: `propose` returns the next strategy in [0, 1], or None when nothing can be tried before another
result; `learn` takes a strategy's reward, `drop` says that there will be none.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent_trainer.search.space import Units

STEP: Final = 0.01  # of discrete hill climbing; paper 2, §4: 100 values a parameter
FACTOR: Final = 1.1  # of continuous hill climbing; paper 2, §4
FIRST_STEP: Final = 0.1  # of continuous hill climbing; the paper gives none
LAST_STEP: Final = 1e-3  # below which a parameter has converged; the paper gives none


class Random:
    """Uniform in [0, 1], after the start."""

    def __init__(self, start: Units, seed: int) -> None:
        self._next: Units | None = start
        self._size = len(start)
        self._generator = np.random.default_rng(seed)

    def propose(self, job: int) -> Units:  # noqa: ARG002 - a proposer's signature
        """Return the start, then anything."""
        found = self._generator.uniform(size=self._size) if self._next is None else self._next
        self._next = None
        return found

    def learn(self, job: int, reward: float) -> None:
        """Learn nothing."""

    def drop(self, job: int) -> None:
        """Learn nothing."""


class DiscreteHillClimbing:
    """Steps of 0.01 on a grid of [0, 1]: to a better neighbour at once, until none of all 2·d is better.

    Neighbours of where it stands are tried in turn, as many as there are jobs in flight; no place is tried twice.
    """

    def __init__(self, start: Units) -> None:
        self._here = np.round(start / STEP).astype(np.int64)  # steps from 0
        self._reward: float | None = None  # of where it stands; None before it is known
        self._open: dict[int, tuple[npt.NDArray[np.int64], int, int]] = {}
        self._untried: list[tuple[int, int]] = []
        self._tried: set[tuple[int, ...]] = set()

    def _moves(self, axis: int, sign: int) -> list[tuple[int, int]]:
        """Return the moves from here, the last to be tried first: on in the direction that was better, if any."""
        axes = [(max(axis, 0) + at) % len(self._here) for at in range(len(self._here))]
        moves = [(one, way) for one in axes for way in (sign, -sign)]
        return moves[::-1]

    def propose(self, job: int) -> Units | None:
        """Return the start, then neighbours; None while all are under trial, and for ever at a local optimum."""
        if not self._tried:
            return self._try(job, self._here, -1, 1)
        while self._reward is not None and self._untried:
            axis, sign = self._untried.pop()
            place = self._here.copy()
            place[axis] += sign
            if 0 <= place[axis] <= round(1 / STEP) and tuple(place.tolist()) not in self._tried:
                return self._try(job, place, axis, sign)
        return None

    def _try(self, job: int, place: npt.NDArray[np.int64], axis: int, sign: int) -> Units:
        self._tried.add(tuple(place.tolist()))
        self._open[job] = place, axis, sign
        units: Units = place / round(1 / STEP)
        return units

    def learn(self, job: int, reward: float) -> None:
        """Go to a strategy that is better than where it stands."""
        place, axis, sign = self._open.pop(job)
        if self._reward is None or reward > self._reward:
            self._here, self._reward = place, reward
            self._untried = self._moves(axis, sign)

    def drop(self, job: int) -> None:
        """Count a strategy without a reward as no better than any."""
        self.learn(job, -np.inf)


@dataclass(frozen=True)
class Move:
    """A strategy under trial, and the parameter that was moved to come to it; -1 for the start."""

    units: Units
    axis: int = -1


class ContinuousHillClimbing:
    """Each parameter has a step: ×1.1 after a move that was better, ÷1.1 and the other way after one that was not.

    The parameters take turns, as many at once as there are jobs in flight; it ends when every step is under 0.001.
    """

    def __init__(self, start: Units) -> None:
        self._here = start
        self._reward: float | None = None
        self._open: dict[int, Move] = {}
        self._steps = np.full(len(start), FIRST_STEP)
        self._signs = np.ones(len(start))
        self._turn = 0
        self._started = False

    def propose(self, job: int) -> Units | None:
        """Return the start, then moves; None while every unfinished parameter is under trial, and when all are done."""
        if not self._started:
            self._started = True
            self._open[job] = Move(self._here)
            return self._here
        busy = {move.axis for move in self._open.values()}
        for at in range(len(self._here)):
            axis = (self._turn + at) % len(self._here)
            if self._reward is not None and axis not in busy and self._steps[axis] >= LAST_STEP:
                self._turn = axis + 1
                self._open[job] = Move(self._moved(axis), axis)
                return self._open[job].units
        return None

    def _moved(self, axis: int) -> Units:
        """Return the place a step along a parameter; turned round where [0, 1] ends."""
        if self._here[axis] == (1 if self._signs[axis] > 0 else 0):
            self._signs[axis] *= -1
        place = self._here.copy()
        place[axis] = np.clip(place[axis] + self._signs[axis] * self._steps[axis], 0, 1)
        return place

    def learn(self, job: int, reward: float) -> None:
        """Go to a strategy that is better than where it stands, and change the moved parameter's step."""
        move = self._open.pop(job)
        better = self._reward is None or reward > self._reward
        if better:
            self._here, self._reward = move.units, reward
        if move.axis >= 0:
            self._steps[move.axis] *= FACTOR if better else 1 / FACTOR
            self._signs[move.axis] *= 1 if better else -1

    def drop(self, job: int) -> None:
        """Count a strategy without a reward as no better than any."""
        self.learn(job, -np.inf)
