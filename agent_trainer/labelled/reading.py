"""From an image file to the uint8 array that a network takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.labelled.sources import Example
from cairn.images import ImageSource

Pixels: TypeAlias = npt.NDArray[np.uint8]
Channels: TypeAlias = Literal[1, 3]


def source_at(path: Path) -> ImageSource:
    """Return the image at an `Example.path`: a file, an OME-Zarr folder, or a folder of single-channel TIFFs.

    Raises ImageError when no format of `cairn.images` is known by its name.
    """
    raise NotImplementedError


def size_of(path: Path) -> tuple[int, int]:
    """Return an image's height and width in pixels; decodes no pixels. Raises ImageError."""
    raise NotImplementedError


def read_whole(path: Path, side: int, channels: Channels) -> Pixels:
    """Read an image and bring it to side × side pixels: uint8[channels, side, side].

    Raises ImageError: unreadable, a volume, NaN.
    """
    raise NotImplementedError


def read_all(
    examples: Sequence[Example], side: int, channels: Channels
) -> tuple[Pixels, tuple[Example, ...], tuple[str, ...]]:
    """Read many: uint8[n, channels, side, side], the examples that they are of, and a sentence on each that failed."""
    raise NotImplementedError
