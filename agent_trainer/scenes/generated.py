"""Made scenes: a trunk with organs, each a little different, in two or three dimensions.

Every organ lies at its place in the body, and the body gets darker from head to foot and rounder towards its rim, so
that a crop tells where it is.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from agent_trainer.scenes.scene import Pixels, Scene, as_bytes
from agent_trainer.scenes.settings import Generated, Look

Field: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Organ:
    """An ellipsoid in the body's frame, whose half width, height and depth are 1: (z, y, x), and its brightness."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    light: float


ORGANS: Final[dict[str, Organ]] = {
    "heart": Organ((0.05, -0.38, 0.12), (0.34, 0.15, 0.20), 0.30),
    "liver": Organ((0.00, 0.02, -0.38), (0.45, 0.17, 0.33), 0.16),
    "spleen": Organ((-0.10, 0.03, 0.58), (0.25, 0.13, 0.12), 0.24),
    "right-kidney": Organ((-0.20, 0.33, -0.35), (0.20, 0.14, 0.10), 0.34),
    "left-kidney": Organ((-0.20, 0.28, 0.35), (0.20, 0.14, 0.10), 0.34),
    "bladder": Organ((0.10, 0.72, 0.02), (0.22, 0.10, 0.16), -0.24),
}
"""What can be searched: a task is the centre of one of these."""

LUNGS: Final = (
    Organ((0.0, -0.42, -0.45), (0.55, 0.30, 0.27), -0.34),
    Organ((0.0, -0.42, 0.47), (0.55, 0.30, 0.26), -0.34),
)
SPINE: Final = Organ((-0.45, -0.25, 0.0), (0.16, 0.80, 0.07), 0.22)
BODY: Final = (0.80, 0.86, 0.72)  # half depth, height and width of the trunk in units of half the image
RIM: Final = 0.06  # width of an outline's slope, in the body's units


def generated_scenes(settings: Generated, axes: int) -> list[Scene]:
    """Make the images and, of each, a scene for every task; all of an image's scenes share its pixels."""
    scenes = []
    for number in range(settings.images):
        rng = np.random.default_rng([settings.seed, number])
        light, centres = make_body((settings.size,) * axes, rng)
        name = f"made-{settings.seed}-{number:04d}"
        image = photographed(light, settings.look, rng, name)[np.newaxis]
        spacing = (settings.spacing_mm,) * axes
        scenes += [
            Scene(name, task, image, spacing, centres[task] * settings.spacing_mm) for task in settings.tasks or ORGANS
        ]
    return scenes


def make_body(size: tuple[int, ...], rng: np.random.Generator) -> tuple[Field, dict[str, Field]]:
    """Draw one patient: light float64[size] in [0, 1], and the centre of each organ float64[axes] in px.

    Patients differ by a turn, a size, a shift and a smooth bend, each organ besides by a shift of its own.
    """
    axes = len(size)
    half = (np.array(size) - 1) / 2
    grid = np.stack(np.meshgrid(*((np.arange(n) - h) / h for n, h in zip(size, half, strict=True)), indexing="ij"))
    turn, scale, shift = rng.uniform(-0.12, 0.12), rng.uniform(0.9, 1.08, axes), rng.uniform(-0.08, 0.08, axes)
    bend = np.stack([_smooth(size, 0.35, rng) for _ in range(axes)]) * 0.035
    flat = grid.reshape(axes, -1)
    turned = _turn(flat - shift[:, None], turn).reshape(grid.shape)
    body_sizes = np.array(BODY[-axes:]) * scale
    at = turned / body_sizes.reshape(-1, *(1,) * axes) + bend  # each pixel's place in the body's frame

    inside = _soft(1 - np.linalg.norm(at, axis=0), RIM)
    light = 0.45 - 0.12 * at[-2] + 0.10 * np.linalg.norm(at, axis=0)  # brighter at the top and towards the rim
    places = {}
    for organ in (*LUNGS, SPINE):
        _add(light, at, organ, np.zeros(axes), axes)
    for name, organ in ORGANS.items():
        moved = rng.normal(0, 0.02, axes)
        _add(light, at, organ, moved, axes)
        # The bend at the place is hardly another one than at the unbent place: solve at(p) = centre by two steps.
        centre = np.array(organ.centre[-axes:]) + moved
        place = _place(centre, body_sizes, turn, shift)
        for _ in range(3):
            bent = _value_at(bend, (place + 1) * half)
            place = _place(centre - bent, body_sizes, turn, shift)
        places[name] = (place + 1) * half
    texture = 0.03 * _smooth(size, 0.05, rng)
    return np.asarray((inside * (light + texture)).clip(0, 1)), places


def photographed(light: Field, look: Look, rng: np.random.Generator, name: str) -> Pixels:
    """Show the body as a site's scanner would, and bring it to 0 … 255 as every scene's image is."""
    shown = look.gain * (1 - light if look.invert else light) ** look.gamma + look.offset
    return as_bytes(shown + look.gain * look.noise * rng.standard_normal(light.shape), name)


def _add(light: Field, at: Field, organ: Organ, moved: Field, axes: int) -> None:
    """Add an organ's brightness within its outline."""
    centre, radii = np.array(organ.centre[-axes:]) + moved, np.array(organ.radii[-axes:])
    shape = (-1, *(1,) * axes)
    away = np.linalg.norm((at - centre.reshape(shape)) / radii.reshape(shape), axis=0)
    light += organ.light * _soft(1 - away, 0.25)


def _soft(values: Field, width: float) -> Field:
    """Go from 0 to 1 where the values cross 0."""
    return np.asarray(1 / (1 + np.exp(-(values / (width / 4)).clip(-50, 50))))


def _turn(points: Field, angle: float) -> Field:
    """Turn points[axes, n] in the plane of the last two axes."""
    turned = points.copy()
    y, x = points[-2], points[-1]
    turned[-2], turned[-1] = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
    return turned


def _place(centre: Field, body: Field, turn: float, shift: Field) -> Field:
    """Take a place in the unbent body's frame back to the image's, in units of half the image."""
    return np.asarray(_turn((centre * body)[:, None], -turn)[:, 0] + shift)


def _smooth(size: tuple[int, ...], grain: float, rng: np.random.Generator) -> Field:
    """Draw a smooth field of unit variance with features of `grain` of the image's side."""
    coarse = [max(4, int(2 / grain)) for _ in size]
    knots = rng.standard_normal(coarse)
    field = ndimage.zoom(knots, [n / k for n, k in zip(size, coarse, strict=True)], order=3, mode="nearest")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9))


def _value_at(fields: Field, at: Field) -> Field:
    """Interpolate each of the fields [axes, …] at one place in px; float64[axes]."""
    return np.array([ndimage.map_coordinates(field, at[:, None], order=1, mode="nearest")[0] for field in fields])
