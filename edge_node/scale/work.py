"""What a worker does: it opens the images itself, counts a batch of pieces, and keeps the tables until they are added.

Everything here is a function of what it is given, and of files that may not change: done again elsewhere, it gives the
same. Pixels stay in the worker.
"""

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from distributed import get_worker

import cairn
from cairn import codec, kernels
from cairn.errors import ConfigError
from cairn.images.gpu_decoding import GpuDecoder, gpu_decoder
from cairn.plan import Plan
from edge_node.counting import Counter, despite_a_lost_gpu
from edge_node.fitness import Unfit, check_unchanged, levels_of, opened, pixel_stage, readable, readers_of
from edge_node.scale.pieces import Piece, Sum, hold, narrow
from edge_node.settings import Images
from edge_node.status import Problem
from edge_node.worker import File, Wanted, add_tiles, look_at


@dataclass(frozen=True)
class Order:
    """What all workers are told.

    version    of the Cairn that asks
    published  the plan's bytes
    backend    "auto" is each machine's own fastest: all count the same
    topic      under which a worker tells which piece it has done
    """

    version: str
    published: bytes
    images: Images
    backend: Literal["auto", "numpy", "numba", "cupy"]
    topic: str


def ready(version: str, folder: str) -> None:
    """Refuse to count with another Cairn, or where the images are not. Raises ConfigError."""
    if cairn.__version__ != version:
        raise ConfigError(
            f"has Cairn {cairn.__version__}, and {version} asks; install cairn-federation=={version} there"
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"has no folder {folder}; mount the images there under the same path")


def look_at_files(files: tuple[File, ...], order: Order) -> list[Wanted | Problem]:
    """Open images and see what there is to be counted, or why not. Raises ConfigError where this worker cannot."""
    ready(order.version, str(order.images.folder))
    plan = codec.decode_plan(order.published)
    found: list[Wanted | Problem] = []
    for file in files:
        try:
            found.append(look_at(file, plan, order.images))
        except Unfit as unfit:
            found.append(unfit.problem)
    return found


def count_batch(batch: tuple[Piece, ...], order: Order) -> Sum:
    """Count pieces, each wholly or not at all. Raises ConfigError where this worker cannot."""
    ready(order.version, str(order.images.folder))
    plan = codec.decode_plan(order.published)
    functions = kernels.load(kernels.best()[0] if order.backend == "auto" else order.backend)
    counter = Counter(pixel_stage(plan), functions)
    on_gpu = functions.name == "cupy"
    readers, gpu = (readers_of(functions, 1), gpu_decoder()) if on_gpu else (0, None)
    unfit = []
    for piece in batch:
        try:
            despite_a_lost_gpu(partial(_count_piece, piece, plan, order, counter, readers, gpu))
        except Unfit as error:
            unfit.append((piece.image, error.problem))
        get_worker().log_event(order.topic, [piece.number, piece.pixels])
    held = hold((piece.number, piece.number + 1) for piece in batch)
    return Sum(held, narrow(counter.tables()) if len(unfit) < len(batch) else None, tuple(unfit))


def _count_piece(
    piece: Piece, plan: Plan, order: Order, counter: Counter, readers: int, gpu: GpuDecoder | None
) -> None:
    """Count one piece, or take it back. Raises Unfit.

    It is read, and decoded, by the thread that counts: a worker is one core, and there is one for each. A GPU counts
    while the next tiles are read.
    """
    one = piece.wanted
    check_unchanged(one.source, one.stamp)
    with (
        counter.image(),
        opened(one.source, order.images, max(1, readers), gpu) as image,
        closing(image.tiles(levels_of(plan).bands, part=piece.tiles, readers=readers)) as tiles,
    ):
        add_tiles(one, readable(tiles), counter)
