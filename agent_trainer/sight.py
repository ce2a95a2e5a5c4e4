"""What many agents see: each one's last crops, here in this machine's memory; `device_sight` keeps them on a GPU."""

from typing import Any, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.scene import Pixels

Ints: TypeAlias = npt.NDArray[np.int64]


class Sight(Protocol):
    """Histories of crops.

    agents  int64[k], who
    which   int64[k], the image of each
    level   int64[k], index of the scale
    centre  int64[k, axes], pixels
    """

    def blank(self, agents: int) -> None:
        """Begin with so many agents who have seen nothing."""

    def begin(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> Pixels:
        """Fill histories with their first crops, and return these: uint8[k, channels, (box,) box, box]."""

    def look(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> None:
        """Push new crops into histories; of several channels a crop is the whole history."""

    def frames(self) -> Pixels:
        """Return the newest crop of each agent: uint8[n, channels, …]."""

    def states(self, agents: Ints | None = None) -> Pixels:
        """Return histories, oldest first: uint8[k, history, …]."""

    @property
    def seen(self) -> Any:
        """All histories where they lie, an array here or a tensor there; not to be changed."""


@final
class HostSight:
    """Histories of crops in memory.

    channels  of a crop
    shape     of a history
    """

    def __init__(self, crops: Crops, channels: int, shape: tuple[int, ...]) -> None:
        self._crops, self._channels, self._shape = crops, channels, shape
        self.blank(0)

    def blank(self, agents: int) -> None:
        """See `Sight`, also below."""
        self._states: Pixels = np.zeros((agents, *self._shape), np.uint8)

    def begin(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> Pixels:
        """Fill histories."""
        frames = self._crops.at(which, level, centre)
        self._states[agents] = frames  # a single channel is repeated
        return frames

    def look(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> None:
        """Push new crops."""
        frames = self._crops.at(which, level, centre)
        if self._channels > 1:
            self._states[agents] = frames
        else:
            self._states[agents] = np.concatenate([self._states[agents, 1:], frames], axis=1)

    def frames(self) -> Pixels:
        """Return the newest crops."""
        return self._states[:, -self._channels :].copy()

    def states(self, agents: Ints | None = None) -> Pixels:
        """Return histories."""
        return self._states.copy() if agents is None else self._states[agents]

    @property
    def seen(self) -> Pixels:
        """All histories."""
        return self._states
