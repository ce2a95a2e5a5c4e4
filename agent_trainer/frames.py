"""Frames, stored once: a ring of crops, and each agent's last few crops on their way into it.

A frame has a serial number, counted from 0 in the order of writing; serial x lies at place x mod slots until serial
x + slots takes that place. A state is a row of serials, so that the states before and after a step share their frames.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cairn.errors import ConfigError, TrainingError

Frames = npt.NDArray[np.uint8]  # [n, channels, *box]
Serials = npt.NDArray[np.int64]
Agents = npt.NDArray[np.int64]

NOT_WRITTEN = -1
NO_EPISODE = -1


class FrameRing:
    """The last `slots` frames that were written.

    slots      frames held
    shape      of one frame, (channels, *box)
    folder     where a ring over `in_memory` bytes lies, in a file without a name that vanishes with the process
    in_memory  bytes that a ring may take in RAM when there is a folder; without one it is always in RAM
    Raises ConfigError when the folder has no room.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], folder: Path | None, in_memory: int) -> None:
        self.slots, self.next = slots, 0  # next: serial of the frame that is written next
        self._frames = _allocate((slots, *shape), folder if slots * int(np.prod(shape)) > in_memory else None)
        self.nbytes = self._frames.nbytes

    def write(self, frames: Frames) -> Serials:
        """Write frames over the oldest ones, at most `slots` of them, and return their serials int64[n]."""
        assert len(frames) <= self.slots
        serials = np.arange(self.next, self.next + len(frames))
        self._frames[serials % self.slots] = frames
        self.next += len(frames)
        return serials

    def read(self, serials: Serials) -> Frames:
        """Return the frames of serials int64[n, h] as uint8[n, h, channels, *box]; none may be overwritten."""
        return self._frames.take(serials % self.slots, axis=0)  # twice as fast as by brackets


class Trails:
    """The last history + 1 frames of every agent's episode, in and not yet in the ring.

    Frames go into the ring only when a kept transition needs them: a duplicate that is not kept takes no room there.
    Frame t of an episode lies at place t mod (history + 1).

    agents   number of agents, 0 to agents - 1
    history  frames in a state
    shape    of one frame
    """

    def __init__(self, agents: int, history: int, shape: tuple[int, ...]) -> None:
        self._window = np.arange(-history, 1)
        self._time = np.full(agents, NO_EPISODE, np.int64)
        self._frames = np.zeros((agents, history + 1, *shape), np.uint8)
        self._serials = np.full((agents, history + 1), NOT_WRITTEN, np.int64)
        self.nbytes = self._frames.nbytes

    def check(self, agents: Agents, frames: Frames) -> None:
        """Raise TrainingError for agents that are not there or given twice, and frames of another shape."""
        if len(agents) and (agents.min() < 0 or agents.max() >= len(self._time)):
            raise TrainingError(
                f"agents {agents.min()} to {agents.max()} act; the settings have {len(self._time)} envs"
            )
        if len(np.unique(agents)) != len(agents):
            raise TrainingError("an agent is named twice in one step; give each agent's step by itself")
        shape = (len(agents), *self._frames.shape[2:])
        if frames.shape != shape or frames.dtype != np.uint8:
            raise TrainingError(f"frames are {frames.dtype}{frames.shape}; uint8{shape} were expected")

    def begin(self, agents: Agents, frames: Frames) -> None:
        """Begin new episodes of agents int64[n] with their first frames uint8[n, channels, *box]."""
        self._time[agents] = 0
        self._frames[agents, 0] = frames
        self._serials[agents] = NOT_WRITTEN

    def step(self, agents: Agents, frames: Frames) -> None:
        """Append each agent's next frame. Raises TrainingError for an agent that is in no episode."""
        if np.any(self._time[agents] == NO_EPISODE):
            raise TrainingError("an agent steps that is in no episode; begin one first")
        self._time[agents] += 1
        place = self._time[agents] % len(self._window)
        self._frames[agents, place] = frames
        self._serials[agents, place] = NOT_WRITTEN

    def end(self, agents: Agents) -> None:
        """End the agents' episodes."""
        self._time[agents] = NO_EPISODE

    def store(self, agents: Agents, ring: FrameRing) -> Serials:
        """Write what the agents' newest transitions need and is not in the ring.

        returns  int64[n, history + 1], oldest first: s_tm1 is all but the last, s_t all but the first; before an
                 episode's start its first frame is repeated
        """
        time = np.maximum(self._time[agents, None] + self._window, 0)
        place = time % len(self._window)
        agent = np.broadcast_to(agents[:, None], place.shape)
        # An agent may have rested so long that its frames are overwritten, or would be in this call: write all again,
        # so that an agent's serials rise with time and its oldest frame is always the first to be overwritten.
        floor = ring.next + place.size - ring.slots
        serials = self._serials[agent, place]
        lost = np.any((serials != NOT_WRITTEN) & (serials < floor), axis=1)
        self._serials[agents[lost]] = NOT_WRITTEN
        once = np.concatenate([time[:, 1:] != time[:, :-1], np.ones((len(agents), 1), np.bool_)], axis=1)
        new = once & (self._serials[agent, place] == NOT_WRITTEN)
        self._serials[agent[new], place[new]] = ring.write(self._frames[agent[new], place[new]])
        stored: Serials = self._serials[agent, place]
        return stored


def _allocate(shape: tuple[int, ...], folder: Path | None) -> Frames:
    """Return an array whose pages are taken as they are first written (RAM), or reserved on the disk at once."""
    if folder is None:
        return np.empty(shape, np.uint8)
    size = int(np.prod(shape))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a sparse file on a full disk would kill the process later
            return np.asarray(np.memmap(file, np.uint8, "r+", shape=shape))
    except OSError as error:
        raise ConfigError(
            f"the replay's frames need {size / 1e9:.1f} GB in {folder} and did not get them ({error.strerror}); "
            "free the room, name another folder or lower capacity"
        ) from error
