"""Images of different looks: brought to one look, features aligned (CORAL), normalisations kept at home (FedBN).

A look is a map of grey levels, one table of 256 numbers for each channel of each image: a change that any scanner's
contrast, brightness or gamma can be undone by, and that blur and noise cannot.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from agent_trainer.algorithms import Weights
from cairn.errors import ConfigError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Levels: TypeAlias = npt.NDArray[np.int64]

GREYS: Final = 256
MEAN, DEVIATION = 0.5, 0.2  # of all levels, that "standardise" brings an image to
FLAT: Final = 1.0  # levels; an image with a smaller deviation is only moved
STEPS: Final = 1024  # in which a reference's quantiles are looked up
NORMALISATIONS: Final = "norm"  # in keep_local: whatever the layers are called
KINDS: Final = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class Domain(BaseModel):
    """What is done about sites, scanners and stains that look different; nothing by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # what is done to every image, also in use: its levels standardised, or their histogram made that of a reference
    look: Literal["none", "standardise", "histogram"] = "none"
    # the reference: levels at evenly spaced quantiles from 0 to 1, rising; () spreads them evenly over 0 … 255
    reference: tuple[float, ...] = ()
    # names of weights that stay at a site, by pattern; "norm" is every normalisation, parameters and statistics: FedBN
    keep_local: tuple[str, ...] = ()
    coral: float = Field(0.0, ge=0)  # weight of the CORAL loss between images to learn from and those of `target`
    target: str = "target"  # under which word a site files its images of the other look; what they show is not used

    @model_validator(mode="after")
    def _fits(self) -> Self:
        levels = self.reference
        if len(levels) == 1 or not all(0 <= level < GREYS for level in levels) or list(levels) != sorted(levels):
            raise ValueError("reference must be two or more levels from 0 to 255 that do not fall, or left out")
        if levels and self.look != "histogram":
            raise ValueError(f'a reference is there, but look is "{self.look}"; set look to "histogram"')
        return self


def level_counts(images: Pixels) -> Levels:
    """Count each level of each channel: int64[channels, 256] of uint8[n, channels, h, w]. Sites' counts add."""
    return np.stack([np.bincount(images[:, c].ravel(), minlength=GREYS) for c in range(images.shape[1])])


def reference_of(counts: Levels, quantiles: int = 33) -> tuple[float, ...]:
    """Return the levels at evenly spaced quantiles, over all channels together: a reference for `Domain`.

    Q(u) = min {v : Σ_{v' ≤ v} c_{v'} ≥ u·n},  u = 0, 1/(q - 1), …, 1

    counts  int64[channels, 256], at least one
    """
    summed = counts.sum(axis=0).cumsum()
    wanted = np.linspace(0, 1, quantiles) * summed[-1]
    return tuple(float(v) for v in np.searchsorted(summed, np.maximum(wanted, 1e-9), side="left").clip(0, GREYS - 1))


def lookup(reference: Sequence[float]) -> Pixels:
    """Return the reference's level at each of STEPS + 1 quantiles from 0 to 1, linear in between: uint8[STEPS + 1]."""
    levels = np.asarray(reference or (0.0, GREYS - 1.0))
    at = np.interp(np.linspace(0, 1, STEPS + 1), np.linspace(0, 1, len(levels)), levels)
    found: Pixels = np.rint(at).astype(np.uint8)
    return found


def tables(images: Pixels, settings: Domain) -> Pixels:
    """Return what each level of each channel becomes: uint8[n, channels, 256] of uint8[n, channels, h, w].

    standardise  v → 256·(MEAN + DEVIATION·(v - μ)/σ), μ and σ of the channel of this image, cut to 0 … 255
    histogram    v → Q(F(v)), F the share of the channel's pixels below v with half of those at v, so that an image
                 of the reference's histogram stays as it is, but for rounding
    """
    n, channels = images.shape[:2]
    counts = np.stack([level_counts(image[np.newaxis]) for image in images]) if n else np.zeros((0, channels, GREYS))
    pixels = np.maximum(counts.sum(axis=2, keepdims=True), 1)
    levels = np.arange(GREYS)
    if settings.look == "histogram":
        share = (counts.cumsum(axis=2) - counts / 2) / pixels
        found: Pixels = lookup(settings.reference)[np.rint(share * STEPS).astype(np.int64)]
        return found
    if settings.look == "none":
        return np.broadcast_to(levels.astype(np.uint8), counts.shape).copy()
    mean = (counts * levels).sum(axis=2, keepdims=True) / pixels
    deviation = np.sqrt((counts * (levels - mean) ** 2).sum(axis=2, keepdims=True) / pixels)
    moved = GREYS * (MEAN + DEVIATION * (levels - mean) / np.maximum(deviation, FLAT))
    brought: Pixels = np.rint(moved).clip(0, GREYS - 1).astype(np.uint8)
    return brought


def looked(images: Pixels, settings: Domain) -> Pixels:
    """Bring images uint8[n, channels, h, w] to the run's look, each by itself."""
    if settings.look == "none":
        return images
    found = np.empty_like(images)
    for image, target in zip(images, found, strict=True):
        for table, band, out in zip(tables(image[np.newaxis], settings)[0], image, target, strict=True):
            np.take(table, band, out=out)
    return found


def covariance(features: Tensor) -> Tensor:
    """Return the unbiased covariance float[d, d] of features float[n, d], n at least 2."""
    centred = features - features.mean(0)
    found: Tensor = centred.T @ centred / (len(features) - 1)
    return found


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """Return how far the second moments of two batches of features are apart.

        L = ‖C_S - C_T‖²_F / (4·d²)        Sun & Saenko 2016, eq. 1

    source, target  float[n, d] and float[m, d], n and m at least 2
    """
    apart = covariance(source) - covariance(target)
    loss: Tensor = apart.square().sum() / (4 * source.shape[1] ** 2)
    return loss


def local_names(held: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Return which names of a module's weights stay at a site: by pattern, or those of all normalisations (FedBN).

    Li et al. 2021, algorithm 1, line 6: all layers but batch normalisation are averaged.
    Raises ConfigError for a pattern that fits nothing.
    """
    norms = {
        f"{place}.{name}" if place else name
        for place, layer in held.named_modules()
        if isinstance(layer, KINDS)
        for name in layer.state_dict()
    }
    names = list(held.state_dict())
    for one in patterns:
        if one != NORMALISATIONS and not any(fnmatchcase(name, one) for name in names):
            raise ConfigError(
                f'keep_local: no weight is called {one}; give a pattern such as {names[0]}, or "norm" for all '
                "normalisations"
            )
    return frozenset(
        name
        for name in names
        if any(name in norms if one == NORMALISATIONS else fnmatchcase(name, one) for one in patterns)
    )


def keep_own(federation: Weights, own: Weights, local: Collection[str]) -> Weights:
    """Return a round's weights with a site's own where these stay at home."""
    return {name: own[name] if name in local and name in own else array for name, array in federation.items()}
