"""From an image file to the uint8 array of a scene: read, made coarser, cut to slices, brought to 0 … 255."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.scenes.scene import check_spacing
from cairn.errors import ImageError
from cairn.images import Image, ImageSource, find_images, open_image

Values: TypeAlias = npt.NDArray[Any]
Spacing: TypeAlias = tuple[float, ...]

TRANSPARENCY = "A"
TOGETHER = "tiff-folder"  # the format of TIFFs that are the channels of one image


@dataclass(frozen=True)
class Picture:
    """What was read of one file.

    values      real numbers [depth, height, width]; colours are averaged
    spacing_mm  of slices, rows and columns; None where the file does not tell
    """

    values: Values
    spacing_mm: tuple[float | None, float | None, float | None]


def read_picture(source: ImageSource, band: str | None = None) -> Picture:
    """Read a whole image; of several bands the mean, or the one named. Raises ImageError."""
    with open_image(source) as image:
        bands = [band] if band is not None else [name for name in image.bands if name != TRANSPARENCY]
        dtype = image.dtype if len(bands) == 1 else np.dtype(np.float32)
        values = np.empty((image.depth, image.height, image.width), dtype)
        for tile in image.tiles(bands):
            _, h, w = tile.values.shape
            part = tile.values[0] if len(bands) == 1 else tile.values.mean(axis=0, dtype=np.float32)
            values[tile.z, tile.y : tile.y + h, tile.x : tile.x + w] = part
        return Picture(values, spacing_of(image))


def spacing_of(image: Image) -> tuple[float | None, float | None, float | None]:
    """Return the distance of slices, rows and columns in mm, as far as the file tells."""
    if image.spacing_um is not None:
        z, y, x = image.spacing_um
        return z / 1000, y / 1000, x / 1000
    side = None if image.pixel_size_um is None else image.pixel_size_um / 1000
    return None, side, side


def known_spacing(name: str, picture: Picture, given: Sequence[float] | None, axes: int) -> Spacing:
    """Return the spacing given in the settings, or else the file's. Raises ImageError when neither says."""
    return check_spacing(name, picture.spacing_mm[-axes:] if given is None else given, axes)


def coarser(values: Values, spacing_mm: Spacing, pixel_mm: float | None) -> tuple[Values, Spacing, Spacing]:
    """Average blocks of whole pixels until pixels are about as large as asked, never smaller than they were.

    values   [channels, (z,) y, x]; edges are repeated to fill the last blocks
    returns  float32 values or those given, their spacing, and where the first pixel's centre now lies in mm from where
             it was, to be taken off every place
    """
    blocks = [1 if pixel_mm is None else max(1, round(pixel_mm / side)) for side in spacing_mm]
    if max(blocks) == 1:
        return values, spacing_mm, (0.0,) * len(spacing_mm)
    rest = [(0, -side % block) for side, block in zip(values.shape[1:], blocks, strict=True)]
    padded = np.pad(values.astype(np.float32), [(0, 0), *rest], mode="edge")
    shape = [padded.shape[0]]
    for side, block in zip(padded.shape[1:], blocks, strict=True):
        shape += [side // block, block]
    means = padded.reshape(shape).mean(axis=tuple(range(2, len(shape), 2)))
    larger = tuple(side * block for side, block in zip(spacing_mm, blocks, strict=True))
    shift = tuple(side * (block - 1) / 2 for side, block in zip(spacing_mm, blocks, strict=True))
    return means, larger, shift


def four_slices(depth: int, middle: int) -> list[int]:
    """Choose four sequential slices with `middle` as the second; at the ends of a stack the nearest four.

    A stack of fewer than four repeats its last.
    """
    first = max(0, min(middle - 1, depth - 4))
    return [min(first + i, depth - 1) for i in range(4)]


def images_by_name(folder: Path) -> Mapping[str, ImageSource]:
    """Find the images of a folder by path and by file name, both also without ending; ambiguous names are left out.

    Single-channel TIFFs of one folder are one image, as everywhere, and each is one by its own name, as X-rays are.
    Raises ImageError when there is no such folder.
    """
    found: dict[str, ImageSource | None] = {}
    sources = find_images(folder)
    apart = [one for source in sources if source.format == TOGETHER for one in taken_apart(source, folder)]
    for source in (*sources, *apart):
        plain = source.name.split(".")[0]
        for name in {source.id, source.name, plain, source.id[: len(source.id) - len(source.name)] + plain}:
            found[name] = None if name in found and found[name] != source else source
    return {name: source for name, source in found.items() if source is not None}


def taken_apart(source: ImageSource, folder: Path) -> tuple[ImageSource, ...]:
    """Return each file of single-channel TIFFs that were taken for one image as an image; another source as it is."""
    if source.format != TOGETHER:
        return (source,)
    return tuple(ImageSource(path.relative_to(folder).as_posix(), (path,), "tiff") for path in source.paths)


def image_named(name: str, images: Mapping[str, ImageSource]) -> ImageSource:
    """Find the image of a landmark file's row. Raises ImageError."""
    source = images.get(name)
    if source is None:
        raise ImageError(f"{name}: no image of this name; expected one in the source's folder of images")
    return source
