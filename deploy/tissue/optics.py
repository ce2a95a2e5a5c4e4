"""The microscope: fluorophores through 5 broad filters × 7 narrow bands, illumination, camera.

    electrons[band] = flat · exposure · Σ_f abundance[f] · mixing[f, band]
    pixel[band]     = clip(rint(gain · (Poisson(electrons) + read noise) + OFFSET), 0, 65535)

Peaks of excitation and emission are rounded from the makers' published figures; the shapes are asymmetric Gaussians.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

OFFSET: Final = 100
"""Level of a pixel that no light has reached: the camera's digital offset."""
READ_NOISE: Final = 3.0  # electrons, root mean square
FULL_SCALE: Final = 1500.0  # electrons in the best band of a fluorophore of abundance 1
GLASS_LIGHT: Final = 0.006  # abundance of the autofluorescence spectrum of an empty slide
BAND_STEP: Final = 20  # nm, the tunable filter's step and width
BANDS_PER_FILTER: Final = 7

# Filter cubes: excitation nm, centre of the first narrow band nm. The names are those on the microscope's wheel.
FILTERS: Final[dict[str, tuple[float, int]]] = {
    "DAPI": (385.0, 430),
    "FITC": (485.0, 510),
    "Cy3": (545.0, 565),
    "TxRed": (588.0, 610),
    "Cy5": (635.0, 655),
}
BANDS: Final[tuple[str, ...]] = tuple(
    f"{name}-{first + BAND_STEP * i}" for name, (_, first) in FILTERS.items() for i in range(BANDS_PER_FILTER)
)

# Fluorophore: excitation peak and blue-side width, emission peak and red-side width; nm.
FLUOROPHORES: Final[dict[str, tuple[float, float, float, float]]] = {
    "DAPI": (365.0, 40.0, 461.0, 48.0),
    "Opal 480": (450.0, 34.0, 500.0, 26.0),
    "Opal 520": (494.0, 28.0, 525.0, 22.0),
    "Opal 540": (523.0, 24.0, 542.0, 20.0),
    "Opal 570": (550.0, 24.0, 572.0, 20.0),
    "Opal 620": (588.0, 26.0, 618.0, 22.0),
    "Opal 650": (627.0, 26.0, 652.0, 20.0),
    "Opal 690": (660.0, 30.0, 694.0, 24.0),
}
MARKERS: Final[dict[str, str]] = {
    "DNA": "DAPI",
    "CD68": "Opal 480",
    "CD8": "Opal 520",
    "CD4": "Opal 540",
    "CD20": "Opal 570",
    "SMA": "Opal 620",
    "CD31": "Opal 650",
    "PanCK": "Opal 690",
}
"""What each fluorophore is bound to, in the order of the abundances; autofluorescence follows as the last."""
SOURCES: Final = len(MARKERS) + 1


def _bell(x: Array, peak: float, blue: float, red: float) -> Array:
    return np.exp(-0.5 * ((x - peak) / np.where(x < peak, blue, red)) ** 2, dtype=np.float32)


def mixing_matrix() -> Array:
    """Return what each source lends to each band: excitation × emission, the brightest band of a source being 1.

    returns float32[SOURCES, bands], in [0, 1]; the last row is the autofluorescence of tissue, blue to green
    """
    excitation = np.repeat(np.array([light for light, _ in FILTERS.values()], np.float32), BANDS_PER_FILTER)
    emission = np.array([int(band.rsplit("-", 1)[1]) for band in BANDS], np.float32)
    # A narrow band passes 20 nm: average the emission over it.
    within = emission[:, None] + np.linspace(-0.45, 0.45, 7, dtype=np.float32) * BAND_STEP
    rows = [
        _bell(excitation, ex_peak, ex_width, 0.6 * ex_width) * _bell(within, em_peak, 11.0, em_width).mean(1)
        for ex_peak, ex_width, em_peak, em_width in FLUOROPHORES.values()
    ]
    rows.append(np.exp(-(excitation - 385) / 110, dtype=np.float32) * _bell(within, 520.0, 60.0, 85.0).mean(1))
    matrix = np.stack(rows).astype(np.float32)
    return np.asarray(matrix / matrix.max(axis=1, keepdims=True), dtype=np.float32)


MIXING: Final = mixing_matrix()


def best_band(marker: str) -> str:
    """Return the band where a marker's own fluorophore stands highest over all the other sources together."""
    row = list(MARKERS).index(marker)
    others = MIXING.sum(axis=0) - MIXING[row]
    return BANDS[int(np.argmax(MIXING[row] / (others + 0.15)))]


def marker_bands(*markers: str) -> tuple[str, ...]:
    """Return the best bands of some markers, each band once."""
    return tuple(dict.fromkeys(best_band(marker) for marker in markers))


@dataclass(frozen=True)
class Scanner:
    """One site's microscope.

    gain        counts per electron, times a small difference per filter; float32[bands]
    vignetting  light lost at a field's corner, per filter wheel position; float32[bands], 0 to 0.3
    centre      of the illumination, in field widths off the middle; (y, x)
    """

    gain: Array
    vignetting: Array
    centre: tuple[float, float]

    def flat_field(self, size: int) -> Array:
        """Return the illumination of one camera field: 1 at its brightest, falling with the square of the radius.

        returns float32[size, size], to be raised by a band: flat = 1 - vignetting[band]·(this)
        """
        y, x = (np.linspace(-1, 1, size, dtype=np.float32) - 2 * shift for shift in self.centre)
        return np.asarray((y[:, None] ** 2 + x**2) / 2, dtype=np.float32)


def make_scanner(rng: np.random.Generator) -> Scanner:
    """Draw a site's microscope: ±20 % about a gain of 4, ±1.5 % between filters, 8–18 % vignetting, lamp off centre."""
    by_filter = np.repeat(rng.normal(1, 0.015, len(FILTERS)), BANDS_PER_FILTER)
    vignetting = rng.uniform(0.08, 0.18) * np.repeat(rng.uniform(0.92, 1.08, len(FILTERS)), BANDS_PER_FILTER)
    return Scanner(
        gain=(4 * rng.uniform(0.8, 1.2) * by_filter).astype(np.float32),
        vignetting=vignetting.astype(np.float32),
        centre=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.08, 0.08))),
    )


def expose(abundance: Array, scanner: Scanner, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Photograph one camera field through all bands.

        k = (√(λ + σ²) + z/2)² - σ², z ~ N(0, 1): the mean λ (+1/4) and variance λ + σ² (+1/8) of a Poisson count with
        read noise σ, and the constant spread of its root (Anscombe 1948), at a tenth of the time of an exact draw.

    abundance  float32[SOURCES, h, w], 0 upwards
    returns    uint16[bands, h, w]
    """
    sources, height, width = abundance.shape
    light = abundance.reshape(sources, -1)
    field = max(height, width)
    radius = scanner.flat_field(field)[:height, :width].reshape(-1)
    image = np.empty((len(BANDS), height * width), np.uint16)
    noise = np.empty(height * width, np.float32)
    glass = np.float32(GLASS_LIGHT) * MIXING[-1] + np.float32(0.004)
    for band in range(len(BANDS)):
        electrons = MIXING[:, band] @ light
        electrons += glass[band]
        electrons *= np.float32(FULL_SCALE) * (1 - scanner.vignetting[band] * radius)
        electrons += np.float32(READ_NOISE**2)
        np.sqrt(electrons, out=electrons)
        rng.standard_normal(out=noise, dtype=np.float32)
        noise *= np.float32(0.5)
        electrons += noise
        electrons *= electrons
        electrons -= np.float32(READ_NOISE**2)
        electrons *= scanner.gain[band]
        electrons += np.float32(OFFSET)
        np.rint(electrons, out=electrons)
        np.clip(electrons, 0, 65535, out=electrons)
        image[band] = electrons
    return image.reshape(len(BANDS), height, width)
