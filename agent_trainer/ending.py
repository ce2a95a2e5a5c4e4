"""When a search is over in use, where nobody knows the landmark: the agent goes round in circles."""

from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

WINDOW = 28  # steps looked back; rl-medical's frame
VISITS = 4  # times in one place within the window that make a circle; rl-medical: more than three


@final
class SearchEnd:
    """The oscillation rule for many searches at once.

    A search goes in circles when the place where it is was visited `VISITS` times within its last `WINDOW` steps. It
    ends, of the places visited more than once in them, in the one where max_a Q was smallest: at the landmark no step
    brings anything, so there every action is worth least (Alansary et al. 2019, §2.1; rl-medical).
    """

    def __init__(self, agents: int, axes: int) -> None:
        self._places: Ints = np.full((agents, WINDOW, axes), -1, np.int64)
        self._worth: npt.NDArray[np.float64] = np.full((agents, WINDOW), np.inf)

    def visit(self, agents: Ints, positions_px: Ints, worth: npt.NDArray[np.floating]) -> tuple[Flags, Ints]:
        """Note where some agents are; returns who goes in circles, and where each of them ends.

        agents        int64[k]
        positions_px  int64[k, axes]
        worth         float[k], max_a Q there
        returns       bool[k], int64[k, axes]: the end, or just the position of those who go on
        """
        places = np.concatenate([self._places[agents, 1:], positions_px[:, None]], axis=1)
        values = np.concatenate([self._worth[agents, 1:], worth[:, None].astype(np.float64)], axis=1)
        self._places[agents], self._worth[agents] = places, values
        circling = (places == positions_px[:, None]).all(2).sum(1) >= VISITS
        ends = positions_px.copy()
        if circling.any():
            near = places[circling]
            again = (near[:, :, None] == near[:, None]).all(3).sum(2) > 1  # [circling, WINDOW]
            again &= (near >= 0).all(2)
            best = np.where(again, values[circling], np.inf).argmin(1)
            ends[circling] = near[np.arange(len(near)), best]
        return circling, ends

    def forget(self, agents: Ints) -> None:
        """Begin anew for some agents, who go on at the next scale."""
        self._places[agents], self._worth[agents] = -1, np.inf
