"""Images read by one thread and by several, and read and counted beside either alone.

Files are made on the spot and lie in the page cache: codecs and copies are measured, not a disk. All ways of a form
take turns, and the best turn of each counts. Bytes are those of the pixels, unpacked.

    reading/alone/FORM/N     N threads read and decode, nobody counts
    reading/counting/FORM/N  N threads count the same tiles, which lie in memory
    reading/table/FORM/N     a file into a table, by N threads that read and N that count. `ratio` is the share of what
                             can be had: of the slower of the two alone, or of all cores busy with both where that is
                             less; `of_slower`: of the first; `processor`: processor time of both alone over its own

`raw_small` are images of a single tile, one after another, of which each also costs the counter a checkpoint. About a
minute and a half; CAIRN_READING_SIZE=1 makes small files, to try it out.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from scipy import ndimage

from benchmarks import ingest
from cairn import kernels
from cairn.images import Image, ImageSource, RawLayout, Tile, find_images, open_image
from cairn.plan import CountsPlan
from edge_node.counting import Counter
from edge_node.reading import Reads

ACROSS = int(os.environ.get("CAIRN_READING_SIZE", "4"))  # tiles of an image's side
CORES = os.cpu_count() or 1
TURNS = 4
LAYOUT = RawLayout()  # AstroPath's: 94 MB, six tiles
SMALL = RawLayout(512, 512, ingest.BANDS)  # 18 MB, one tile


@dataclass(frozen=True)
class Form:
    """Files of one kind, the names of their bands, and a plan fitted to them."""

    name: str
    sources: list[ImageSource]
    bands: tuple[str, ...]
    stage: CountsPlan
    raw: RawLayout = LAYOUT

    def read(self, readers: int) -> Iterator[Iterator[Tile]]:
        """Read image by image, by so many threads."""

        @contextmanager
        def one(source: ImageSource) -> Iterator[tuple[Image, Iterator[Tile]]]:
            with (
                open_image(source, raw=self.raw, decoders=readers) as image,
                closing(image.tiles(self.bands, readers=readers)) as tiles,
            ):
                yield image, tiles

        with open_image(self.sources[0], raw=self.raw) as image:
            expected = image.tile_count(self.bands)
        with closing(Reads(self.sources, one)) as reads:
            for number in range(len(self.sources)):
                with reads.image(number, expected) as (_, tiles):
                    yield tiles

    def read_all(self, readers: int) -> None:
        """Read all tiles and let them go."""
        for tiles in self.read(readers):
            for _ in tiles:
                pass

    def count(self, counter: Counter, readers: int) -> None:
        """Count all images as a site does."""
        for tiles in self.read(readers):
            with counter.image():
                counter.add(tiles)


class Taken(NamedTuple):
    """Seconds."""

    clock: float
    processor: float


def run() -> Iterator[dict[str, Any]]:
    """Measure every form."""
    with tempfile.TemporaryDirectory() as name:
        for form in forms(Path(name)):
            yield from measured(form)


def forms(folder: Path) -> Iterator[Form]:
    """Write files, form by form."""
    tiles = ingest.tissue_tiles()
    stage = ingest.counts_plan(tiles)
    for compression in (None, "deflate", "lzw", "zstd"):
        name = f"ome_tiff_{compression or 'plain'}"
        (folder / name).mkdir()
        across = ACROSS if compression is None else -(-ACROSS // 2)
        ingest.write_ome_tiff(folder / name / "slide.ome.tif", across, compression)
        yield Form(name, find_images(folder / name), ingest.NAMES, stage)
    numbered = ingest.counts_plan(tiles, tuple(map(str, range(ingest.BANDS))))
    for name, layout, files in (("raw", LAYOUT, -(-ACROSS // 2)), ("raw_small", SMALL, 4 * ACROSS)):
        (folder / name).mkdir()
        pixels = np.resize(tiles.transpose(0, 2, 3, 1), (layout.height, layout.width, layout.bands))
        for number in range(files):
            pixels.tofile(folder / name / f"{number}.fw")
        yield Form(name, find_images(folder / name), numbered.quantiser.pixels.bands, numbered, layout)
    (folder / "slide").mkdir()
    picture = stained(1024 * ACROSS)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 80}}
    tifffile.imwrite(folder / "slide" / "slide.tif", picture, **options)
    sample, colours = picture[:1024, :1024].transpose(2, 0, 1)[np.newaxis].astype(np.uint16), ("R", "G", "B")
    yield Form("slide_jpeg", find_images(folder / "slide"), colours, ingest.counts_plan(sample, colours, 3))


def stained(side: int, seed: int = 0) -> Any:
    """Make a picture like tissue in two stains on glass; uint8[side, side, 3]."""
    rng = np.random.default_rng(seed)
    field = ndimage.zoom(rng.random((side // 32, side // 32)), 32, order=1)
    stain = np.stack([field > 0.5, field > 0.7], axis=-1) * field[..., None]
    light = 245 * np.exp(-stain @ np.array([[0.3, 1.0, 0.4], [0.9, 0.8, 0.3]]))
    return np.clip(light + rng.normal(0, 5, (side, side, 1)), 0, 255).astype(np.uint8)


def measured(form: Form) -> Iterator[dict[str, Any]]:
    """Let all ways take turns."""
    numba = kernels.load("numba")
    tiles = list(chain.from_iterable(form.read(CORES)))
    megabytes = sum(tile.values.nbytes for tile in tiles) / 1e6
    ways: dict[tuple[str, int], Callable[[], None]] = {}
    for n in sorted({1, 2, CORES}):
        counter = Counter(form.stage, numba, n)
        ways["alone", n] = partial(form.read_all, n)
        ways["counting", n] = partial(count, counter, tiles)
        ways["table", n] = partial(form.count, counter, n)
    taken = {way: Taken(float("inf"), 0.0) for way in ways}
    for _ in range(TURNS + 1):  # the first turn compiles, and fills the page cache
        taken = {way: min(taken[way], timed(work)) for way, work in ways.items()}
    for (kind, n), found in taken.items():
        line = {"name": f"reading/{kind}/{form.name}/{n}", "value": round(megabytes / found.clock, 1), "unit": "MB/s"}
        if kind != "table":
            yield line | {"ratio": round(taken[kind, 1].clock / found.clock, 3), "against": "one thread"}
            continue
        alone = {"reader": taken["alone", n], "counting": taken["counting", n]}
        processor = sum(one.processor for one in alone.values())
        least = {name: one.clock for name, one in alone.items()} | {"cores": processor / CORES}
        bound = max(least, key=lambda name: least[name])
        slower = max(one.clock for one in alone.values())
        yield line | {
            "ratio": round(least[bound] / found.clock, 3),
            "against": "all cores busy with both" if bound == "cores" else f"{bound} alone",
            "of_slower": round(slower / found.clock, 3),
            "processor": round(processor / found.processor, 3),
        }


def count(counter: Counter, tiles: list[Tile]) -> None:
    """Count tiles that lie in memory."""
    with counter.image():
        counter.add(tiles)


def timed(work: Callable[[], None]) -> Taken:
    """Return how long a call takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - clock, time.process_time() - processor)
