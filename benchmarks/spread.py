"""One plan counted by Dask workers on this machine: 1, 2 and as many as there are cores; and what a piece costs.

All images are one OME-TIFF of 4.2 megapixels and 35 bands under many names, so that it is in the page cache: processors
are measured, not a disk. Workers have read and counted an image before the clock begins. 1 and 2 count the same images;
more workers count as many images each as one of the two. `alone` is one thread of one process without Dask, and
`alone_twice` two such processes that know nothing of each other: what this machine's second core is worth.
About five minutes where nothing else runs.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from distributed import Client

from benchmarks.ingest import NAMES, SIDE, counts_plan, peak_mb, tissue_tiles, write_ome_tiff
from cairn import codec, kernels
from cairn.images import find_images, open_image
from cairn.plan import CountsPlan, MomentsPlan, Plan, fingerprint
from edge_node.counting import Counter
from edge_node.scale import pieces
from edge_node.scale.cluster import connected
from edge_node.scale.spread import count_files
from edge_node.settings import Approval, Images, Scale, SiteSettings
from edge_node.status import Board
from edge_node.worker import Job, count_offline

ACROSS = 4  # tiles of an image's side
PIXELS = (ACROSS * SIDE) ** 2
CORES = os.cpu_count() or 1
IMAGES = 160
FEW = 4  # images that are counted tile by tile


@dataclass(frozen=True)
class Site:
    """Folders with the same image so many times."""

    folder: Path
    stage: CountsPlan

    def job(self, images: int, stage: CountsPlan | MomentsPlan) -> Job:
        """Make the work of counting so many images."""
        folder = self.folder / str(images)
        if not folder.exists():
            folder.mkdir()
            for number in range(images):
                os.link(self.folder / "slide.ome.tif", folder / f"{number:04}.ome.tif")
        plan = Plan("benchmark", 0, stage)
        settings = SiteSettings(state_dir=folder, images=Images(folder=folder), approval=Approval(studies=()))
        functions = kernels.load(settings.kernels)
        return Job(plan, fingerprint(codec.encode_plan(plan)), settings, functions, Board(), lambda: False)


def run() -> Iterator[dict[str, Any]]:
    """Measure all."""
    with tempfile.TemporaryDirectory() as name:
        write_ome_tiff(Path(name) / "slide.ome.tif", ACROSS)
        site = Site(Path(name), counts_plan(tissue_tiles()))
        alone = IMAGES * PIXELS / 1e6 / count_alone(site)
        yield _line("counts/alone", alone, "Mpixel/s", None, None)
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            both = sum(IMAGES * PIXELS / 1e6 / seconds for seconds in pool.map(count_alone, [site, site]))
        yield _line("counts/alone_twice", both, "Mpixel/s", both / alone, "alone")
        one = 0.0
        for workers in sorted({1, 2, CORES}):
            images = max(IMAGES, IMAGES // 2 * workers)
            job = site.job(images, site.stage)
            began = time.perf_counter()
            with connected(Scale(workers=workers), job.settings) as client:
                started = time.perf_counter() - began
                spread(client, site.job(2 * workers, site.stage))
                taken = spread(client, job)
                rate = images * PIXELS / 1e6 / taken
                one = one or rate
                against, other = ("alone", alone) if workers == 1 else ("1 worker", one)
                yield _line(f"counts/{workers}", rate, "Mpixel/s", rate / other, against) | {
                    "seconds": round(taken, 2),
                    "start_seconds": round(started, 2),
                    "worker_peak_mb": round(max(client.run(peak_mb).values())),
                }
        with connected(Scale(workers=2), site.job(FEW, site.stage).settings) as client:
            yield from per_piece(client, site)
        yield from memory(site)


def count_alone(site: Site) -> float:
    """Return the seconds of one thread that reads and counts by turns."""
    job = site.job(IMAGES, site.stage)
    assert job.kernels is not None  # made with them
    counter = Counter(site.stage, job.kernels)
    begin, sources = 0.0, find_images(job.settings.images.folder)
    for number, source in enumerate([sources[0], *sources]):
        if number == 1:  # the first one warmed up
            begin = time.perf_counter()
        with counter.image(), open_image(source) as image:
            counter.add(image.tiles(NAMES))
    counter.tables()
    return time.perf_counter() - begin


def spread(client: Client, job: Job) -> float:
    """Return the seconds that a count takes, from the list of files to the tally."""
    begin = time.perf_counter()
    count_offline(job, lambda job, files: count_files(job, files, client))
    return time.perf_counter() - begin


def per_piece(client: Client, site: Site) -> Iterator[dict[str, Any]]:
    """Count a few images tile by tile and as a whole; the difference is what the more pieces cost.

    Moments are small tables: there it is Dask's own cost. A counts tally's are 110 MB, made and added for every piece.
    """
    workers = len(client.nthreads())
    for name, stage in (("moments", MomentsPlan(site.stage.quantiser.pixels)), ("counts", site.stage)):
        found = {}
        for pixels in (PIXELS, SIDE**2):
            with cut_into(pixels):
                found[pixels] = min(spread(client, site.job(FEW, stage)) for _ in range(3))
        more = FEW * (ACROSS**2 - 1)
        cost = workers * (found[SIDE**2] - found[PIXELS]) / more
        yield _line(f"piece/{name}", 1e3 * cost, "ms of a worker", None, None) | {
            "images_whole_s": round(found[PIXELS], 3),
            "tile_by_tile_s": round(found[SIDE**2], 3),
        }


def memory(site: Site) -> Iterator[dict[str, Any]]:
    """Count more and more images by two workers, an image at once: how the workers' peak grows."""
    less = 0.0
    for images in (IMAGES // 8, IMAGES // 2, 2 * IMAGES):
        job = site.job(images, site.stage)
        with cut_into(PIXELS), connected(Scale(workers=2), job.settings) as client:
            spread(client, job)
            peak = max(client.run(peak_mb).values())
        less = less or peak
        yield _line(f"memory/{images}", peak, "MB", less / peak, f"{IMAGES // 8} images")


@contextmanager
def cut_into(pixels: int) -> Iterator[None]:
    """Have about as many pixels counted at once."""
    before = pieces.LEAST, pieces.MOST
    pieces.LEAST = pieces.MOST = pixels
    try:
        yield
    finally:
        pieces.LEAST, pieces.MOST = before


def _line(name: str, value: float, unit: str, ratio: float | None, against: str | None) -> dict[str, Any]:
    rounded = None if ratio is None else round(ratio, 3)
    return {"name": f"dask/{name}", "value": round(value, 2), "unit": unit, "ratio": rounded, "against": against}
