"""Stain a window of a slide: which source shines how much at each pixel, and which cell type truly lies there."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from deploy.tissue.anatomy import Cell, Cells, Slide, Zone
from deploy.tissue.optics import MARKERS, SOURCES

Field = npt.NDArray[np.float32]

MARGIN: Final = 32  # px around a window: the longest cell's half length
PSF_PX: Final = 0.75  # the objective's blur, standard deviation
HAZE: Final = 0.12  # share of the light that comes from out of focus, blurred HAZE_PX wide
HAZE_PX: Final = 4.0

# What each cell type binds, as abundance in (nucleus, cytoplasm, membrane); 1 is a bright stain. Every cell has DNA.
# A section is as thick as a nucleus is wide: half of what a cell binds lies above and under its nucleus.
PROFILE: Final[dict[Cell, dict[str, tuple[float, float, float]]]] = {
    Cell.TUMOUR: {"DNA": (0.80, 0.02, 0.02), "PanCK": (0.45, 0.80, 1.00)},
    Cell.CYTOTOXIC_T: {"DNA": (1.00, 0.06, 0.04), "CD8": (0.55, 0.85, 1.00)},
    Cell.HELPER_T: {"DNA": (1.00, 0.06, 0.04), "CD4": (0.55, 0.80, 0.95)},
    Cell.B: {"DNA": (1.05, 0.06, 0.04), "CD20": (0.55, 0.90, 1.05)},
    Cell.MACROPHAGE: {"DNA": (0.75, 0.03, 0.02), "CD68": (0.50, 1.00, 0.70), "CD4": (0.01, 0.06, 0.08)},
    Cell.STROMA: {"DNA": (0.75, 0.03, 0.02), "SMA": (0.55, 0.85, 0.85)},
    Cell.ENDOTHELIUM: {"DNA": (0.85, 0.04, 0.03), "CD31": (0.60, 0.95, 1.00)},
    Cell.NECROSIS: {"DNA": (0.14, 0.04, 0.02)},
}
# Autofluorescence of a cell's (nucleus, cytoplasm, membrane), and of what lies between the cells of a zone.
CELL_GLOW: Final = (0.030, 0.045, 0.045)
ZONE_GLOW: Final[dict[Zone, float]] = {
    Zone.GLASS: 0.0,
    Zone.TUMOUR: 0.05,
    Zone.STROMA: 0.17,
    Zone.INFILTRATE: 0.10,
    Zone.AGGREGATE: 0.07,
    Zone.NECROSIS: 0.22,
    Zone.LUMEN: 0.002,
}
ZONE_TRUTH: Final[dict[Zone, Cell]] = {
    Zone.GLASS: Cell.GLASS,
    Zone.TUMOUR: Cell.TUMOUR,
    Zone.STROMA: Cell.STROMA,
    Zone.INFILTRATE: Cell.STROMA,
    Zone.AGGREGATE: Cell.STROMA,
    Zone.NECROSIS: Cell.NECROSIS,
    Zone.LUMEN: Cell.GLASS,
}


def _profiles() -> Field:
    """Return PROFILE and CELL_GLOW as one array; float32[3 compartments, cell types, SOURCES]."""
    table = np.zeros((3, len(Cell), SOURCES), np.float32)
    names = list(MARKERS)
    for kind, markers in PROFILE.items():
        for marker, amounts in markers.items():
            table[:, kind, names.index(marker)] = amounts
        table[:, kind, -1] = CELL_GLOW
    table[:, Cell.NECROSIS, -1] = 0.9 * ZONE_GLOW[Zone.NECROSIS]  # ghosts fade into the debris
    return table


PROFILES: Final = _profiles()


def _shapes(cells: Cells, chosen: npt.NDArray[np.intp], reach: int) -> tuple[Field, Field]:
    """Return each cell's patch of distances: to its outline and to its nucleus's, 1 on the line.

    returns two float32[n, 2·reach+1, 2·reach+1], centred on the pixel nearest to the cell
    """
    grid = np.arange(-reach, reach + 1, dtype=np.float32)
    y = np.rint(cells.y[chosen]) - cells.y[chosen]
    x = np.rint(cells.x[chosen]) - cells.x[chosen]
    dy, dx = (grid + shift[:, None] for shift in (y, x))
    cos, sin = np.cos(cells.angle[chosen]), np.sin(cells.angle[chosen])
    along = dx[:, None, :] * cos[:, None, None] + dy[:, :, None] * sin[:, None, None]
    across = dy[:, :, None] * cos[:, None, None] - dx[:, None, :] * sin[:, None, None]

    def distance(long: Field, short: Field, off: Field, bend: Field) -> Field:
        u = along / long[:, None, None] - off[:, None, None]
        v = across / short[:, None, None] + off[:, None, None]
        square = u * u + v * v
        # A third harmonic (3u²v - v³ = r³ sin 3θ) makes outlines lopsided, no two alike.
        return np.asarray(
            np.sqrt(square) * (1 + bend[:, None, None] * (3 * u * u - v * v) * v / (square * np.sqrt(square) + 0.2)),
            dtype=np.float32,
        )

    # Small and repeatable per-cell accidents, from digits of the position that nothing else depends on.
    accident = np.modf(cells.y[chosen] * 7.31 + cells.x[chosen] * 3.17)[0].astype(np.float32) - np.float32(0.5)
    axes = cells.axes[chosen]
    outline = distance(axes[:, 0], axes[:, 1], np.zeros_like(accident), 0.22 * accident)
    nucleus = distance(axes[:, 2], axes[:, 3], 0.25 * accident, -0.12 * accident)
    return outline, nucleus


def _lay(cells: Cells, y0: int, x0: int, height: int, width: int) -> tuple[npt.NDArray[np.int32], Field, Field]:
    """Lay the cells of a window; where two overlap, a pixel goes to the one whose outline it is deeper in.

    returns (owner int32[h, w], -1 between cells; distance to the outline; distance to the owner's nucleus)
    """
    owner = np.full((height, width), -1, np.int32)
    best = np.ones((height, width), np.float32)
    nucleus = np.full((height, width), 9, np.float32)
    near = (cells.y > y0 - MARGIN) & (cells.y < y0 + height + MARGIN)
    near &= (cells.x > x0 - MARGIN) & (cells.x < x0 + width + MARGIN)
    for longest, shortest in ((12, 0), (20, 12), (MARGIN, 20)):
        size = cells.axes[:, 0] * 1.12
        chosen = np.flatnonzero(near & (size >= shortest) & ((size < longest) | (longest == MARGIN)))
        for first in range(0, len(chosen), 256):
            batch = chosen[first : first + 256]
            outlines, nuclei = _shapes(cells, batch, longest)
            for index, outline, inner in zip(batch.tolist(), outlines, nuclei, strict=True):
                top = round(float(cells.y[index])) - longest - y0
                left = round(float(cells.x[index])) - longest - x0
                rows = slice(max(top, 0), min(top + len(outline), height))
                columns = slice(max(left, 0), min(left + len(outline), width))
                if rows.start >= rows.stop or columns.start >= columns.stop:
                    continue
                patch = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
                wins = outline[patch] < best[rows, columns]
                best[rows, columns][wins] = outline[patch][wins]
                nucleus[rows, columns][wins] = inner[patch][wins]
                owner[rows, columns][wins] = index
    return owner, best, nucleus


def _fine(rng: np.random.Generator, shape: tuple[int, int], blur: float) -> Field:
    """Draw fine-grained texture of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), blur)
    return np.asarray(noise / max(float(noise.std()), 1e-6), dtype=np.float32)


def stain(
    slide: Slide, y0: int, x0: int, *, height: int, width: int, rng: np.random.Generator
) -> tuple[Field, npt.NDArray[np.uint8]]:
    """Stain a window.

    returns (abundance float32[SOURCES, h, w], truth uint8[h, w] of Cell)
    """
    pad = 12  # px, so that the blur knows what lies beyond the window
    h, w = height + 2 * pad, width + 2 * pad
    zone, phase = slide.zones(y0 - pad, x0 - pad, h, w)
    owner, outline, inner = _lay(slide.cells, y0 - pad, x0 - pad, h, w)
    owner[zone == Zone.GLASS] = -1
    owner[(zone == Zone.LUMEN) & (slide.cells.kind[owner] != Cell.ENDOTHELIUM)] = -1
    inside = owner >= 0
    kind = np.where(inside, slide.cells.kind[owner], 0).astype(np.uint8)
    between = np.array([ZONE_TRUTH[z] for z in Zone], np.uint8)[zone]
    truth = np.where(inside, kind, between).astype(np.uint8)

    touching = np.zeros((h, w), np.float32)
    for axis in (0, 1):
        step = np.diff(owner, axis=axis) != 0
        where = [slice(None), slice(None)]
        for side in (slice(None, -1), slice(1, None)):
            where[axis] = side
            touching[tuple(where)] = np.maximum(touching[tuple(where)], step)
    membrane = np.maximum(ndimage.gaussian_filter(touching, 0.8) * 1.3, (outline - 0.80) / 0.15).clip(0, 1)
    nuclear = ((1 - inner) * 5 + 0.5).clip(0, 1)
    membrane *= 1 - nuclear
    parts = np.stack([nuclear, (1 - nuclear) * (1 - membrane), membrane])
    chromatin = 1 + 0.10 * _fine(rng, (h, w), 1.6)
    light = np.where(inside[..., None], slide.cells.light[owner], 0).astype(np.float32)
    parts *= 1 + 0.05 * _fine(rng, (h, w), 2.5)
    parts[0] *= chromatin

    fibres = 0.62 + 0.38 * np.sin(phase)
    glow = np.array([ZONE_GLOW[z] for z in Zone], np.float32)[zone] * ~inside
    glow *= np.where(zone == Zone.STROMA, fibres, 1) * (1 + 0.15 * _fine(rng, (h, w), 3.0)).clip(0.4, 2)
    matrix = 0.28 * glow * np.isin(zone, (Zone.STROMA, Zone.INFILTRATE))  # thin myofibroblast processes
    abundance = np.empty((SOURCES, height, width), np.float32)
    for source in range(SOURCES):
        shine = sum(part * PROFILES[i, :, source][kind] for i, part in enumerate(parts)) * light[..., source]
        if source == SOURCES - 1:
            shine += glow
        elif source == list(MARKERS).index("SMA"):
            shine += matrix
        sharp = ndimage.gaussian_filter(shine, PSF_PX, truncate=3.0)
        haze = ndimage.gaussian_filter(shine, HAZE_PX, truncate=3.0)
        abundance[source] = ((1 - HAZE) * sharp + HAZE * haze)[pad : pad + height, pad : pad + width]
    return abundance, truth[pad : pad + height, pad : pad + width]
