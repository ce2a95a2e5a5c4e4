"""Where things lie in a slice of tissue: nests, stroma, vessels, lymphoid aggregates, necrosis, glass; and the cells.

Regions are level sets of smooth random fields, kept on a coarse grid so that a slide of any size fits in memory;
stromal fibres run along the level lines of the tumour field, as they wrap round nests. Lengths are µm.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from deploy.tissue.optics import SOURCES

Field = npt.NDArray[np.float32]

PIXEL_UM: Final = 0.5
COARSE_UM: Final = 2.0  # grid of the region fields
UPTAKE: Final = 0.25  # spread (of the logarithm) of one dye's brightness from cell to cell


class Zone(IntEnum):
    """A region of the slide, by what fills it."""

    GLASS = 0
    TUMOUR = 1
    STROMA = 2
    INFILTRATE = 3  # stroma full of lymphocytes
    AGGREGATE = 4  # a lymphoid follicle: B cells in the middle, T cells round them
    NECROSIS = 5
    LUMEN = 6


class Cell(IntEnum):
    """A cell type: the value in the truth mask."""

    GLASS = 0
    TUMOUR = 1
    CYTOTOXIC_T = 2
    HELPER_T = 3
    B = 4
    MACROPHAGE = 5
    STROMA = 6  # fibroblasts and the matrix between them
    ENDOTHELIUM = 7
    NECROSIS = 8


# Long and short semi-axis of cell and nucleus, µm; indexed by Cell. Necrosis has ghosts: shrunken nuclei.
SHAPES: Final = np.array(
    [
        (0.1, 0.1, 0.1, 0.1),
        (7.7, 6.8, 4.0, 3.4),
        (4.3, 4.1, 2.9, 2.7),
        (4.3, 4.1, 2.9, 2.7),
        (4.4, 4.3, 3.1, 3.0),
        (7.2, 5.8, 3.2, 2.5),
        (11.5, 3.0, 5.0, 1.6),
        (6.8, 2.5, 3.9, 1.4),
        (3.6, 3.2, 1.6, 1.4),
    ],
    np.float32,
)

# Distance between neighbours (µm) and odds of each cell type, by zone. T cells are dealt CD8 : CD4 by the site's heat.
DENSITY: Final[dict[Zone, tuple[float, dict[Cell, float]]]] = {
    Zone.TUMOUR: (10.6, {Cell.TUMOUR: 0.90, Cell.CYTOTOXIC_T: 0.06, Cell.MACROPHAGE: 0.04}),
    Zone.STROMA: (
        12.5,
        {Cell.STROMA: 0.70, Cell.MACROPHAGE: 0.12, Cell.CYTOTOXIC_T: 0.07, Cell.HELPER_T: 0.09, Cell.B: 0.02},
    ),
    Zone.INFILTRATE: (
        7.6,
        {Cell.HELPER_T: 0.38, Cell.CYTOTOXIC_T: 0.32, Cell.B: 0.10, Cell.MACROPHAGE: 0.12, Cell.STROMA: 0.08},
    ),
    Zone.AGGREGATE: (7.2, {Cell.B: 0.80, Cell.HELPER_T: 0.14, Cell.CYTOTOXIC_T: 0.04, Cell.MACROPHAGE: 0.02}),
    Zone.NECROSIS: (15.0, {Cell.NECROSIS: 0.93, Cell.MACROPHAGE: 0.07}),
}


@dataclass(frozen=True)
class Biopsy:
    """What differs between patients and hospitals.

    tumour   share of the tissue that is tumour nest
    heat     how inflamed: scales the lymphocytes
    glass    share of the slide without tissue
    """

    tumour: float
    heat: float
    glass: float


@dataclass(frozen=True)
class Cells:
    """All cells of a slide; arrays of one length.

    y, x, angle  float32, px and radian      axes  float32[n, 4], px, as SHAPES
    kind         uint8, Cell                 light float32[n, SOURCES], how well each dye took, about 1
    """

    y: Field
    x: Field
    angle: Field
    axes: Field
    kind: npt.NDArray[np.uint8]
    light: Field


@dataclass(frozen=True)
class Slide:
    """One slide before it is stained.

    fields  float32[7, h/4, w/4], the coarse region fields: tissue, tumour, necrosis, cleft, infiltrate, aggregate
            and lumen in the order of `_zone`; a region is where its field is above 0
    """

    size: int
    fields: Field
    cells: Cells

    def zones(self, y0: int, x0: int, height: int, width: int) -> tuple[npt.NDArray[np.uint8], Field]:
        """Return the zone of each pixel of a window and the phase of the fibres, which follow the nests' outlines."""
        step = PIXEL_UM / COARSE_UM
        rows = ((np.arange(y0, y0 + height) + 0.5) * step - 0.5).clip(0, self.fields.shape[1] - 1)
        columns = ((np.arange(x0, x0 + width) + 0.5) * step - 0.5).clip(0, self.fields.shape[2] - 1)
        fine = np.stack([_bilinear(field, rows, columns) for field in self.fields])
        return _zone(fine), 26 * fine[1] + 4 * fine[4]


def _bilinear(field: Field, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Field:
    """Interpolate a coarse field on the outer product of fractional rows and columns."""

    def between(values: Field, at: npt.NDArray[np.float64]) -> Field:
        low = np.minimum(at.astype(np.intp), len(values) - 2)
        weight = (at - low).astype(np.float32)[:, None]
        return np.asarray(values[low] * (1 - weight) + values[low + 1] * weight, dtype=np.float32)

    lines = between(field, rows)
    return np.ascontiguousarray(between(np.ascontiguousarray(lines.T), columns).T)


def _zone(fields: Field) -> npt.NDArray[np.uint8]:
    tissue, tumour, necrosis, cleft, infiltrate, aggregate, lumen = fields
    zone = np.full(tissue.shape, Zone.STROMA, np.uint8)
    zone[infiltrate > 0] = Zone.INFILTRATE
    zone[tumour > 0] = Zone.TUMOUR
    zone[(tumour > 0) & (necrosis > 0)] = Zone.NECROSIS
    zone[aggregate > 0] = Zone.AGGREGATE
    zone[cleft > 0] = Zone.GLASS
    zone[lumen > 0] = Zone.LUMEN
    zone[tissue < 0] = Zone.GLASS
    return zone


def smooth(rng: np.random.Generator, shape: tuple[int, int], scale_um: float) -> Field:
    """Draw a smooth random field of unit variance on the coarse grid, with features of about the given size."""
    scale = scale_um / COARSE_UM
    knots = [int(np.ceil(n / scale)) + 4 for n in shape]
    field = ndimage.zoom(rng.standard_normal(knots, dtype=np.float32), scale, order=3)
    y, x = (int(rng.integers(int(scale), 2 * int(scale) + 1)) for _ in shape)
    cut = field[y : y + shape[0], x : x + shape[1]]
    return np.asarray((cut - cut.mean()) / max(float(cut.std()), 1e-6), dtype=np.float32)


def _discs(shape: tuple[int, int], centres: Field, radii: Field, squash: Field) -> Field:
    """Return the field of some round things: 1 at a centre, 0 at a rim, below 0 outside, never under -1."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    field = np.full(shape, -1, np.float32)
    for (cy, cx), radius, flat in zip(centres, radii, squash, strict=True):
        distance = np.sqrt((y - cy) ** 2 * flat + (x - cx) ** 2 / flat)
        np.maximum(field, 1 - distance / radius, out=field)
    return field


def _choose(rng: np.random.Generator, where: npt.NDArray[np.bool_], count: int) -> Field:
    """Choose points of a mask; float32[≤ count, 2], coarse pixels."""
    found = np.argwhere(where)
    if not len(found):
        return np.empty((0, 2), np.float32)
    return found[rng.integers(0, len(found), count)].astype(np.float32)


def _regions(rng: np.random.Generator, shape: tuple[int, int], biopsy: Biopsy) -> tuple[Field, Field]:
    """Draw the region fields and the vessels; returns (fields, vessels float32[n, 4]: y, x, radius, squash; coarse)."""
    area = shape[0] * shape[1] * (COARSE_UM / 1000) ** 2  # mm²
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    edge = y * np.float32(np.sin(angle)) + x * np.float32(np.cos(angle))
    tissue = edge + 0.16 * smooth(rng, shape, 110) + 0.05 * smooth(rng, shape, 30)
    tissue -= np.quantile(tissue, biopsy.glass)
    tumour = smooth(rng, shape, 85) + 0.45 * smooth(rng, shape, 38) + 0.12 * smooth(rng, shape, 14)
    tumour -= np.quantile(tumour[tissue > 0], 1 - biopsy.tumour)
    rough = smooth(rng, shape, 40) + 0.5 * smooth(rng, shape, 12)
    necrosis = tumour - 1.2 + 0.25 * rough
    cleft = 0.07 - np.abs(tumour + 0.12) - 0.16 * np.maximum(0.75 - smooth(rng, shape, 60), 0)
    margin = np.exp(-0.5 * ((tumour + 0.45) / 0.5) ** 2)  # lymphocytes gather at the edge of nests
    infiltrate = np.asarray(smooth(rng, shape, 45) + 1.1 * margin - 1.75 + 0.45 * biopsy.heat, np.float32)
    stroma = (tissue > 0.05) & (tumour < -0.35)
    n_follicles = int(rng.poisson(4.5 * area * biopsy.heat)) + 1
    centres = _choose(rng, stroma & (margin > 0.3), n_follicles)
    follicles = _discs(
        shape,
        centres,
        *(rng.uniform(low, high, len(centres)).astype(np.float32) for low, high in ((16, 30), (0.7, 1.4))),
    )
    follicles += 0.10 * rough * (follicles > -0.9)
    n_vessels = int(rng.poisson(26 * area)) + 1
    centres = _choose(rng, stroma & (follicles < -0.2), n_vessels)
    vessels = np.column_stack([centres, rng.gamma(4, 1.1, len(centres)) + 2.2, rng.uniform(0.6, 1.7, len(centres))])
    vessels = vessels.astype(np.float32)
    lumen = _discs(shape, vessels[:, :2], vessels[:, 2], vessels[:, 3])
    fields = np.stack([tissue, tumour, necrosis, cleft, infiltrate, follicles, lumen]).astype(np.float32)
    return fields, vessels


def _lattice(rng: np.random.Generator, size_um: float, pitch: float) -> Field:
    """Return points about `pitch` apart: a hexagonal lattice, shaken; float32[n, 2], µm."""
    rows = np.arange(0, size_um + pitch, pitch * np.sqrt(0.75))
    columns = np.arange(0, size_um + pitch, pitch)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * pitch / 2
    points = np.column_stack([y.ravel(), x.ravel()]) + rng.normal(0, 0.19 * pitch, (y.size, 2))
    return points[(points >= 0).all(1) & (points < size_um).all(1)].astype(np.float32)


def _odds(zone: Zone, heat: float) -> tuple[list[Cell], npt.NDArray[np.float64]]:
    kinds = list(DENSITY[zone][1])
    lymphocytes = (Cell.CYTOTOXIC_T, Cell.HELPER_T, Cell.B)
    weights = np.array([DENSITY[zone][1][kind] * (heat if kind in lymphocytes else 1.0) for kind in kinds])
    return kinds, weights / weights.sum()


def make_slide(rng: np.random.Generator, size: int, biopsy: Biopsy) -> Slide:
    """Grow one slide of size × size pixels."""
    n = max(int(np.ceil(size * PIXEL_UM / COARSE_UM)), 8)
    fields, vessels = _regions(rng, (n, n), biopsy)
    coarse = _zone(fields)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(fields[1], 3))
    along = np.arctan2(-slope_x, slope_y)  # a level line is square to the slope; angle of (x, y) = (cos, sin)
    points: list[Field] = []
    kinds: list[npt.NDArray[np.uint8]] = []
    angles: list[npt.NDArray[np.float64]] = []
    for zone, (pitch, _) in DENSITY.items():
        at = _lattice(rng, size * PIXEL_UM, pitch)
        cell = np.minimum((at / COARSE_UM).astype(np.intp), n - 1)
        inside = coarse[cell[:, 0], cell[:, 1]] == zone
        at, cell = at[inside], cell[inside]
        choices, odds = _odds(zone, biopsy.heat)
        kind = rng.choice(np.array(choices, np.uint8), len(at), p=odds)
        spindle = kind == Cell.STROMA
        turn = np.where(
            spindle, along[cell[:, 0], cell[:, 1]] + rng.normal(0, 0.22, len(at)), rng.uniform(0, np.pi, len(at))
        )
        points.append(at)
        kinds.append(kind)
        angles.append(turn)
    for y, x, radius, squash in vessels:
        count = max(int(2 * np.pi * radius * COARSE_UM / 9.0), 4)
        theta = np.arange(count) * 2 * np.pi / count + rng.uniform(0, np.pi)
        rim = radius + 0.9
        ring = np.column_stack([y + rim * np.sin(theta) / np.sqrt(squash), x + rim * np.cos(theta) * np.sqrt(squash)])
        points.append((ring * COARSE_UM).astype(np.float32))
        kinds.append(np.full(count, Cell.ENDOTHELIUM, np.uint8))
        angles.append(np.arctan2(np.cos(theta) / np.sqrt(squash), -np.sin(theta) * np.sqrt(squash)))
    at, kind = np.concatenate(points) / np.float32(PIXEL_UM), np.concatenate(kinds)
    grown = rng.lognormal(0, 0.10, (len(at), 1)) * rng.lognormal(0, 0.05, (len(at), 4))
    cells = Cells(
        y=at[:, 0],
        x=at[:, 1],
        angle=np.concatenate(angles).astype(np.float32),
        axes=(SHAPES[kind] / PIXEL_UM * grown).astype(np.float32),
        kind=kind,
        light=(rng.lognormal(0, 0.16, (len(at), 1)) * rng.lognormal(0, UPTAKE, (len(at), SOURCES))).astype(np.float32),
    )
    return Slide(size, fields, cells)
