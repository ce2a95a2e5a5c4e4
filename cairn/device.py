"""Counting with the tables in a GPU's memory, image by image: a GPU that fails costs an image's time and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from cairn.errors import DeviceError
from cairn.hashing import Keys
from cairn.heavy import Counts, KeyCounter
from cairn.kernels import Kernels
from cairn.kernels.pixels_numpy import Levels
from cairn.plan import CountsPlan


def key_counter(stage: CountsPlan, kernels: Kernels, workers: int = 1) -> "KeyCounter | DeviceCounter":
    """Return what counts a plan's keys with these kernels, in a GPU's memory where they have one."""
    of_pixels = stage.quantiser
    bits = of_pixels.keyspace.bits
    if kernels.device_tables is not None:
        there = kernels.device_tables(
            tuple(bits - each for each in stage.sketch_bits),
            (stage.sketch.depth, stage.sketch.width),
            bits - stage.dense_bits,
            2**stage.dense_bits,
            stage.sketch.seeds(),
            (of_pixels.projection, of_pixels.min_norm, of_pixels.low, of_pixels.gain, of_pixels.radix),
            workers,
        )
        if there is not None:
            return DeviceCounter(stage, kernels, there, workers)
    return KeyCounter(stage, kernels.cpu or kernels, workers)


@final
class DeviceCounter:
    """Count as `KeyCounter` does, which has the same methods.

    The GPU holds the image at hand; a checkpoint adds it to the host's tables, a rollback forgets it. Whatever raises
    DeviceError has kept nothing since the last checkpoint: after a rollback, the same calls count on the CPU.

    there  a `cairn.kernels.cupy_tables.DeviceTables`
    """

    def __init__(self, stage: CountsPlan, kernels: Kernels, there: Any, workers: int = 1) -> None:
        self._stage, self._kernels, self._workers = stage, kernels, workers
        self._there = there
        self._names = [f"sketch_{bits}" for bits in stage.sketch_bits]
        shapes = stage.shapes()
        self._kept: dict[str, Counts] = {name: np.zeros(shapes[name], np.int64) for name in (*self._names, "dense")}
        self._waiting = False
        self._failure: DeviceError | None = None
        self._on_cpu: KeyCounter | None = None

    def add(self, keys: Keys, worker: int = 0) -> None:
        """Count keys uint64[n]. Raises DeviceError."""
        if self._on_cpu:
            self._on_cpu.add(keys, worker)
        else:
            with self._noted():
                self._there.count_keys(keys)

    def add_pixels(self, levels: Levels, worker: int = 0) -> None:
        """Count the foreground of pixels uint16[bands, n]. Raises DeviceError."""
        if self._on_cpu:
            self._on_cpu.add_pixels(levels, worker)
        else:
            with self._noted():
                self._there.count_pixels(levels, worker)

    def checkpoint(self) -> None:
        """Keep all that was added. Raises DeviceError; then nothing of it is kept."""
        if self._on_cpu:
            self._on_cpu.checkpoint()
        elif self._waiting:
            with self._noted():
                sketches, dense = self._there.take()
            for name, table in zip((*self._names, "dense"), (*sketches, dense), strict=True):
                self._kept[name] += table
            self._waiting = False

    def rollback(self) -> None:
        """Take back, exactly, all that was added since the last checkpoint; after a DeviceError the CPU goes on."""
        if self._on_cpu:
            self._on_cpu.rollback()
            return
        self._waiting = False
        try:
            self._there.clear()
        except DeviceError as error:
            self._failure = error
        if self._failure:
            self._kernels.failed(self._failure)
            self._on_cpu = KeyCounter(self._stage, self._kernels.cpu or self._kernels, self._workers)

    def tables(self) -> dict[str, Counts]:
        """Sum all that was counted; a checkpoint too. They are the counter's own arrays, as `KeyCounter`'s are."""
        self.checkpoint()
        if self._on_cpu is None:
            return self._kept
        return {name: self._kept[name] + table for name, table in self._on_cpu.tables().items()}

    @contextmanager
    def _noted(self) -> Iterator[None]:
        self._waiting = True
        try:
            yield
        except DeviceError as error:
            self._failure = error
            raise
