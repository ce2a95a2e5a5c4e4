"""Replay with a million transitions of 45 x 45: drawing, adding and memory, beside a bare uniform draw.

The bare draw is what no replay can do without: row numbers at random, and their frames copied. Both take turns, round
after round, and each one's best turn counts; a second is one of the processor's. Frames are of random brightness in
each cell, so that nearly all keys differ: the dearest case for the samplers that keep unique tuples only.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.config import DqnConfig
from agent_trainer.frames import FrameRing
from agent_trainer.replay import Replay
from agent_trainer.samplers import SAMPLERS
from cairn import kernels
from cairn.sketch import Sketch, SketchSpec
from cairn.transitions import TransitionCoder

AGENTS, STEP = 256, 32  # that fill, and that act in the turn that is measured
BATCH, TURNS, TIMES = 48, 15, 60
BOX, CELL = 45, 15
SEED = 0

Line = dict[str, Any]


def run() -> Iterator[Line]:
    """Measure each sampler by itself: four at once do not fit into every machine."""
    for name in SAMPLERS:
        yield from one(name)


def one(name: str) -> Iterator[Line]:
    """Fill a replay one and a quarter times over, then draw, update and add."""
    rng = np.random.default_rng(SEED)
    config = DqnConfig(replay=name, envs=AGENTS)
    thresholds = np.tile(np.arange(32, 256, 32, dtype=np.uint8), (9, 1))
    coder = TransitionCoder(config.pool, thresholds, 1, config.actions, config.reward_edges)
    before = resident()
    replay = Replay(config.capacity, (1, BOX, BOX), config, coder, rng=rng)
    bank = rng.integers(0, 256, (4096, 1, 3, 3), np.uint8).repeat(CELL, axis=2).repeat(CELL, axis=3)

    def add(n: int) -> None:
        a, r = rng.integers(0, config.actions, n).astype(np.uint8), rng.normal(size=n).astype(np.float32)
        frames, discount = bank[rng.integers(0, len(bank), n)], np.full(n, config.gamma, np.float32)
        replay.add(np.arange(n), np.zeros(n, np.int64), a, r, discount, frames)

    for step in range(5 * config.capacity // (4 * AGENTS)):
        if step % 50 == 0:
            replay.begin(bank[rng.integers(0, len(bank), AGENTS)], np.arange(AGENTS))
        add(AGENTS)
    taken = resident() - before
    sketch = Sketch(SketchSpec(config.sketch_depth, config.sketch_width, bytes(32)), kernels.load("numba"))
    sketch.update(replay.take_keys())
    began = time.process_time()
    replay.count_with(sketch.estimate)
    recount = time.process_time() - began
    ring = FrameRing(config.capacity, (1, BOX, BOX), None, 0)
    ring.write(np.zeros((1, 1, BOX, BOX), np.uint8))
    written = np.zeros((1000, 1, BOX, BOX), np.uint8)
    for _ in range(config.capacity // len(written)):
        ring.write(written)
    serials = np.arange(ring.next - ring.slots, ring.next - 4)[:, None] + np.arange(5)
    errors = rng.normal(size=BATCH).astype(np.float32)
    rates = best(
        {
            "bare": lambda: ring.read(serials[rng.integers(0, len(serials), BATCH)]),
            "draw": lambda: replay.sample(BATCH),
            "draw_and_update": lambda: replay.update(replay.sample(BATCH).index, errors),
        },
        BATCH,
    )
    for what in ("draw", "draw_and_update"):
        against = {"ratio": rates[what] / rates["bare"], "against": "a bare uniform draw"}
        yield {"name": f"replay/{name}/{what}", "value": rates[what], "unit": "transitions/s", **against}
    added = best({"add": lambda: add(STEP)}, STEP)["add"]
    yield {"name": f"replay/{name}/add", "value": added, "unit": "transitions/s"}
    yield {"name": f"replay/{name}/recount", "value": recount, "unit": "s"}
    stats = replay.stats()
    yield {"name": f"replay/{name}/held", "value": stats.kept, "unit": "transitions"}
    yield {"name": f"replay/{name}/memory", "value": taken / 1e9, "unit": "GB", "allocated": stats.bytes / 1e9}


def best(runs: dict[str, Callable[[], object]], items: int) -> dict[str, float]:
    """Return the best items a second of each, all taking turns."""
    rates = dict.fromkeys(runs, 0.0)
    for _ in range(TURNS):
        for name, work in runs.items():
            began = time.process_time()
            for _ in range(TIMES):
                work()
            rates[name] = max(rates[name], items * TIMES / (time.process_time() - began))
    return rates


def resident() -> int:
    """Return the bytes of RAM that this process has (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
