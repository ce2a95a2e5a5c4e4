"""Patches of an image of any size, cut from its file when they are asked for: a gigapixel slide never enters memory.

    with open_big(path, 3) as slide:
        overview = slide.reduced(64, 64)
        looked_at = slide.patches(corners, 50)

What is read of a file is a grid of cells, each a few of the tiles that the file decodes at once; each cell is read
once for all patches that touch it, and the last ones stay decoded for the patches to come.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.cells import Area, Cells, Level, Whole
from cairn.errors import ImageError
from cairn.images import Image, find_image, open_image
from cairn.images.image import Window, window_shape, windows
from cairn.images.reading import explained

Pixels: TypeAlias = npt.NDArray[np.uint8]
Corners: TypeAlias = npt.NDArray[np.int64]
Channels: TypeAlias = Literal[1, 3]
Values: TypeAlias = npt.NDArray[Any]

CELL = 256  # pixels a side, where the file leaves the choice
PERCENTILES = (0.5, 99.5)
SAMPLED = 16  # cells that the percentiles are found on, where the smallest copy has more


@dataclass(frozen=True)
class Big:
    """An image whose pixels come when they are asked for.

    name      of the file, for messages
    levels    the whole image, and the smaller copies of it that the file holds, if any; none is larger than the one
              before
    channels  1 or 3
    """

    name: str
    channels: int
    levels: tuple[Level, ...]

    @property
    def height(self) -> int:
        """Rows of the whole image."""
        return self.levels[0].height

    @property
    def width(self) -> int:
        """Columns of the whole image."""
        return self.levels[0].width

    def reduced(self, height: int, width: int) -> Pixels:
        """Make the image small: each pixel the mean of the area that lies under it, uint8[channels, height, width].

        For a size of which the image's is a multiple this is average pooling. Read from the smallest copy in the file
        that is no smaller than what is asked for; without copies the whole image streams by, cell after cell.
        Raises ImageError for pixels that cannot be read.
        """
        if min(height, width) < 1:
            raise ImageError(f"{self.name}: asked for {width} × {height} pixels; expected one or more")
        fitting = [level for level in self.levels if level.height >= height and level.width >= width]
        return (fitting or self.levels)[-1 if fitting else 0].reduced(height, width)

    def patches(self, corners: Corners, side: int) -> Pixels:
        """Cut square patches, uint8[P, channels, side, side].

        corners  int64[P, 2]: row and column of each patch's first pixel; patches lie wholly inside the image
        Raises ImageError for an image smaller than a patch, a patch that leaves it, or pixels that cannot be read.
        """
        check_patches(self.name, (self.height, self.width), corners, side)
        return self.levels[0].patches(np.asarray(corners, np.int64), side)


@contextmanager
def open_big(path: Path, channels: Channels) -> Iterator[Big]:
    """Open an image of any format that Cairn reads, for as long as the context lasts; nothing is read yet but sizes.

    channels  3: colours, or grey three times; 1: grey, or the mean of the bands
    Values of 8 bits are taken as they are, others between their 0.5 and 99.5 percentiles, found on the smallest copy
    in the file or on cells from all over it.
    Raises ImageError for a file that is no image, and one of several slices or of bands that are no colours.
    """
    with open_image(find_image(path)) as image:
        yield _big(image, channels)


def in_memory(image: Pixels, name: str = "image") -> Big:
    """Take an array uint8[channels, height, width] for an image, without a copy."""
    return Big(name, image.shape[0], (Whole(image),))


def check_patches(name: str, size: tuple[int, int], corners: Corners, side: int) -> None:
    """Refuse patches that do not lie in an image of a size. Raises ImageError."""
    if side < 1 or corners.ndim != 2 or corners.shape[1] != 2:
        raise ImageError(f"{name}: asked for patches of {side} pixels at {corners.shape}; expected rows and columns")
    if side > min(size):
        raise ImageError(
            f"{name}: found {size[1]} × {size[0]} pixels; expected at least a patch, {side} × {side}: leave the image "
            "out or choose smaller patches"
        )
    if np.any(corners < 0) or np.any(corners > np.array(size) - side):
        raise ImageError(f"{name}: a patch of {side} × {side} reaches beyond {size[1]} × {size[0]} pixels")


def _big(image: Image, channels: Channels) -> Big:
    bands = wanted_bands(image, channels)
    if image.depth > 1:
        raise ImageError(f"{image.name}: found {image.depth} slices; expected one, patches are cut in a plane")
    images = (image, *image.levels())
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else value_range(images[-1], bands)
    levels = []
    for one in images:
        shape = window_shape(one.chunk, (one.height, one.width), CELL, len(one.bands) * one.dtype.itemsize)
        read = _reader(one, bands, channels, low, high)
        levels.append(Cells((channels, one.height, one.width), shape, read))
    return Big(image.name, channels, tuple(levels))


def wanted_bands(image: Image, channels: Channels) -> list[int]:
    """Choose the bands that make the channels, by their place; transparency is none. Raises ImageError."""
    seen = [place for place, name in enumerate(image.bands) if name != "A"]
    if channels == 1 or len(seen) == 1:
        return seen
    named = [place for place in seen if image.bands[place].rsplit(" ", 1)[-1] in ("R", "G", "B")]
    if len(named) != channels:
        raise ImageError(
            f"{image.name}: found {len(image.bands)} bands; expected red, green and blue, or one: set channels to 1, "
            "which takes the mean"
        )
    return named


def _reader(image: Image, bands: Sequence[int], channels: int, low: float, high: float) -> Callable[[Area], Pixels]:
    def read(area: Area) -> Pixels:
        with explained(image.name):
            values = image.read(bands, Window(0, *area))
        if channels == 1 and len(bands) > 1:
            values = values.mean(axis=0, dtype=np.float32)[np.newaxis]
        if values.dtype != np.uint8:
            values = to_bytes(values, low, high)
        out: Pixels = values if len(values) == channels else np.repeat(values, channels, axis=0)
        return out

    return read


def to_bytes(values: Values, low: float, high: float) -> Pixels:
    """Bring low … high to 0 … 255; what lies beyond is cut off, and what is no number counts as low."""
    scaled: npt.NDArray[np.float32] = (values.astype(np.float32) - low) * (255 / (high - low))
    cut = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)
    return np.asarray(np.rint(cut), np.uint8)


def value_range(image: Image, bands: Sequence[int]) -> tuple[float, float]:
    """Find the PERCENTILES of an image's numbers, on all of it or on cells from all over it.

    Raises ImageError for an image without numbers. A constant one comes out black.
    """
    shape = window_shape(image.chunk, (image.height, image.width), CELL, len(image.bands) * image.dtype.itemsize)
    cells = list(windows(image.height, image.width, shape))
    chosen = np.unique(np.linspace(0, len(cells) - 1, SAMPLED).round().astype(int))
    found = []
    for place in chosen.tolist():
        with explained(image.name):
            values = image.read(bands, Window(0, *cells[place])).ravel()
        found.append(values[np.isfinite(values)])
    numbers = np.concatenate(found)
    if not numbers.size:
        raise ImageError(f"{image.name}: found no number among its pixels; expected an image")
    low, high = (float(value) for value in np.percentile(numbers, PERCENTILES))
    return low, max(high, np.nextafter(low, np.inf))
