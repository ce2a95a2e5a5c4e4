"""Make multiplex images of tissue to try Cairn on: 35 bands, several hospitals, the truth beside them.

    OUT/images/hospital-1/biopsy-01.ome.tif     uint16, 35 named bands, 0.5 µm a pixel, 512-pixel tiles, uncompressed
    OUT/truth/hospital-1/biopsy-01.png          uint8, the cell type of each pixel (`CELL_NAMES`), with a palette

anatomy: where regions and cells lie → stain: what shines where → optics: filters, lamp, camera.
"""

import io
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from PIL import Image

from cairn.palette import BACKGROUND, CLUSTERS, rgb
from deploy.tissue.anatomy import PIXEL_UM, Biopsy, Cell, Slide, make_slide
from deploy.tissue.optics import BANDS, MARKERS, OFFSET, Scanner, best_band, expose, make_scanner, marker_bands
from deploy.tissue.stain import stain

__all__ = [
    "BANDS",
    "CELL_NAMES",
    "COMPOSITE_BANDS",
    "COMPOSITE_MARKERS",
    "MARKER_BANDS",
    "OFFSET",
    "PIXEL_UM",
    "STATE_RULES",
    "Tissue",
    "make_tissue",
]

FIELD: Final = 512  # px: the camera's field, one lamp profile each, and the file's tile

CELL_NAMES: Final[tuple[str, ...]] = (
    "glass",
    "tumour",
    "cytotoxic T",
    "helper T",
    "B",
    "macrophage",
    "stroma",
    "endothelium",
    "necrosis",
)
"""Names of the values in a truth mask."""

MARKER_BANDS: Final[dict[str, str]] = {marker: best_band(marker) for marker in MARKERS}
"""The band in which each marker stands highest over the others."""

STATE_RULES: Final[dict[str, tuple[str, ...]]] = {
    "tumour": marker_bands("PanCK"),
    "immune": marker_bands("CD8", "CD4", "CD20", "CD68"),
}
"""The bands that mark a state: a cluster is of the state in one of whose bands it stands highest."""

COMPOSITE_MARKERS: Final[tuple[str, str, str]] = ("PanCK", "CD8", "DNA")
"""Red, green and blue of a picture for people."""

COMPOSITE_BANDS: Final[tuple[str, ...]] = tuple(MARKER_BANDS[marker] for marker in COMPOSITE_MARKERS)
"""The bands of `COMPOSITE_MARKERS`."""


@dataclass(frozen=True)
class Tissue:
    """What was made: image files and truth masks in the same order, and the folders dealt to sites."""

    images: tuple[Path, ...]
    truth: tuple[Path, ...]
    folders: tuple[Path, ...]


def make_tissue(
    out: Path,
    *,
    folders: int = 3,
    images_per_folder: int = 3,
    size: int = 1024,
    seed: int = 0,
    progress: Callable[[int, int], None],
    workers: int = 2,
) -> Tissue:
    """Make a set of images, one folder a hospital, each with its own scanner and kind of patients.

    The same arguments give the same bytes, whatever the number of workers. Memory: one camera field a worker.

    size      pixels a side
    progress  called with (images made, images in all) after each image
    """
    scanners, slides = [], []
    for folder in range(folders):
        rng = np.random.default_rng([seed, folder])
        scanners.append(make_scanner(rng))
        heat = (0.7, 1.0, 1.35)[folder % 3]
        for index in range(images_per_folder):
            biopsy = Biopsy(float(rng.uniform(0.34, 0.52)), heat, float(rng.uniform(0.20, 0.28)))
            slides.append((folder, index, biopsy))

    def make(folder: int, index: int, biopsy: Biopsy) -> tuple[Path, Path]:
        place = Path(f"hospital-{folder + 1}", f"biopsy-{index + 1:02d}")
        image = (out / "images" / place).with_suffix(".ome.tif")
        truth = (out / "truth" / place).with_suffix(".png")
        _make_image(
            image,
            truth,
            make_slide(np.random.default_rng([seed, folder, index, 0]), size, biopsy),
            scanners[folder],
            (seed, folder, index),
        )
        return image, truth

    pairs = []
    with ThreadPoolExecutor(workers) as pool:
        for pair in pool.map(lambda slide: make(*slide), slides):
            pairs.append(pair)
            progress(len(pairs), len(slides))
    return Tissue(
        images=tuple(image for image, _ in pairs),
        truth=tuple(truth for _, truth in pairs),
        folders=tuple(dict.fromkeys(image.parent for image, _ in pairs)),
    )


def _make_image(image: Path, truth: Path, slide: Slide, scanner: Scanner, seed: tuple[int, int, int]) -> None:
    """Stain and photograph one slide, field by field, straight into the file's tiles."""
    size = slide.size
    cells = np.zeros((size, size), np.uint8)
    for path in (image, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = image.with_name(f".{image.name}.part")
    offsets = _write_frame(unfinished, size, uuid.uuid5(uuid.NAMESPACE_OID, f"cairn tissue {seed} {size}"))
    with unfinished.open("r+b") as file:
        for tile, (y, x) in enumerate(_fields(size)):
            rng = np.random.default_rng([*seed, 1, tile])
            h, w = min(FIELD, size - y), min(FIELD, size - x)
            abundance, cells[y : y + h, x : x + w] = stain(slide, y, x, height=h, width=w, rng=rng)
            picture = expose(abundance, scanner, rng)
            side = tile_side(size)
            padded = np.pad(picture, ((0, 0), (0, side - h), (0, side - w))) if (h, w) != (side, side) else picture
            for band, values in enumerate(padded):
                file.seek(offsets[band][tile])
                file.write(values.astype("<u2").tobytes())
    unfinished.replace(image)
    mask = Image.fromarray(cells, mode="P")
    mask.putpalette([part for colour in (BACKGROUND, *CLUSTERS[: len(Cell) - 1]) for part in rgb(colour)])
    packed = io.BytesIO()
    mask.save(packed, format="PNG")
    truth.write_bytes(packed.getvalue())


def tile_side(size: int) -> int:
    """Return the side of a file's tiles: a camera field, or less for a small image; TIFF wants multiples of 16."""
    return min(FIELD, -(-size // 16) * 16)


def _fields(size: int) -> Iterator[tuple[int, int]]:
    for y in range(0, size, FIELD):
        for x in range(0, size, FIELD):
            yield y, x


def _write_frame(path: Path, size: int, name: uuid.UUID) -> list[tuple[int, ...]]:
    """Write an OME-TIFF whose pixels are still zero; returns where each band's tiles lie in the file."""
    side = tile_side(size)
    with tifffile.TiffWriter(path, ome=True, byteorder="<", bigtiff=size * size * len(BANDS) * 2 > 2**31) as writer:
        writer.write(
            shape=(len(BANDS), size, size),
            dtype="uint16",
            photometric="minisblack",
            tile=(side, side),
            metadata={
                "axes": "CYX",
                "UUID": str(name),
                "PhysicalSizeX": PIXEL_UM,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": PIXEL_UM,
                "PhysicalSizeYUnit": "µm",
                "Channel": {"Name": list(BANDS)},
            },
        )
    with tifffile.TiffFile(path) as file:
        return [tuple(page.dataoffsets) for page in file.pages]
