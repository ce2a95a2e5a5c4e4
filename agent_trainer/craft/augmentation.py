"""Changes pictures at random as they are learned from, in two and in three dimensions, image and mask alike.

Each change happens to each image by its own probability, in this order: flip; crop, zoom, rotate, shift and elastic in
one map of places (`warps`), so that pixels are read only once; smooth; sharpen; contrast; intensity shift; noise. An
image's values stay in [0, 1]. Masks are flipped and moved with it, by the nearest pixel; the others leave them alone.

Paper 2, §3.1, has a probability for each change and executes it when r >= a, which is a probability of 1 - a as
printed; here a setting is the probability that the change happens.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from agent_trainer.craft.warps import Outside, along, displacements, kernel, move, turn
from cairn.errors import ConfigError, ImageError

NAMES: Final = (
    "flip",
    "crop",
    "zoom",
    "rotate",
    "shift",
    "elastic",
    "smooth",
    "sharpen",
    "contrast",
    "intensity_shift",
    "noise",
)  # in the order in which they happen
PLACES: Final = NAMES[1:6]  # in one map of places
TONES: Final = NAMES[6:]  # of values, which stay where they are
Floats = npt.NDArray[np.float64]


class Augmentation(BaseModel):
    """How likely each change of an image is, and how strong it is at most; as it comes, nothing is changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # probabilities, of each image for itself
    sharpen: float = Field(0.0, ge=0, le=1)
    smooth: float = Field(0.0, ge=0, le=1)
    noise: float = Field(0.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, le=1)
    intensity_shift: float = Field(0.0, ge=0, le=1)
    flip: float = Field(0.0, ge=0, le=1)  # of each of flip_axes for itself
    rotate: float = Field(0.0, ge=0, le=1)
    elastic: float = Field(0.0, ge=0, le=1)
    zoom: float = Field(0.0, ge=0, le=1)
    shift: float = Field(0.0, ge=0, le=1)
    crop: float = Field(0.0, ge=0, le=1)

    # strengths; each image's own is drawn between none and this. Ours: no paper gives any but Simard's
    sharpen_amount: float = Field(1.0, gt=0, le=10)  # how often the image less its smooth self is added to it
    smooth_sigma: float = Field(1.0, gt=0, le=20)  # pixels, the Gaussian's deviation
    noise_deviation: float = Field(0.05, gt=0, le=1)  # of Gaussian noise, 1 being the whole range of values
    contrast_gamma: float = Field(1.5, gt=1, le=10)  # the power between 1 / this and this, within the image's range
    intensity_amount: float = Field(0.1, gt=0, le=1)  # added or taken away, 1 being the whole range of values
    flip_axes: tuple[int, ...] = ()  # of the picture, 0 its rows (up and down); (): all. Hearts are left: take none
    rotate_degrees: float = Field(15.0, gt=0, le=180)  # either way; in three dimensions in each plane of two axes
    # Simard's α = 34 at σ = 4 on 29 pixels moves a pixel by 0.048 of the side along each axis, with σ 0.14 of it
    elastic_amount: float = Field(0.02, gt=0, le=0.2)  # root mean square along an axis, of the shortest side
    elastic_smoothness: float = Field(0.1, gt=0, le=1)  # σ, of the shortest side
    zoom_factor: float = Field(1.2, gt=1, le=4)  # between 1 / this and this
    shift_share: float = Field(0.1, gt=0, le=1)  # of each side, either way
    crop_share: float = Field(0.8, gt=0, lt=1)  # of each side that is left at least, brought to the old size
    outside: Outside = "reflection"  # what stands where the picture has ended

    @property
    def off(self) -> bool:
        """Whether nothing can happen."""
        return not any(self.probabilities())

    def probabilities(self) -> tuple[float, ...]:
        """Return all probabilities in the order of NAMES."""
        return tuple(float(getattr(self, name)) for name in NAMES)

    def moving(self) -> tuple[str, ...]:
        """Name what can happen to places."""
        return tuple(name for name in NAMES if name not in TONES and getattr(self, name))

    def check(self, axes: int) -> None:
        """Refuse a flip along an axis that images of so many lack. Raises ValueError."""
        if beyond := [axis for axis in self.flip_axes if axis >= axes]:
            raise ValueError(f"augmentation.flip_axes names axis {beyond[0]}; the images have axes 0 to {axes - 1}")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.elastic_amount > 0.4 * self.elastic_smoothness:
            raise ValueError(
                f"elastic_amount {self.elastic_amount:g} is more than 0.4 of elastic_smoothness "
                f"{self.elastic_smoothness:g}, so that the picture would fold; lower the one or raise the other"
            )
        if len(set(self.flip_axes)) != len(self.flip_axes) or any(axis not in (0, 1, 2) for axis in self.flip_axes):
            raise ValueError(f"flip_axes are {list(self.flip_axes)}; name axes 0, 1 or 2 once each, or none for all")
        return self


@dataclass(frozen=True)
class Drawn:
    """What happens to each of N images of d dimensions; a strength is there also where its change does not happen.

    happens  bool[N, 11], in the order of NAMES
    flips    bool[N, d], the axes
    crop     float64[N, 1 + d]: the share left, and its place in -1 … 1 along each axis
    zoom     float64[N], the factor; over 1 makes things larger
    angles   float64[N, 1 or 3], radians
    shift    float64[N, d], of each side
    smooth, sharpen, contrast, intensity, noise
             float64[N]: the deviation in pixels, the amount, the power, what is added, the noise's deviation
    """

    happens: npt.NDArray[np.bool_]
    flips: npt.NDArray[np.bool_]
    crop: Floats
    zoom: Floats
    angles: Floats
    shift: Floats
    smooth: Floats
    sharpen: Floats
    contrast: Floats
    intensity: Floats
    noise: Floats

    def names(self, image: int) -> tuple[str, ...]:
        """Name what happens to one image, in order."""
        return tuple(name for name, yes in zip(NAMES, self.happens[image].tolist(), strict=True) if yes)


def draw(many: int, axes: int, settings: Augmentation, rng: np.random.Generator) -> Drawn:
    """Draw what happens to so many images, of two or three axes. Raises ConfigError for an axis that they lack.

    As many numbers are drawn whatever the probabilities are, so that one change's does not alter another's draws.
    """
    try:
        settings.check(axes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    s, chance = settings, rng.random((many, len(NAMES)))
    flips = rng.random((many, axes)) < s.flip
    flips &= np.array([not s.flip_axes or axis in s.flip_axes for axis in range(axes)])
    happens = chance < np.array(s.probabilities())
    happens[:, NAMES.index("flip")] = flips.any(1)
    crop = np.column_stack([rng.uniform(s.crop_share, 1, many), rng.uniform(-1, 1, (many, axes))])
    turned = math.radians(s.rotate_degrees)
    return Drawn(
        happens,
        flips,
        crop,
        s.zoom_factor ** rng.uniform(-1, 1, many),
        rng.uniform(-turned, turned, (many, 1 if axes == 2 else 3)),
        rng.uniform(-s.shift_share, s.shift_share, (many, axes)),
        s.smooth_sigma * rng.uniform(0.25, 1, many),  # far below a quarter of it nothing is smoothed
        rng.uniform(0, s.sharpen_amount, many),
        s.contrast_gamma ** rng.uniform(-1, 1, many),
        rng.uniform(-s.intensity_amount, s.intensity_amount, many),
        rng.uniform(0, s.noise_deviation, many),
    )


def augment(
    images: Tensor, masks: Tensor | None, settings: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Change each image at random, and its mask alike; what went in is left as it was.

    images  float32[N, C, *S], S of two or three axes, in [0, 1]
    masks   int64[N, *S], labels; or None
    returns the same shapes. Without any probability over 0 it is what went in, and nothing is drawn
    Raises ImageError when shapes do not fit, ConfigError for a flip along an axis that is not there.
    """
    _check(images, masks)
    if settings.off:
        return images, masks
    drawn = draw(len(images), images.dim() - 2, settings, rng)
    return apply(images, masks, drawn, settings, rng)


def apply(
    images: Tensor, masks: Tensor | None, drawn: Drawn, settings: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Do what was drawn; the generator is for noise and elastic distortion. Shapes as of `augment`."""
    images, masks = images.clone(), None if masks is None else masks.clone()
    for i in np.flatnonzero(drawn.flips.any(1)).tolist():
        axes = [int(axis) for axis in np.flatnonzero(drawn.flips[i])]
        images[i] = images[i].flip([axis + 1 for axis in axes])
        if masks is not None:
            masks[i] = masks[i].flip(axes)
    if moving := np.flatnonzero(drawn.happens[:, [NAMES.index(name) for name in PLACES]].any(1)).tolist():
        moved, labels = _moved(images[moving], None if masks is None else masks[moving], moving, drawn, settings, rng)
        images[moving] = moved
        if masks is not None and labels is not None:
            masks[moving] = labels
    for i, happens in enumerate(drawn.happens.tolist()):
        old = images[i]
        new = _toned(old, dict(zip(NAMES, happens, strict=True)), drawn, i, rng)
        if new is not old:
            images[i] = new
    return images, masks


def augment_pixels(
    pixels: npt.NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Change images of whole bytes, uint8[N, C, *S], as `augment` does; rounded again."""
    if settings.off:
        return pixels
    changed, _ = augment(torch.from_numpy(pixels).to(torch.float32).div_(255), None, settings, rng)
    found: npt.NDArray[np.uint8] = changed.mul(255).round_().to(torch.uint8).numpy()
    return found


def _moved(
    images: Tensor,
    masks: Tensor | None,
    chosen: list[int],
    drawn: Drawn,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor | None]:
    size = np.array(images.shape[2:], np.float64)
    happens = {name: drawn.happens[chosen, NAMES.index(name)] for name in PLACES}
    share = np.where(happens["crop"], drawn.crop[chosen, 0], 1.0)
    offsets = drawn.crop[chosen, 1:] * (1 - share[:, None]) * (size - 1) / 2
    zoom = np.where(happens["zoom"], drawn.zoom[chosen], 1.0)
    angles = np.where(happens["rotate"][:, None], drawn.angles[chosen], 0.0)
    matrices = np.stack([turn(a).T for a in angles]) * (share / zoom)[:, None, None]
    shifts = np.where(happens["shift"][:, None], drawn.shift[chosen], 0.0) * size
    elastic = None
    if happens["elastic"].any():
        shortest = float(size.min())
        amount, smoothness = settings.elastic_amount * shortest, settings.elastic_smoothness * shortest
        elastic = torch.zeros(len(chosen), len(size), *images.shape[2:])
        which = np.flatnonzero(happens["elastic"]).tolist()
        elastic[which] = displacements(len(which), images.shape[2:], amount, smoothness, rng)
    return move(images, masks, matrices, offsets, shifts, elastic, settings.outside)


def _toned(image: Tensor, happens: dict[str, bool], drawn: Drawn, i: int, rng: np.random.Generator) -> Tensor:
    """Change one image's values; what is not changed is returned itself."""
    x = image
    if happens["smooth"]:
        x = smoothed(x, float(drawn.smooth[i]))
    if happens["sharpen"]:
        x = sharpened(x, float(drawn.sharpen[i]))
    if happens["contrast"]:
        x = contrasted(x, float(drawn.contrast[i]))
    if happens["intensity_shift"]:
        x = x + float(drawn.intensity[i])
    if happens["noise"]:
        noise = rng.standard_normal(tuple(x.shape), np.float32) * np.float32(drawn.noise[i])
        x = x + torch.from_numpy(noise).to(x.device)
    return x if x is image else x.clamp(0, 1)


def smoothed(image: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of so many pixels' deviation, the edge going on: float32[C, *S]."""
    weights = kernel(sigma)
    for axis in range(1, image.dim()):
        radius = len(weights) // 2
        edge = [image.narrow(axis, place, 1) for place in (0, image.shape[axis] - 1)]
        first, last = (one.expand([radius if a == axis else -1 for a in range(image.dim())]) for one in edge)
        image = along(torch.cat([first, image, last], axis), weights, axis)
    return image


def sharpened(image: Tensor, amount: float) -> Tensor:
    """Add what smoothing by one pixel takes away: x + a (x - G x), the unsharp mask."""
    return image + amount * (image - smoothed(image, 1.0))


def contrasted(image: Tensor, gamma: float) -> Tensor:
    """Raise to a power within the image's own range: (x - min) / range ↦ its γ-th power, as MONAI's AdjustContrast."""
    low, high = image.min(), image.max()
    width = (high - low).clamp_min(1e-7)
    return ((image - low) / width).pow(gamma) * width + low


def _check(images: Tensor, masks: Tensor | None) -> None:
    if images.dim() not in (4, 5):
        raise ImageError(
            f"images to augment are {tuple(images.shape)}; expected images, channels, and two or three axes"
        )
    if masks is not None and (len(masks), *masks.shape[1:]) != (len(images), *images.shape[2:]):
        raise ImageError(
            f"masks are {tuple(masks.shape)} where images are {tuple(images.shape)}; each image needs a mask of its "
            "own size"
        )
