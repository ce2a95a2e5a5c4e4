"""Cutting patches: vectorised against naive loops, and from a slide on disk against reading all of it.

The naive loops are two: one over patches, each a slice, and one over their pixels, which is what is written without
thinking of numpy. All take turns, and each one's best turn counts; a second is one of the processor's. The batch is the
paper's best model's: 8 images replicated 4 times, 20 patches of 50 x 50.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from agent_trainer.patches import Big, in_memory, open_big

Line = dict[str, Any]
Pixels = npt.NDArray[np.uint8]

IMAGES, REPLICAS, PATCHES, SIDE = 8, 4, 20, 50
SIZE = (3, 1040, 1388)  # the paper's images
TURNS = 7
TILE = 512
SLIDE = 8192  # pixels a side of the slide of the short run
DATA = Path(__file__).parents[2] / "shared" / "data" / "dev" / "pathology" / "cmu-1-small-region.svs"


def run() -> Iterator[Line]:
    """Measure both."""
    yield from in_memory_lines()
    yield from on_disk_lines()


def in_memory_lines() -> Iterator[Line]:
    """Cut a batch of patches out of images in memory; few large ones, and many small ones."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *SIZE), np.uint8)
    for patches, side in ((REPLICAS * PATCHES, SIDE), (4096, 8)):
        bigs = [in_memory(image) for image in images]
        limits = np.array(SIZE[1:]) - side + 1
        corners = rng.integers(0, limits, (IMAGES, patches, 2))
        few = max(1, patches // 25)  # for the loop over pixels, whose whole turn takes a minute
        works: dict[str, Callable[[], Any]] = {
            "vectorised": partial(by_batches, bigs, corners, side),
            "loop_over_patches": partial(by_patches, images, corners, side),
            "loop_over_pixels": partial(by_pixels, images[0], corners[0, :few], side),
        }
        rates = {name: (few if "pixels" in name else IMAGES * patches) / best(work) for name, work in works.items()}
        for name in list(works)[1:]:
            yield {
                "name": f"patches/memory/{patches}x{side}",
                "value": round(rates["vectorised"]),
                "unit": "patches/s",
                "ratio": round(rates["vectorised"] / rates[name], 2),
                "against": f"{name} {rates[name]:.0f} patches/s",
            }


def by_batches(bigs: list[Big], corners: npt.NDArray[np.int64], side: int) -> list[Pixels]:
    """Cut all patches of each image at once."""
    return [big.patches(of, side) for big, of in zip(bigs, corners, strict=True)]


def by_patches(images: Pixels, corners: npt.NDArray[np.int64], side: int) -> list[Pixels]:
    """Cut slices one after another and put those of an image together."""
    return [
        np.stack([image[:, y : y + side, x : x + side] for y, x in of.tolist()])
        for image, of in zip(images, corners, strict=True)
    ]


def by_pixels(image: Pixels, corners: npt.NDArray[np.int64], side: int) -> Pixels:
    """Copy pixel by pixel."""
    out = np.empty((len(corners), len(image), side, side), np.uint8)
    for patch, (y, x) in enumerate(corners):
        for row in range(side):
            for column in range(side):
                for channel in range(len(image)):
                    out[patch, channel, row, column] = image[channel, y + row, x + column]
    return out


def best(work: Callable[[], object]) -> float:
    """Return the shortest time of the processor's over the turns, in seconds; the first turn only warms up."""
    times = []
    for _ in range(TURNS + 1):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times[1:])


def on_disk_lines() -> Iterator[Line]:
    """Cut patches out of a slide on disk, scattered and side by side, against decoding all of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.ome.tif"
        write_slide(path, SLIDE)
        rng = np.random.default_rng(0)
        scattered = rng.integers(0, SLIDE - SIDE, (PATCHES, 2))
        together = np.array([[y, x] for y in range(0, 5 * SIDE, SIDE) for x in range(0, 4 * SIDE, SIDE)]) + 3000
        whole, _ = timed(path, lambda _: tifffile.imread(path))
        for name, corners in {"scattered": scattered, "side_by_side": together}.items():
            spent, size = timed(path, partial(cut_at, corners))
            yield {
                "name": f"patches/slide/{name}",
                "value": round(1e3 * spent, 1),
                "unit": "ms",
                "ratio": round(whole / spent, 1),
                "against": f"decoding all of it by tifffile {1e3 * whole:.0f} ms",
                "patches": len(corners),
                "slide_megapixels": round(SLIDE * SLIDE / 1e6),
                "megabytes": round(size / 1e6),
            }
        spent, _ = timed(path, lambda big: big.reduced(512, 512))
        bare = in_memory(np.asarray(np.moveaxis(tifffile.imread(path), -1, 0)))
        also = {"ratio": round(best(lambda: bare.reduced(512, 512)) / spent, 1), "against": "from all pixels in memory"}
        yield {"name": "patches/slide/reduced_512", "value": round(1e3 * spent, 1), "unit": "ms", **also}


def cut_at(corners: npt.NDArray[np.int64], big: Big) -> Pixels:
    """Cut patches of a slide."""
    return big.patches(corners, SIDE)


def timed(path: Path, work: Callable[[Big], object]) -> tuple[float, int]:
    """Return the least time on the clock of opening a slide and working on it, and the file's size in bytes."""
    times = []
    for _ in range(TURNS):
        forget(path)
        began = time.perf_counter()
        with open_big(path, 3) as big:
            work(big)
        times.append(time.perf_counter() - began)
    return min(times), path.stat().st_size


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_slide(path: Path, side: int, *, plain: bool = False) -> None:
    """Write a tiled pyramid of real tissue repeated over side x side pixels, as an OME-TIFF.

    plain  the tiles as they are; else as JPEG of quality 80, as scanners do
    Tiles are cut from one slide region, encoded once and written many times.
    """
    with open_big(DATA, 3) as region:
        corners = np.array(
            [[y, x] for y in range(0, region.height - TILE, TILE) for x in range(0, region.width - TILE, TILE)]
        )
        tissue = np.moveaxis(region.patches(corners, TILE), 1, -1)
    sides = [side]
    while sides[-1] > TILE:
        sides.append(-(-sides[-1] // 2))
    tiles: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "dtype": np.uint8}
    if not plain:
        tiles["compression"] = "jpeg"
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        for level, of in enumerate(sides):
            step = 2**level
            small = [np.ascontiguousarray(one[:: min(step, TILE), :: min(step, TILE)]) for one in tissue]
            repeats = -(-TILE // small[0].shape[0])
            made = [np.tile(one, (repeats, repeats, 1))[:TILE, :TILE] for one in small]
            data: list[Any] = made if plain else [jpeg(one) for one in made]
            count = (-(-of // TILE)) ** 2
            about: dict[str, Any] = {"subifds": len(sides) - 1} if level == 0 else {"subfiletype": 1}
            writer.write((data[i * 7 % len(data)] for i in range(count)), shape=(of, of, 3), **about, **tiles)


def jpeg(tile: Pixels) -> bytes:
    """Encode a tile in RGB, as the TIFF says that it is."""
    return bytes(imagecodecs.jpeg8_encode(tile, level=80, colorspace="rgb", outcolorspace="rgb"))
