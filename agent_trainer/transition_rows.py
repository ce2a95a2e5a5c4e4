"""The rows of a replay: transitions in a ring, each gone with the first of its frames that is overwritten."""

import numpy as np
import numpy.typing as npt

from cairn.hashing import Keys
from cairn.transitions import TransitionCoder

Rows = npt.NDArray[np.int64]
Steps = npt.NDArray[np.void]  # of the dtype that `TransitionRows.table` has

NONE = -1


class TransitionRows:
    """The last transitions that were put.

    capacity  transitions held at most
    slots     places of the ring of frames
    history   frames in a state
    cells     pooled cells of a frame
    """

    def __init__(self, capacity: int, slots: int, history: int, cells: int) -> None:
        row = [
            ("serial", np.int64),  # number of the transition; its row is serial mod capacity; NONE where nothing is
            (
                "frames",
                np.int64,
                (history + 1,),
            ),  # serials, oldest first; s_tm1 all but the last, s_t all but the first
            ("key", np.uint64),
            ("times", np.uint32),  # seen while held
            ("task", np.uint8),
            ("a", np.uint8),
            ("r", np.float32),
            ("discount", np.float32),
            ("cells_tm1", np.uint8, (cells,)),
            ("cells", np.uint8, (cells,)),
        ]
        self.table: Steps = np.zeros(capacity, np.dtype(row, align=True))
        self.table["serial"] = NONE
        self.held = 0
        self._next = 0
        # The rows whose oldest frame lies at a place: an episode's first `history` transitions share their oldest.
        self._rows_at = np.full((slots, history), NONE, np.int32)
        self.nbytes = self.table.nbytes + self._rows_at.nbytes

    def blank(self, n: int) -> Steps:
        """Return n empty transitions to fill in and put."""
        return np.zeros(n, self.table.dtype)

    def by_age(self) -> Rows:
        """Return the rows that hold a transition, oldest first."""
        rows = np.flatnonzero(self.table["serial"] != NONE)
        return rows[np.argsort(self.table["serial"][rows])]

    def find(self, serials: npt.NDArray[np.int64]) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Return the rows of transitions by number, and whether they are still there."""
        rows = serials % len(self.table)
        return rows, (serials != NONE) & (self.table["serial"][rows] == serials)

    def overwritten(self, before: int, after: int) -> Rows:
        """Let go of the transitions whose frames were overwritten when serials before ... after - 1 were written."""
        places = np.arange(before, after) % len(self._rows_at)
        rows = self._rows_at[places].ravel().astype(np.int64)
        self._rows_at[places] = NONE
        # A place may name a row that holds another transition by now, with younger frames or named twice.
        rows = np.unique(rows[rows != NONE])
        return self._let_go(rows[self.table["frames"][rows, 0] < after - len(self._rows_at)])

    def make_room(self, n: int) -> Rows:
        """Let go of what lies in the next n rows; at most `capacity` of them."""
        assert n <= len(self.table)
        return self._let_go(np.arange(self._next, self._next + n) % len(self.table))

    def put(self, steps: Steps) -> Rows:
        """Put transitions, their serials not yet given, into the next rows, in which there is room."""
        serials = np.arange(self._next, self._next + len(steps))
        rows = serials % len(self.table)
        steps["serial"] = serials
        self.table[rows] = steps
        self._next += len(steps)
        self.held += len(steps)
        self._note_oldest(rows)
        return rows

    def pack(self, rows: Rows) -> None:
        """Move rows int64[m], oldest first, to places 0 to m - 1 under new serials, and let go of all others."""
        base = -(-self._next // len(self.table)) * len(self.table)
        packed = self.table[rows]
        packed["serial"] = np.arange(base, base + len(rows))
        self.table[: len(rows)] = packed
        self.table["serial"][len(rows) :] = NONE
        self._next, self.held = base + len(rows), len(rows)
        self._rows_at[:] = NONE
        self._note_oldest(np.arange(len(rows)))

    def _let_go(self, rows: Rows) -> Rows:
        gone: Rows = rows[self.table["serial"][rows] != NONE]
        self.table["serial"][gone] = NONE
        self.held -= len(gone)
        return gone

    def _note_oldest(self, rows: Rows) -> None:
        frames = self.table["frames"][rows]
        column = (frames == frames[:, :1]).sum(axis=1) - 1  # 0, but for those that repeat an episode's first frame
        self._rows_at[frames[:, 0] % len(self._rows_at), column] = rows


def keys_of(coder: TransitionCoder, steps: Steps) -> Keys:
    """Return the keys uint64[n] of transitions."""
    return coder.keys(steps["cells_tm1"], steps["task"], steps["a"], steps["r"], steps["cells"])
