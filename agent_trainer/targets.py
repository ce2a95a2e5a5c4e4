"""What the target network said, remembered until it changes.

The target network stays as it is for thousands of updates, and replay draws a transition several times in that span
while it holds less than about batch x target_every of them: its Q need not be computed again.
"""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Q = npt.NDArray[np.float32]  # [b, actions]


class TargetCache:
    """Q by the content of a state and its task, so that it is right whoever keeps the transitions.

    actions  numbers remembered of each state
    slots    states remembered; a later one takes the slot of an earlier one
    """

    def __init__(self, actions: int, slots: int = 2**17) -> None:
        self._keys = np.zeros(slots, np.uint64)  # 0: nothing
        self._q: Q = np.zeros((slots, actions), np.float32)

    def look_up(
        self,
        states: npt.NDArray[np.uint8],
        task: npt.NDArray[np.int64],
        compute: Callable[[npt.NDArray[np.int64]], Q],
    ) -> Q:
        """Return Q of states uint8[b, ...] and their tasks int64[b]; float32[b, actions].

        compute  (rows int64[n]) -> float32[n, actions], asked for the rows that are not known
        """
        keys = np.array([_key(state, number) for state, number in zip(states, task.tolist(), strict=True)], np.uint64)
        slots = keys % np.uint64(len(self._keys))
        unknown = np.flatnonzero(self._keys[slots] != keys)
        q: Q = self._q[slots]
        if len(unknown):
            q[unknown] = compute(unknown)
            self._keys[slots[unknown]] = keys[unknown]
            self._q[slots[unknown]] = q[unknown]
        return q

    def forget(self) -> None:
        """Forget all, when the target network changes."""
        self._keys[:] = 0


def _key(state: npt.NDArray[np.uint8], task: int) -> int:
    """Return 64 bits of a hash; 2^17 states share one by accident with probability 2^-31."""
    digest = blake2b(state.tobytes(), digest_size=8, salt=task.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") or 1
