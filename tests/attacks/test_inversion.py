"""What an aggregator reads from one site's sketch by trying every key: all of a plain one, nothing of a masked one.

The figures of real images, also with noise, are in docs/PRIVACY.md.
"""

import numpy as np
import pytest

from cairn import kernels
from cairn.masking.stream import cell_limit
from cairn.sketch import Sketch, SketchSpec
from tests.cairn.masking.federation import Federation

KEYS = 1 << 16
SPEC = SketchSpec(16, 20_000, bytes(range(32)))


def counted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw what a site with a few images counts: keys and counts with a long tail."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(KEYS, 3000, replace=False).astype(np.uint64)
    return keys, rng.zipf(1.6, len(keys)).clip(1, 10**6)


def sketched(keys: np.ndarray, counts: np.ndarray) -> Sketch:
    made = Sketch(SPEC, kernels.load("numpy"))
    made.update(keys, counts)
    return made


def read_back(table: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Try every key; return the shares of pairs read exactly, and of keys told rightly to be there or not."""
    attacker = Sketch(SPEC, kernels.load("numpy"))
    attacker.table[:] = table
    found = attacker.estimate(np.arange(KEYS, dtype=np.uint64))
    there = np.zeros(KEYS, bool)
    there[keys] = True
    told = [np.mean(found[there] > 0), np.mean(found[~there] <= 0)]
    return float(np.mean(found[keys] == counts)), float(np.mean(told))


def test_enumerating_keys_reads_a_plain_tally_and_guesses_at_a_masked_one() -> None:
    sites = [counted(seed) for seed in range(3)]
    sketches = [sketched(*site) for site in sites]
    cells = [sketch.table.reshape(-1) for sketch in sketches]
    assert max(int(np.abs(one).max()) for one in cells) < cell_limit(64, 3)
    federation = Federation(3, words=SPEC.depth * SPEC.width, may_drop=0)
    total = federation.run(cells)
    np.testing.assert_array_equal(total, sum(cells))
    for number, site in enumerate(sites):
        pairs, told = read_back(sketches[number].table, *site)
        assert pairs > 0.9
        assert told > 0.95
        masked = federation.masked[number].view(np.int64).reshape(SPEC.depth, SPEC.width)
        pairs, told = read_back(masked, *site)
        assert pairs == 0
        assert told == pytest.approx(0.5, abs=0.03)
