"""From a file to a counts tally, and how time and memory grow with pixels.

Each measurement runs in a process of its own, so that its peak memory is its own. The image file is made on the spot,
tile by tile, and deleted; its pages are dropped from the page cache before every timed read.

    python -m benchmarks scaling > LINES; python -m benchmarks.ingest plot LINES FILE.png      draws scaling/pixels
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from matplotlib.figure import Figure

from cairn import codec, kernels, moments
from cairn.images import Tile, find_images, open_image
from cairn.pixels import INTENSITY_BINS, UNIT_BINS, PixelLevels, Quantiser
from cairn.plan import CountsPlan, Plan, prefix_levels
from cairn.ranges import ranges
from cairn.sketch import SketchSpec
from edge_node.counting import Counter

BANDS, SIDE, VARIANTS = 35, 512, 3
NAMES = tuple(f"band {b}" for b in range(BANDS))
WORKERS = 2
FILE_BYTES = 4 * 10**9
RSS_LIMIT = 600  # MB
SIZES = (1, 3, 10, 30, 100)  # million pixels


def run() -> Iterator[dict[str, Any]]:
    """Measure both."""
    yield from ingest()
    yield from scaling()


def ingest() -> Iterator[dict[str, Any]]:
    """Count an OME-TIFF of 4 GB (less where there is no room), beside a bare read of it and the projection alone."""
    with prepared() as folder:
        path = folder / "slides" / "slide.ome.tif"
        path.parent.mkdir()
        across = ceil((min(FILE_BYTES, shutil.disk_usage(folder).free // 2) / (2 * BANDS)) ** 0.5 / SIDE)
        write_ome_tiff(path, across)
        size = path.stat().st_size / 1e6
        bare = min(bare_read(path) for _ in range(2))
        found = best(folder, "file", str(path))
        projection = 2 * BANDS * best(folder, "projection", "10")["rate"] * WORKERS
    speed = size / found["seconds"]
    line = {"name": "ingest/ome_tiff", "value": round(speed, 1), "unit": "MB/s"}
    more = {"megapixels_per_s": round(found["pixels"] / found["seconds"] / 1e6, 2), "workers": WORKERS}
    yield line | {"ratio": round(speed / (size / bare), 3), "against": f"bare_read {size / bare:.0f} MB/s"} | more
    yield line | {"ratio": round(speed / projection, 3), "against": f"projection alone {projection:.0f} MB/s"} | more
    yield {
        "name": "ingest/ome_tiff/peak_rss",
        "value": round(found["peak_mb"]),
        "unit": "MB",
        "ratio": round(RSS_LIMIT / found["peak_mb"], 3),
        "against": f"limit {RSS_LIMIT} MB, for a file of {size:.0f} MB",
    }


def scaling() -> Iterator[dict[str, Any]]:
    """Count 1 to 100 million pixels from memory; the ratio is pixels per second of CPU time against the largest's."""
    with prepared() as folder:
        found = {size: best(folder, "stream", str(size)) for size in SIZES}
    rate = {size: one["pixels"] / one["cpu_seconds"] for size, one in found.items()}
    for size, one in found.items():
        yield {
            "name": f"scaling/pixels/{size}M",
            "value": round(one["seconds"], 4),
            "unit": "s",
            "ratio": round(rate[size] / rate[SIZES[-1]], 3),
            "against": f"pixels per CPU second of {SIZES[-1]}M",
            "cpu_seconds": round(one["cpu_seconds"], 4),
            "peak_mb": round(one["peak_mb"]),
        }


@contextmanager
def prepared() -> Iterator[Path]:
    """Make a folder with tiles and a counts plan fitted to them, for the measuring processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiles = tissue_tiles()
        np.save(folder / "tiles.npy", tiles)
        (folder / "plan").write_bytes(codec.encode_plan(Plan("benchmark", 0, counts_plan(tiles))))
        yield folder


def best(folder: Path, *arguments: str) -> dict[str, float]:
    """Run this module three times in a process of its own; return what the fastest printed."""
    command = [sys.executable, "-m", "benchmarks.ingest", str(folder), *arguments]
    answers: list[dict[str, float]] = [
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)
    ]
    return min(answers, key=lambda one: one["seconds"])


def tissue_tiles(seed: int = 0) -> npt.NDArray[np.uint16]:
    """Make tiles of glass and eight cell types, 12 bits deep; uint16[VARIANTS, BANDS, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    spectra = rng.gamma(0.5, 1, (8, BANDS))
    spectra *= 800 / spectra.max(axis=1, keepdims=True)
    tiles = np.empty((VARIANTS, BANDS, SIDE, SIDE), np.uint16)
    for tile in tiles:
        cells = np.kron(rng.integers(-3, 8, (SIDE // 16, SIDE // 16)), np.ones((16, 16), int))
        light = spectra[cells].transpose(2, 0, 1) * (cells >= 0) * rng.lognormal(0, 0.3, (SIDE, SIDE))
        tile[:] = np.clip(light + np.sqrt(light + 9) * rng.standard_normal(light.shape) + 30, 0, 4095)
    return tiles


def counts_plan(tiles: npt.NDArray[np.uint16], names: tuple[str, ...] = NAMES, components: int = 8) -> CountsPlan:
    """Fit the defaults (8 components, radix 22, 16 x 200,000) to the tiles, as a study does."""
    numba = kernels.load("numba")
    levels = np.ascontiguousarray(tiles.transpose(1, 0, 2, 3)).reshape(len(names), -1)
    axes = moments.projection(
        {"pixels": np.array([levels.shape[1]]), "second": moments.split(numba.moments(levels)[1])}, components
    )
    unit = np.zeros((components, INTENSITY_BINS, UNIT_BINS), np.int64)
    numba.unit_histogram(levels, axes, unit)
    found = ranges({"unit": unit})
    quantiser = Quantiser(PixelLevels(names), axes, found.min_norm, found.low, found.high, 22)
    return CountsPlan(quantiser, SketchSpec(16, 200_000, bytes(32)), *prefix_levels(quantiser.keyspace))


def write_ome_tiff(path: Path, across: int, compression: str | None = None) -> None:
    """Write a square planar OME-TIFF of across x across tiles, one tile in memory at a time."""
    tiles = tissue_tiles()
    order = (
        np.roll(tiles[t % VARIANTS, band], t, axis=1)  # the same for every band, so that pixels stay pixels
        for band in range(BANDS)
        for t in range(across**2)
    )
    tifffile.imwrite(
        path,
        order,
        shape=(BANDS, across * SIDE, across * SIDE),
        dtype=np.uint16,
        tile=(SIDE, SIDE),
        compression=compression,
        predictor=compression is not None,
        bigtiff=True,
        ome=True,
        photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": list(NAMES)}},
    )


def drop_pages(path: Path) -> None:
    """Ask the kernel to forget the file's pages, so that the next read is from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare_read(path: Path) -> float:
    """Return the seconds that reading the whole file takes, 8 MiB at a time."""
    drop_pages(path)
    buffer = bytearray(8 << 20)
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begin


def load(folder: Path) -> tuple[npt.NDArray[np.uint16], CountsPlan]:
    """Read the tiles and the plan that were prepared."""
    stage = codec.decode_plan((folder / "plan").read_bytes()).stage
    assert isinstance(stage, CountsPlan)
    return np.load(folder / "tiles.npy", mmap_mode="r"), stage


def warm_counter(tiles: npt.NDArray[np.uint16], stage: CountsPlan) -> Counter:
    """Make a counter that has counted a few pixels, so that what is compiled is loaded."""
    counter = Counter(stage, kernels.load("numba"), WORKERS)
    with counter.image():
        counter.add([Tile(0, 0, 0, np.array(tiles[0, :, :16]))])
    return counter


def project(folder: Path, repeats: int) -> dict[str, float]:
    """Turn a tile into keys on one thread, from memory; the rate is in million pixels a second."""
    tiles, stage = load(folder)
    levels = np.array(tiles[0]).reshape(BANDS, -1)
    numba = kernels.load("numba")
    stage.quantiser.keys(levels[:, :100], numba)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        stage.quantiser.keys(levels, numba)
        seconds.append(time.perf_counter() - begin)
    return {"rate": levels.shape[1] / min(seconds) / 1e6, "seconds": min(seconds)}


def count_file(folder: Path, path: Path) -> dict[str, float]:
    """Count a file that is not in the page cache."""
    counter = warm_counter(*load(folder))
    drop_pages(path)
    (source,) = find_images(path.parent)
    begin = time.perf_counter()
    with counter.image(), open_image(source) as image:
        pixels = counter.add(image.tiles(NAMES))
    counter.tables()
    return {"pixels": pixels, "seconds": time.perf_counter() - begin, "peak_mb": peak_mb()}


def count_stream(folder: Path, megapixels: int) -> dict[str, float]:
    """Count so many pixels, tile after tile from memory."""
    mapped, stage = load(folder)
    counter = warm_counter(mapped, stage)
    tiles = np.array(mapped)
    del mapped
    begin, cpu = time.perf_counter(), time.process_time()
    with counter.image():
        pixels = counter.add(Tile(0, 0, 0, tiles[i % VARIANTS]) for i in range(round(megapixels * 1e6 / SIDE**2)))
    counter.tables()
    taken = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    return {"pixels": pixels, "peak_mb": peak_mb()} | taken


def peak_mb() -> float:
    """Return this process's peak resident memory in MB (getrusage would count its parent's at the start too)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def plot(measured: Path, path: Path) -> None:
    """Draw processor time and peak memory against pixels, from the lines that were printed."""
    every = (json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines())
    lines = [line for line in every if line["name"].startswith("scaling/pixels/")]
    figure = Figure(figsize=(6, 4), layout="constrained")
    seconds = figure.add_subplot()
    seconds.loglog(SIZES, [line["cpu_seconds"] for line in lines], "o-", color="#0072b2", label="time")
    linear = [lines[-1]["cpu_seconds"] * n / SIZES[-1] for n in SIZES]
    seconds.loglog(SIZES, linear, ":", color="#0072b2", label="linear")
    seconds.set(xlabel="million pixels of 35 bands", ylabel="seconds of processor time")
    memory = seconds.twinx()
    memory.plot(SIZES, [line["peak_mb"] for line in lines], "s-", color="#d55e00")
    memory.set(ylabel="peak memory, MB (orange)", ylim=(0, RSS_LIMIT))
    seconds.legend(loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["plot", lines, name]:
            plot(Path(lines), Path(name))
        case [folder, "file", name]:
            print(json.dumps(count_file(Path(folder), Path(name))))
        case [folder, "stream", size]:
            print(json.dumps(count_stream(Path(folder), int(size))))
        case [folder, "projection", repeats]:
            print(json.dumps(project(Path(folder), int(repeats))))
        case _:
            sys.exit(__doc__)
