"""What the GPU's figures are made of: keys and tables on the card, pixels of tissue with a plan fitted to them."""

from functools import cache
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from benchmarks.gpu_floors import sized
from benchmarks.keys import SPACE, image_keys
from cairn.hashing import row_seeds

SOME = 20_000_000  # image keys that are made; the stream repeats them
SEED = bytes(range(32))


@cache
def some_image_keys() -> npt.NDArray[np.uint64]:
    """Make keys as images have them, in the host's memory."""
    return image_keys(sized(SOME))


def keys_on_card(stream: str, n: int) -> Any:
    """Make keys on the card: those of images, over and over, or uniform ones over the whole key space."""
    if stream == "uniform":
        return cupy.random.default_rng(0).integers(0, SPACE.size, n).astype(cupy.uint64)
    some = cupy.asarray(some_image_keys())
    return cupy.tile(some, -(-n // len(some)))[:n]


def tables_on_card(depth: int, width: int, levels: int = 1) -> tuple[Any, Any, npt.NDArray[np.uint64]]:
    """Make sketches, a dense table of 20 bits, and the rows' seeds."""
    sketches = cupy.zeros((levels, depth, width), cupy.int32)
    return sketches, cupy.zeros(2**20, cupy.int32), row_seeds(SEED, depth)


@cache
def tissue() -> tuple[npt.NDArray[np.uint16], Any]:
    """Make pixels of tissue, uint16[35, n], and a plan fitted to them."""
    from benchmarks import ingest  # noqa: PLC0415 (it needs what keys do not)

    tiles = ingest.tissue_tiles()
    flat = np.ascontiguousarray(tiles.transpose(1, 0, 2, 3)).reshape(ingest.BANDS, -1)
    return flat[:, : sized(flat.shape[1])].copy(), ingest.counts_plan(tiles)


def free() -> None:
    """Give the card's memory back."""
    cupy.get_default_memory_pool().free_all_blocks()


def used() -> int:
    """Count the bytes of the card that arrays hold."""
    return int(cupy.get_default_memory_pool().used_bytes())
