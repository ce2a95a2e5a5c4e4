"""An image as the learner sees it: small for the attention, in patches for the classifier, changed by augmentation.

The change is of places and not of pixels, so that a slide is flipped and zoomed without being read.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.craft.augmentation import Augmentation, augment_pixels

Pixels = npt.NDArray[np.uint8]


class Readable(Protocol):
    """An image that patches can be cut from, as `patches.Big`."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    def patches(self, corners: npt.NDArray[np.int64], side: int) -> Pixels:
        """Cut patches, uint8[P, channels, side, side]. Raises ImageError."""


class Changing:
    """An image whose patches are augmented as they are cut: each for itself, and another time in another way.

    What lies outside a patch is not read: where one is turned or moved, its own mirror image comes in at the edge.
    """

    def __init__(self, image: Readable, settings: Augmentation, rng: np.random.Generator) -> None:
        self._image, self._settings, self._rng = image, settings, rng
        self.height, self.width = image.height, image.width

    def patches(self, corners: npt.NDArray[np.int64], side: int) -> Pixels:
        """Cut patches; see `Readable`. Raises ImageError."""
        return augment_pixels(self._image.patches(corners, side), self._settings, self._rng)


@dataclass(frozen=True)
class Change:
    """What augmentation does: source place = scale · place + shift, with -1 and 1 the image's edges, as torch has it.

    scale     of rows and columns: ±1 / zoom, negative for a flip
    shift     of rows and columns
    contrast  factor about the image's mean
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    contrast: float = 1.0


def draw_change(config: AttentionConfig, rng: np.random.Generator) -> Change:
    """Draw flips, contrast and a zoom at a random place; paper 4 §III.A."""
    inside = 1 / rng.uniform(1, config.zoom)
    signs = rng.choice([-1, 1], 2) if config.flips else (1, 1)
    shift = rng.uniform(inside - 1, 1 - inside, 2)
    contrast = float(rng.uniform(1 - config.contrast, 1 + config.contrast))
    return Change((float(signs[0]) * inside, float(signs[1]) * inside), (float(shift[0]), float(shift[1])), contrast)


def map_shape(config: AttentionConfig, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of an image's map: c pixels to a cell, more where the map would pass map_side."""
    c = max(config.reduction, -(-max(height, width) // config.map_side))
    return max(1, height // c), max(1, width // c)


@dataclass(frozen=True)
class View:
    """One image under one change.

    image    where patches come from
    low      uint8[channels, h, w], the whole of it averaged into the map's cells
    density  float32[h, w], rows and columns of the map: the prior, sums to 1; or None
    """

    image: Readable
    low: Pixels
    density: npt.NDArray[np.float32] | None = None
    change: Change = Change()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.low.shape[1], self.low.shape[2]

    def map_input(self) -> Tensor:
        """Return what the attention network sees, float32[channels, h, w] in 0 … 1."""
        pixels = self._moved(torch.from_numpy(self.low).to(torch.float32))
        return self._contrasted(pixels) / 255

    def prior(self) -> Tensor | None:
        """Return the density of each cell, float32[h·w] that sums to 1; None without one, or where there is none."""
        if self.density is None:
            return None
        moved = self._moved(torch.from_numpy(self.density)[None]).flatten()
        return moved / moved.sum() if moved.sum() > 0 else None

    def corners(self, cells: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.int64]:
        """Return row and column in the image of the first pixel of each cell's patch, int64[P, 2].

        The patch lies about the cell's middle, moved inside where it would pass the image's edge.
        """
        source = self.source_side(side)
        places = np.stack(np.unravel_index(cells, self.shape), 1)
        middles = 2 * (places + 0.5) / self.shape - 1
        size = np.array([self.image.height, self.image.width])
        pixels = (np.array(self.change.scale) * middles + self.change.shift + 1) / 2 * size
        corners: npt.NDArray[np.int64] = np.clip(np.rint(pixels - source / 2), 0, size - source).astype(np.int64)
        return corners

    def source_side(self, side: int) -> int:
        """Return how many of the image's pixels a side of a patch is made of."""
        return max(1, round(side * abs(self.change.scale[0])))

    def patches(self, cells: npt.NDArray[np.int64], side: int) -> Pixels:
        """Cut the patches of cells, uint8[P, channels, side, side] of int64[P].

        Raises ImageError for an image smaller than a patch, or pixels that cannot be read.
        """
        cut = self.image.patches(self.corners(cells, side), self.source_side(side))
        if self.change == Change():
            return cut
        pixels = torch.from_numpy(cut).to(torch.float32)
        if pixels.shape[-1] != side:
            pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        if flipped := [axis + 2 for axis in (0, 1) if self.change.scale[axis] < 0]:
            pixels = pixels.flip(flipped)
        changed: Pixels = self._contrasted(pixels).round_().to(torch.uint8).numpy()
        return changed

    def _moved(self, plane: Tensor) -> Tensor:
        (sy, sx), (ty, tx) = self.change.scale, self.change.shift
        if (sy, sx, ty, tx) == (1, 1, 0, 0):
            return plane
        theta = torch.tensor([[[sx, 0, tx], [0, sy, ty]]], dtype=torch.float32)
        grid = functional.affine_grid(theta, [1, *plane.shape], align_corners=False)
        moved: Tensor = functional.grid_sample(plane[None], grid, padding_mode="border", align_corners=False)[0]
        return moved

    def _contrasted(self, pixels: Tensor) -> Tensor:
        if self.change.contrast == 1:
            return pixels
        mean = float(self.low.mean())
        return ((pixels - mean) * self.change.contrast + mean).clamp_(0, 255)


def on_map(density: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """Bring a density of any size to the map's cells, float32[h, w] that sums to 1; None where there is none of it."""
    plane = torch.from_numpy(np.nan_to_num(np.ascontiguousarray(density, np.float32)).clip(0))[None, None]
    cells = functional.adaptive_avg_pool2d(plane, shape)[0, 0]
    total = float(cells.sum())
    return (cells / total).numpy().astype(np.float32) if total > 0 else None


def rarity(low: Pixels, levels: int = 8) -> npt.NDArray[np.float32]:
    """Return how rare each cell's colour is in its own image, float32[h, w] that sums to 1.

        density(p) ∝ 1 / f(key(p)),  key = each channel cut into levels between its least and largest

    All colours that occur are so drawn equally often, as the replay of DQN runs draws all kinds of transitions.
    low  uint8[channels, h, w]
    """
    values = low.reshape(len(low), -1).astype(np.float64)
    least, most = values.min(1, keepdims=True), values.max(1, keepdims=True)
    digits = np.minimum((values - least) / np.maximum(most - least, 1) * levels, levels - 1).astype(np.int64)
    keys = levels ** np.arange(len(low)) @ digits
    inverse = 1 / np.bincount(keys)[keys]
    density: npt.NDArray[np.float32] = (inverse / inverse.sum()).reshape(low.shape[1:]).astype(np.float32)
    return density
