"""Which patch of a volume is learned from: drawn at random, part of them about a voxel of a class. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.volumes.reading import Volume

Place: TypeAlias = npt.NDArray[np.int64]
MOST = 100_000  # voxels of a class that are remembered, drawn evenly


@dataclass(frozen=True, eq=False)
class Seen:
    """Where the classes of a volume are: of each, places int64[n] in the flat volume; none of one that it lacks."""

    places: tuple[npt.NDArray[np.int64], ...]


def look_over(volume: Volume, classes: int) -> Seen:
    """Find the voxels of each class."""
    flat = volume.labels.ravel()
    found = (np.flatnonzero(flat == number) for number in range(1, classes + 1))
    return Seen(tuple(some[:: 1 + len(some) // MOST] for some in found))


def draw_middle(volume: Volume, seen: Seen, foreground: float, rng: np.random.Generator) -> Place:
    """Draw a voxel int64[3] to cut about: with this probability one of a class, each class alike, else any."""
    about, which, where = rng.random(3)
    there = [some for some in seen.places if len(some)]
    if there and about < foreground:
        some = there[int(which * len(there))]
        flat = int(some[int(where * len(some))])
    else:
        flat = int(where * volume.labels.size)
    return np.array(np.unravel_index(flat, volume.labels.shape), np.int64)


def cut(volume: Volume, middle: Place, patch: Sequence[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Cut a patch that lies within the volume as far as it can: float32[patch], int64[patch].

    A side that is longer than the volume's is filled up on both ends, with 0 and the background.
    """
    shape, sides = np.array(volume.labels.shape), np.array(patch)
    corner = np.clip(middle - sides // 2, 0, np.maximum(shape - sides, 0))
    box = tuple(slice(low, low + side) for low, side in zip(corner.tolist(), sides.tolist(), strict=True))
    lacking = np.maximum(sides - shape, 0)
    pad = [(int(n) // 2, int(n) - int(n) // 2) for n in lacking]
    return np.pad(volume.image[box], pad), np.pad(volume.labels[box], pad).astype(np.int64)
