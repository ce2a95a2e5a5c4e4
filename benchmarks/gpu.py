"""All of a GPU's figures: keys and pixels into tables beside what the card can do at most, and beside others.

    python -m benchmarks gpu                       about four minutes on an H100
    CAIRN_GPU_SCALE=1e-4 python -m benchmarks gpu  tries everything out; such figures mean nothing

Without CuPy and a GPU there is nothing to measure, and no line. `ratio` is the share of the floor, or how many times
faster than the peer. A part that fails says so in a line of its own, and the others go on.
"""

import time
import traceback
from collections.abc import Iterator
from typing import Any

from cairn import kernels


def run() -> Iterator[dict[str, Any]]:
    """Measure everything that needs a GPU."""
    if kernels.best()[0] != "cupy":
        return
    from benchmarks import gpu_figures as figures  # noqa: PLC0415 (only where there is CuPy)
    from benchmarks.gpu_data import free  # noqa: PLC0415
    from benchmarks.gpu_floors import about  # noqa: PLC0415

    yield about()
    parts = (figures.floors, figures.exact, figures.keys, figures.pixels, figures.scaling, figures.host)
    for part in (*parts, figures.file, figures.stages, figures.recovery, figures.peers):
        begin = time.perf_counter()
        try:
            yield from part()
        except Exception as error:  # noqa: BLE001 - a lent card's minutes are few: what else works is measured
            where = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__}: {error}; {where.filename}:{where.lineno}"
            yield {"name": f"gpu/failed/{part.__name__}", "error": found}
        free()
        yield {"name": f"gpu/took/{part.__name__}", "value": time.perf_counter() - begin, "unit": "s"}
