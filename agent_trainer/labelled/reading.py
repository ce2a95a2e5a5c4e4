"""From an image file to the uint8 array that a network takes."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from agent_trainer.cells import Cells
from agent_trainer.labelled.sources import Example
from agent_trainer.patches import Big, open_big
from cairn.errors import ImageError
from cairn.images import find_image, open_image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Channels: TypeAlias = Literal[1, 3]
AT_ONCE = 1 << 24  # pixels of an image that is read at once
IN_MEMORY = 512 << 20  # bytes of all images of a run


def size_of(path: Path) -> tuple[int, int]:
    """Return an image's height and width in pixels; reads no more than its header. Raises ImageError."""
    with open_image(find_image(path)) as image:
        return image.height, image.width


def read_whole(path: Path, side: int, channels: Channels) -> Pixels:
    """Read an image and bring it to side × side pixels: uint8[channels, side, side].

    Each pixel is a mean of those of the file near it, weighted by a triangle two new pixels wide where the image is
    larger, and bilinear where it is smaller. Its proportions change to those of a square.

    channels  3: colours, or grey three times; 1: grey, or the mean of the bands
    Values of 8 bits are taken as they are, others between their 0.5 and 99.5 percentiles in this file.
    Raises ImageError: unreadable, a volume, bands that are no colours, values that are no finite numbers.
    """
    _check_finite(path)
    with open_big(path, channels) as big:
        pixels = _pixels(big, min(2 * side, big.height), min(2 * side, big.width))
    if pixels.shape[1:] == (side, side):
        return pixels
    resized = (Pillow.fromarray(band).resize((side, side), Pillow.Resampling.BILINEAR) for band in pixels)
    return np.stack([np.asarray(band) for band in resized])


def _pixels(big: Big, rows: int, columns: int) -> Pixels:
    """Read the smallest copy in the file of that size or more, and of what is too large for memory the areas' means."""
    level = [one for one in big.levels if one.height >= rows and one.width >= columns][-1]
    if isinstance(level, Cells) and level.height * level.width <= AT_ONCE:
        return level.read((0, 0, level.height, level.width))
    return big.reduced(rows, columns)


def read_all(
    examples: Sequence[Example],
    side: int,
    channels: Channels,
    folder: Path | None = None,
    change: Callable[[Pixels], Pixels] | None = None,
    *,
    in_memory: int = IN_MEMORY,
) -> tuple[Pixels, tuple[Example, ...], tuple[str, ...]]:
    """Read many: uint8[n, channels, side, side], the examples that they are of, and a sentence on each that failed.

    folder     where more than `in_memory` bytes of pixels are kept in a file without a name, which is mapped into
               memory and gone with the array; None keeps all of them in memory
    change     of each image, uint8[channels, side, side]
    Raises ImageError when the folder's disk is full.
    """
    kept: list[Example] = []
    problems: list[str] = []

    def read() -> Iterator[Pixels]:
        for example in examples:
            try:
                pixels = read_whole(example.path, side, channels)
            except ImageError as error:
                problems.append(str(error))
            else:
                kept.append(example)
                yield pixels if change is None else change(pixels)

    shape = (len(examples), channels, side, side)
    if folder is None or math.prod(shape) <= in_memory:
        held = np.empty(shape, np.uint8)
        for place, pixels in enumerate(read()):
            held[place] = pixels
        return held[: len(kept)], tuple(kept), tuple(problems)
    mapped = _mapped(read(), folder, shape)
    return mapped, tuple(kept), tuple(problems)


def _mapped(images: Iterator[Pixels], folder: Path, shape: tuple[int, ...]) -> Pixels:
    """Write images to a file one by one, and map it; the array has as many as came."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            count = 0
            for pixels in images:
                file.write(np.ascontiguousarray(pixels).data)
                count += 1
            file.flush()
            if count == 0:
                return np.empty((0, *shape[1:]), np.uint8)
            return np.memmap(file, np.uint8, "r+", shape=(count, *shape[1:]))
    except OSError as error:
        raise ImageError(
            f"{math.prod(shape) / 1e9:.1f} GB of images to learn from have no room in the trainer's folder "
            f"({error.strerror}); make room there, or give the run a smaller side"
        ) from error


def _check_finite(path: Path) -> None:
    """Refuse an image of floats with one that is no number: a patch may lack some, a whole image hides that."""
    with open_image(find_image(path)) as image:
        if image.dtype.kind != "f":
            return
        count = sum(int(tile.values.size - np.isfinite(tile.values).sum()) for tile in image.tiles(image.bands))
    if count:
        raise ImageError(f"{path.name}: {count} pixels are NaN or infinite; expected numbers, export the image again")
