"""One image with its landmark for one task: what every source of scenes gives and every search runs on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Place: TypeAlias = npt.NDArray[np.float64]

CHANNELS = (1, 4)  # one, whose history of crops is the state; or four sequential slices (paper 1, §IV)
SAMPLED = 1 << 22  # pixels from which percentiles are taken; of larger images every k-th


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and where its landmark lies. Raises ImageError unless all of it holds together.

    name         the site's own, for messages at the site; never leaves it
    task         which landmark is searched
    image        uint8[channels, (depth,) height, width]; 1 channel, or 4 sequential slices
    spacing_mm   of each axis of the image, (y, x) or (z, y, x)
    landmark_mm  float64[axes] in the order of the axes, from the centre of the first pixel; None where nobody knows
    """

    name: str
    task: str
    image: Pixels
    spacing_mm: tuple[float, ...]
    landmark_mm: Place | None = None

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim not in (3, 4) or self.image.shape[0] not in CHANNELS:
            raise ImageError(
                f"{self.name}: found {self.image.dtype}{self.image.shape}; expected uint8 of 1 or 4 channels and two "
                "or three axes"
            )
        if self.image.size == 0:
            raise ImageError(f"{self.name}: found an image without pixels; expected at least one")
        check_spacing(self.name, self.spacing_mm, self.axes)
        if self.landmark_mm is None:
            return
        if self.landmark_mm.shape != (self.axes,):
            raise ImageError(
                f"{self.name}: the landmark of {self.task} has {self.landmark_mm.size} coordinates; expected "
                f"{self.axes}"
            )
        at = self.landmark_mm / self.spacing_mm
        if not ((at >= -0.5) & (at <= np.array(self.size) - 0.5)).all():  # NaN is neither
            raise ImageError(
                f"{self.name}: the landmark of {self.task} lies outside the image; expected mm from the first "
                f"pixel's centre, at most {_listed((np.array(self.size) - 1) * self.spacing_mm)} (x last); check the "
                "spacing and the order of the axes"
            )

    @property
    def axes(self) -> int:
        """2 or 3."""
        return self.image.ndim - 1

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels of each axis."""
        return self.image.shape[1:]

    @property
    def landmark_px(self) -> Place | None:
        """The landmark in pixels, float64[axes]; between pixels as a rule."""
        return None if self.landmark_mm is None else np.asarray(self.landmark_mm / self.spacing_mm)


def check_spacing(name: str, spacing_mm: Sequence[float | None], axes: int) -> tuple[float, ...]:
    """Return the spacing if it is one: positive numbers, one an axis. Raises ImageError."""
    if len(spacing_mm) != axes or any(mm is None for mm in spacing_mm):
        raise ImageError(
            f"{name}: the file does not say how many mm a pixel is; set spacing_mm of its source, {axes} numbers in "
            f"the order {'z, y, x'[-3 * axes + 2 :]}"
        )
    known = tuple(float(mm) for mm in spacing_mm if mm is not None)
    if not all(np.isfinite(mm) and mm > 0 for mm in known):
        raise ImageError(f"{name}: found a spacing of {_listed(known)} mm; expected numbers above 0")
    return known


def as_bytes(values: npt.NDArray[Any], name: str, low: float = 1.0, high: float = 99.0) -> Pixels:
    """Bring intensities to 0 … 255: from one percentile to another, beyond them cut.

        v ↦ round(255 · (v - P_low) / (P_high - P_low))

    so that a scanner's gain and offset vanish. An image of one value becomes 0.

    values   real numbers of any shape
    Raises ImageError on NaN and infinity.
    """
    exact: npt.NDArray[Any] = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    if not np.isfinite(exact).all():
        count = int(exact.size - np.isfinite(exact).sum())
        raise ImageError(f"{name}: {count} pixels are NaN or infinite; expected numbers, export the image again")
    sample: npt.NDArray[np.float64] = exact.ravel()[:: -(-exact.size // SAMPLED)].astype(np.float64)
    first, last = np.percentile(sample, [low, high])
    if last <= first:  # nearly all pixels alike, as on a map of a few spots
        first, last = exact.min(), exact.max()
    if last <= first:
        return np.zeros(values.shape, np.uint8)
    return np.asarray(np.rint((exact - first) * (255 / (last - first))).clip(0, 255), dtype=np.uint8)


def _listed(numbers: Sequence[float] | Place) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
