"""The figures themselves; see `benchmarks.gpu`. Times are the card's own where all is on the card, else the clock's."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import gpu_peers
from benchmarks.gpu_data import free, keys_on_card, some_image_keys, tables_on_card, tissue, used
from benchmarks.gpu_floors import SCALE, additions_rate, bus_rate, clock_seconds, copy_rate, seconds, sized
from benchmarks.recovery import TOP, paper_plan
from cairn import kernels
from cairn.device import DeviceCounter, key_counter
from cairn.heavy import recover
from cairn.kernels import cupy_tables
from cairn.pixels import INTENSITY_BINS, UNIT_BINS

KEYS = 1_000_000_000
CHECKED = 20_000_000
PEER_KEYS = 100_000_000
PIXELS = 100_000_000
HOST_PIXELS = 50_000_000
FILE_SIDES = 8  # tiles of 512 x 512 across: 1.2 GB of 35 bands
SHAPES = ((16, 200_000), (10, 20_000))
SIZES = (10**6, 10**7, 10**8, 10**9, 10**10)
WORKERS = 8  # threads that fill page-locked memory

Line = dict[str, Any]


def the_gpu() -> kernels.Kernels:
    """Return the GPU's kernels, behind which nothing stands: a failure must not be measured as a slow success."""

    def fail(why: str) -> None:
        raise RuntimeError(why)

    return kernels.load("cupy", fail)


def floors() -> Iterator[Line]:
    """Measure what the card can do at most."""
    yield {"name": "gpu/floor/copy", "value": copy_rate() / 1e9, "unit": "GB/s"}
    yield {"name": "gpu/floor/bus", "value": bus_rate() / 1e9, "unit": "GB/s"}
    for where, counters in (("l2", 3_200_000), ("l2", 200_000), ("shared", 40_000)):
        rate = additions_rate(where, counters)
        yield {"name": f"gpu/floor/additions_{where}/{counters}", "value": rate / 1e9, "unit": "G/s"}


def exact() -> Iterator[Line]:
    """Compare all tables with the CPU's, on image keys and on uniform ones."""
    numba = kernels.load("numba")
    for stream in ("image", "uniform"):
        sample = keys_on_card(stream, sized(CHECKED)).get()
        for depth, width in SHAPES:
            sketches, dense, seeds = tables_on_card(depth, width)
            cupy_tables.count_keys(cupy.asarray(sample), (0,), sketches, 16, dense, seeds)
            expected = np.zeros((depth, width), np.int32)
            numba.update(expected, sample, np.ones(len(sample), np.int64), seeds)
            same = np.array_equal(sketches.get()[0], expected) and int(dense.sum()) == len(sample)
            yield {"name": f"gpu/exact/{depth}x{width}/{stream}", "value": int(same), "unit": "1 is equal"}


def keys() -> Iterator[Line]:
    """Count a thousand million keys that lie on the card, beside the larger of two floors; also by slots alone."""
    for stream in ("image", "uniform"):
        some = keys_on_card(stream, sized(KEYS))
        n = len(some)
        for depth, width in SHAPES:
            sketches, dense, seeds = tables_on_card(depth, width)
            rows = cupy_tables.private_rows((1, depth, width), n)[0]
            floors = {
                "bytes": n * 8 / copy_rate(),
                "additions": n
                * depth
                / (additions_rate("shared", 40_000) if rows else additions_rate("l2", 3_200_000)),
            }
            larger = max(floors, key=lambda name: floors[name])
            for private in (True, False) if rows else (True,):
                count = partial(cupy_tables.count_keys, private=private)
                taken = seconds(partial(count, some, (0,), sketches, 16, dense, seeds))
                line: Line = {"name": f"gpu/keys/{depth}x{width}/{stream}", "value": taken, "unit": "s"}
                line |= {"ratio": floors[larger] / taken, "against": f"the larger floor, of {larger}"}
                line |= {f"floor_of_{name}_s": least for name, least in floors.items()}
                yield line | {"mkeys_per_s": n / taken / 1e6, "keys": n, "private_rows": rows if private else 0}
        del some
        free()


def scaling() -> Iterator[Line]:
    """Count 10^6 to 10^10 image keys, of which a thousand million at a time lie on the card."""
    every = keys_on_card("image", sized(KEYS))
    for depth, width in SHAPES:
        sketches, dense, seeds = tables_on_card(depth, width)
        before = used()
        for size in (sized(size, 10) for size in SIZES):
            times, some = max(1, size // len(every)), every[: min(size, len(every))]

            def work(some: Any = some, times: int = times) -> None:
                for _ in range(times):
                    cupy_tables.count_keys(some, (0,), sketches, 16, dense, seeds)  # noqa: B023 (called at once)

            taken = seconds(work, 1 if times > 1 else 3)
            rate = times * len(some) / taken
            line = {"name": f"gpu/scaling/{depth}x{width}/{size:.0e}", "value": taken, "unit": "s"}
            yield line | {"mkeys_per_s": rate / 1e6, "memory_mb": (used() - before + sketches.nbytes) / 1e6}


def pixels() -> Iterator[Line]:
    """Count pixels of 35 bands that lie on the card, in one pass, beside copying their bytes."""
    tiles, stage = tissue()
    quantiser = stage.quantiser
    of_pixels = (quantiser.projection, quantiser.min_norm, quantiser.low, quantiser.gain, quantiser.radix)
    n = sized(PIXELS)
    shifts = tuple(quantiser.keyspace.bits - bits for bits in stage.sketch_bits)
    for stream in ("image", "uniform"):
        if stream == "image":
            levels = cupy.tile(cupy.asarray(tiles), (1, -(-n // tiles.shape[1])))[:, :n].copy()
        else:
            levels = cupy.random.default_rng(0).integers(0, 4096, (len(tiles), n)).astype(cupy.uint16)
        for cuts in (shifts, shifts[-1:]):
            sketches, dense, seeds = tables_on_card(16, 200_000, len(cuts))
            work = partial(cupy_tables.count_pixels, levels, *of_pixels, cuts, sketches, 16, dense, seeds)
            taken = seconds(work)
            floor = levels.nbytes / copy_rate()
            name = f"gpu/pixels/{stream}/{len(cuts)}_levels"
            line = {"name": name, "value": taken, "unit": "s", "ratio": floor / taken, "against": "copy"}
            yield line | {"mpixels_per_s": n / taken / 1e6}
        del levels
        free()


def stages() -> Iterator[Line]:
    """Take pixels of the host's memory through the other stages' functions, beside the CPU's kernels on one thread."""
    tiles, stage = tissue()
    quantiser = stage.quantiser
    n = sized(4_000_000)
    levels = np.tile(tiles, (1, -(-n // tiles.shape[1])))[:, :n].copy()
    keyed = quantiser.keys(levels, kernels.load("numba"))
    listed = np.unique(keyed[::50])[:20_000]
    clusters = (keyed % np.uint64(11)).astype(np.uint8)
    unit = np.zeros((len(quantiser.projection), INTENSITY_BINS, UNIT_BINS), np.int64)
    sums, counts = np.zeros((10, len(levels)), np.int64), np.zeros(10, np.int64)
    taken: dict[str, dict[str, float]] = {}
    for backend in ("numba", "cupy"):
        functions = the_gpu() if backend == "cupy" else kernels.load("numba")
        with threadpool_limits(1, "blas"):
            of_moments = clock_seconds(partial(functions.moments, levels))
        taken[backend] = {
            "moments": of_moments,
            "ranges": clock_seconds(partial(functions.unit_histogram, levels, quantiser.projection, unit)),
            "keys": clock_seconds(partial(quantiser.keys, levels, functions)),
            "profile": clock_seconds(partial(functions.profile, levels, clusters, counts, sums)),
            "lookup": clock_seconds(partial(functions.lookup, keyed, listed)),
        }
    for name, found in taken["cupy"].items():
        ratio = taken["numba"][name] / found
        line = {"name": f"gpu/stages/{name}", "value": n / found / 1e6, "unit": "Mpixels/s", "ratio": ratio}
        yield line | {"against": "numba, one thread"}


def host() -> Iterator[Line]:
    """Count pixels of the host's memory, copies and counting overlapped, beside copying page-locked memory alone."""
    tiles, stage = tissue()
    n = max(1, sized(HOST_PIXELS) // tiles.shape[1])
    for workers in (1, WORKERS):
        counter = key_counter(stage, the_gpu(), workers)
        assert isinstance(counter, DeviceCounter)

        def work(counter: DeviceCounter = counter, workers: int = workers) -> None:
            def share(worker: int) -> None:
                for _ in range(worker, n, workers):
                    counter.add_pixels(tiles, worker)

            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(share, range(workers)))

        taken = clock_seconds(work)
        counter.rollback()
        floor = n * tiles.nbytes / bus_rate()
        line = {"name": f"gpu/host/{workers}_threads", "value": taken, "unit": "s", "ratio": floor / taken}
        yield line | {"against": "bus", "mpixels_per_s": n * tiles.shape[1] / taken / 1e6}


def file() -> Iterator[Line]:
    """Count an OME-TIFF as a site does, beside reading its tiles alone; the file is in the page cache for both."""
    from benchmarks import ingest  # noqa: PLC0415
    from cairn.images import find_images, open_image  # noqa: PLC0415
    from edge_node.counting import Counter  # noqa: PLC0415

    _, stage = tissue()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "slide.ome.tif"
        ingest.write_ome_tiff(path, max(1, round(FILE_SIDES * SCALE**0.5)))
        (source,) = find_images(path.parent)

        def read() -> None:
            with open_image(source) as image:
                for _ in image.tiles(ingest.NAMES, readers=WORKERS):
                    pass

        alone = clock_seconds(read)
        for backend in ("cupy", "numba"):
            counter = Counter(stage, the_gpu() if backend == "cupy" else kernels.load("numba"), WORKERS)

            def count(counter: Counter = counter) -> None:
                with counter.image(), open_image(source) as image:
                    counter.add(image.tiles(ingest.NAMES, readers=WORKERS))

            taken = clock_seconds(count)
            line = {"name": f"gpu/file/{backend}", "value": path.stat().st_size / taken / 1e6, "unit": "MB/s"}
            yield line | {"ratio": alone / taken, "against": f"reader alone, {alone:.3g} s"}
    yield jpeg2000()


def jpeg2000() -> Line:
    """Decode slices of JPEG 2000 without loss by nvImageCodec, where it is installed, beside one thread of the CPU."""
    import imagecodecs  # noqa: PLC0415

    from benchmarks import ingest  # noqa: PLC0415
    from cairn.images.gpu_decoding import gpu_decoder  # noqa: PLC0415

    line: Line = {"name": "gpu/file/jpeg2000", "value": 0.0, "unit": "MB/s", "against": "nvImageCodec is not installed"}
    decode, slices = gpu_decoder(), ingest.tissue_tiles()[0]
    if decode is None:
        return line
    encode = partial(imagecodecs.jpeg2k_encode, level=0, reversible=True, codecformat="j2k", bitspersample=12)
    stored = [bytes(encode(one)) for one in slices]
    plain = clock_seconds(lambda: [imagecodecs.jpeg2k_decode(data) for data in stored])
    taken = clock_seconds(
        lambda: [decode(data, one.dtype, 12, one.copy) for data, one in zip(stored, slices, strict=True)]
    )
    line |= {"value": slices.nbytes / taken / 1e6, "ratio": plain / taken, "against": f"one thread, {plain:.3g} s"}
    return line | {"believed": decode.verdicts[12, False]}


def recovery() -> Iterator[Line]:
    """Recover the 20,000 most frequent keys with the tables on the card, beside the CPU's two threads."""
    gpu, numba = the_gpu(), kernels.load("numba")
    for depth, width in SHAPES:
        stage = paper_plan(depth, width)
        counter = key_counter(stage, gpu)
        counter.add(some_image_keys())
        tables = counter.tables()
        taken = {
            one.name: clock_seconds(partial(recover, tables, stage, sized(TOP * 5 // 4, 20), one))
            for one in (gpu, numba)
        }
        line = {"name": f"gpu/recovery/{depth}x{width}", "value": taken["cupy"], "unit": "s"}
        yield line | {"ratio": taken["numba"] / taken["cupy"], "against": f"numba, {taken['numba']:.3g} s"}


def peers() -> Iterator[Line]:
    """Compare with others' ways on the same card, over the same keys; ours and the bincount must agree."""
    some = keys_on_card("image", sized(PEER_KEYS))
    device = "cpu" if cupy.__version__ == "emulated" else "cuda"
    for depth, width in SHAPES:
        sketches, dense, seeds = tables_on_card(depth, width)
        others = {
            "cupy_bincount": gpu_peers.bincount_rows(some, seeds, width),
            "cupy_unique": gpu_peers.unique(some),
            "csvec_torch": gpu_peers.csvec(some, depth, width, device),
        }
        cupy_tables.count_keys(some, (0,), sketches, 16, dense, seeds)
        same = bool((others["cupy_bincount"]().astype(cupy.int32) == sketches[0]).all())
        ours = seconds(partial(cupy_tables.count_keys, some, (0,), sketches, 16, dense, seeds))
        for name, work in others.items():
            taken = seconds(work)
            line = {"name": f"gpu/peers/{depth}x{width}/{name}", "value": len(some) / taken / 1e6, "unit": "Mkeys/s"}
            yield line | {
                "ratio": taken / ours,
                "against": f"ours is so many times faster: {ours:.4g} s",
                "equal": same,
            }
        free()
