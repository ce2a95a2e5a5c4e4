"""Counting a stream of keys into prefix levels, and recovering the most frequent ones from the tables alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.keys import image_keys, real_keys
from cairn import heavy, kernels
from cairn.errors import PlanMismatch
from cairn.heavy import KeyCounter, recover
from cairn.kernels import sketch_numpy
from cairn.pixels import BACKGROUND, PixelLevels, Quantiser
from cairn.plan import CountsPlan, prefix_levels
from cairn.sketch import SketchSpec

NUMPY, NUMBA = kernels.load("numpy"), kernels.load("numba")
SEED = bytes(range(32))


def plan(depth: int, width: int, digits: int = 8, radix: int = 22, levels: tuple[int, int] = (20, 5)) -> CountsPlan:
    quantiser = Quantiser(
        PixelLevels(tuple(f"band {i}" for i in range(digits))),
        np.eye(digits, dtype=np.int32) * 2**14,
        0.0,
        np.zeros(digits),
        np.ones(digits),
        radix,
    )
    dense, sketches = prefix_levels(quantiser.keyspace, *levels)
    return CountsPlan(quantiser, SketchSpec(depth, width, SEED), dense, sketches)


SMALL = plan(5, 300, digits=4, levels=(8, 4))  # 18 bits in levels of 8 | 11 14 18 or so
PAPER = plan(16, 200_000)


def defined(stage: CountsPlan, keys: np.ndarray) -> dict[str, np.ndarray]:
    """Count keys one prefix length at a time, as the plan says and nothing else."""
    keys = keys[keys != BACKGROUND]
    bits = stage.quantiser.keyspace.bits
    tables = {
        "dense": np.bincount(
            (keys >> np.uint64(bits - stage.dense_bits)).astype(np.int64), minlength=2**stage.dense_bits
        )
    }
    for length in stage.sketch_bits:
        table = np.zeros((stage.sketch.depth, stage.sketch.width), np.int64)
        ones = np.ones(len(keys), np.int64)
        sketch_numpy.update(table, keys >> np.uint64(bits - length), ones, stage.sketch.seeds())
        tables[f"sketch_{length}"] = table
    return tables


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name].dtype == np.int64
        assert np.array_equal(found[name], table), name


def stream(n: int, stage: CountsPlan = SMALL, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    keys = rng.zipf(1.2, n).astype(np.uint64) % np.uint64(stage.quantiser.keyspace.size)
    keys[rng.random(n) < 0.1] = BACKGROUND
    return keys


@pytest.mark.parametrize("backend", [NUMPY, NUMBA], ids=lambda backend: backend.name)
@pytest.mark.parametrize(
    "stage",
    [SMALL, plan(3, 64, digits=1, levels=(8, 4)), plan(4, 100, digits=14), plan(2, 50, digits=3, radix=2)],
    ids=str,
)
def test_a_counter_fills_the_tables_that_the_plan_defines(backend, stage):
    keys = stream(60_000, stage)
    counter = KeyCounter(stage, backend)
    for part in np.array_split(keys, 7):
        counter.add(part)
    assert_same(counter.tables(), defined(stage, keys))
    shapes = stage.shapes()
    assert {name: table.shape for name, table in counter.tables().items()} == {
        name: shapes[name] for name in shapes if name not in ("pixels", "foreground")
    }


def test_batches_that_overflow_the_buffers_are_counted_exactly():
    keys = np.random.default_rng(5).integers(0, PAPER.quantiser.keyspace.size, 600_000, np.uint64)
    stage = plan(2, 5000)
    counter = KeyCounter(stage, NUMBA)
    counter.add(keys)
    assert_same(counter.tables(), defined(stage, keys))


def test_two_workers_at_once_count_the_sum_of_their_streams():
    parts = [stream(50_000, seed=seed) for seed in range(8)]
    counter = KeyCounter(SMALL, NUMBA, workers=2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lambda w: [counter.add(p, w) for p in parts[w::2]], worker) for worker in range(2)]:
            done.result()
    assert_same(counter.tables(), defined(SMALL, np.concatenate(parts)))


@pytest.mark.parametrize("backend", [NUMPY, NUMBA], ids=lambda backend: backend.name)
@pytest.mark.parametrize("journal", [heavy.JOURNAL, 1000, 0])
@pytest.mark.parametrize("most", [heavy.INT32_MAX, 30_000, 1000])
def test_a_rollback_takes_back_one_image_and_nothing_else(monkeypatch, backend, journal, most):
    monkeypatch.setattr(heavy, "JOURNAL", journal)
    monkeypatch.setattr(heavy, "INT32_MAX", most)
    monkeypatch.setattr(heavy, "BATCH", 512)
    counter = KeyCounter(SMALL, backend, workers=2)
    kept = []
    for image in range(6):
        pixels = stream(5000 * (1 + image % 3), seed=image)
        for worker in range(2):
            counter.add(pixels[worker::2], worker)
        if image % 2:
            counter.rollback()
        else:
            counter.checkpoint()
            kept.append(pixels)
    assert_same(counter.tables(), defined(SMALL, np.concatenate(kept)))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(["add", "checkpoint", "rollback", "tables"]))))
def test_any_order_of_calls_counts_what_was_kept(steps):
    counter, kept, waiting = KeyCounter(SMALL, NUMBA), [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for i, (n, step) in enumerate(steps):
        if step == "add":
            waiting.append(stream(n, seed=i))
            counter.add(waiting[-1])
            continue
        if step == "rollback":
            counter.rollback()
        else:
            counter.checkpoint() if step == "checkpoint" else counter.tables()
            kept += waiting
        waiting = []
    assert_same(counter.tables(), defined(SMALL, np.concatenate(kept + waiting)))


def test_a_stream_longer_than_int32_counts_in_private_tables_is_spilled_in_time(monkeypatch):
    monkeypatch.setattr(heavy, "INT32_MAX", 10_000)
    keys = np.full(100_000, 7, np.uint64)
    for kept in (False, True):
        counter = KeyCounter(SMALL, NUMBA)
        for part in np.array_split(keys, 25):
            counter.add(part)
            if kept:
                counter.checkpoint()
        assert_same(counter.tables(), defined(SMALL, keys))


def top(keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found, counts = np.unique(keys, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:k]
    return found[order], counts[order]


def tables(stage: CountsPlan, keys: np.ndarray) -> dict[str, np.ndarray]:
    counter = KeyCounter(stage, NUMBA)
    counter.add(keys)
    return counter.tables()


def test_image_keys_are_recovered_from_the_tables_alone():
    k, keys = 5000, image_keys(3_000_000)
    stage = plan(16, 50_000)
    hitters = recover(tables(stage, keys), stage, k * 5 // 4, NUMBA)
    true, counts = top(keys, k)
    found, exact = np.unique(keys, return_counts=True)
    listed = dict(zip(found.tolist(), exact.tolist(), strict=True))
    verified = np.array([listed.get(key, 0) for key in hitters.keys.tolist()])
    certain = true[counts > counts[-1]]  # keys that tie with the last are as good as one another
    assert np.isin(certain, hitters.keys).mean() >= 0.99
    assert np.sort(verified)[::-1][:k].sum() >= 0.999 * counts.sum()
    assert np.mean(np.abs(hitters.counts - verified) <= hitters.error_bound) >= 0.99


@pytest.mark.slow
def test_the_top_20000_of_20_million_image_keys_are_found_at_the_papers_size():
    k, keys = 20_000, image_keys(20_000_000)
    true, counts = top(keys, k)
    hitters = recover(tables(PAPER, keys), PAPER, k * 5 // 4, NUMBA)
    certain = true[counts > counts[-1]]
    assert np.isin(certain, hitters.keys).mean() >= 0.99
    assert np.isin(certain, hitters.keys[:k]).mean() >= 0.97


def test_real_tumour_images_give_up_their_heavy_hitters(real_data):
    keys = real_keys()
    assert keys is not None, f"no images in {real_data}"
    true, counts = top(keys[keys != BACKGROUND], 2000)
    hitters = recover(tables(PAPER, keys), PAPER, 2500, NUMBA)
    assert np.isin(true[counts > counts[-1]], hitters.keys).mean() >= 0.99


def test_heavy_hitters_of_a_merge_are_the_heavy_hitters_of_the_union():
    parts = [stream(30_000, seed=seed) for seed in range(3)]
    merged: dict[str, np.ndarray] = {}
    for part in parts:
        for name, table in tables(SMALL, part).items():
            merged[name] = merged.get(name, 0) + table
    one, other = recover(merged, SMALL, 30, NUMBA), recover(tables(SMALL, np.concatenate(parts)), SMALL, 30, NUMBA)
    assert np.array_equal(one.keys, other.keys)
    assert np.array_equal(one.counts, other.counts)


def test_numpy_and_numba_recover_the_same_keys():
    found = tables(SMALL, stream(30_000))
    slow, fast = recover(found, SMALL, 50, NUMPY, threads=1), recover(found, SMALL, 50, NUMBA)
    assert np.array_equal(slow.keys, fast.keys)
    assert np.array_equal(slow.counts, fast.counts)


def test_fewer_distinct_keys_than_wanted_are_all_found_with_their_counts():
    keys = np.repeat(np.array([0, 5, 22**8 - 1, 22**7], np.uint64), [1, 2, 30, 400])
    hitters = recover(tables(PAPER, keys), PAPER, 20_000, NUMBA)
    assert dict(zip(hitters.keys.tolist(), hitters.counts.tolist(), strict=True)) == {
        0: 1,
        5: 2,
        22**8 - 1: 30,
        22**7: 400,
    }
    assert hitters.counts.tolist() == [400, 30, 2, 1]
    assert hitters.error_bound == 0


def test_no_key_outside_the_key_space_is_found_even_in_noise():
    stage = plan(3, 16, digits=5, radix=5, levels=(6, 3))  # 3125 keys in 12 bits
    keys = np.random.default_rng(3).integers(0, 3125, 40_000, np.uint64)
    hitters = recover(tables(stage, keys), stage, 4000, NUMBA)
    assert len(hitters.keys)
    assert len(np.unique(hitters.keys)) == len(hitters.keys)
    assert int(hitters.keys.max()) < 3125


def test_a_key_space_that_the_dense_table_holds_is_recovered_exactly():
    stage = plan(2, 10, digits=3)
    keys = stream(20_000, stage)
    hitters = recover(tables(stage, keys), stage, 100, NUMBA)
    true, counts = top(keys[keys != BACKGROUND], 100)
    assert np.array_equal(hitters.counts, counts)
    assert hitters.error_bound == 0
    assert hitters.keys[0] == true[0]


@pytest.mark.parametrize("k", [0, 10])
def test_empty_tables_hold_no_heavy_hitters(k):
    hitters = recover(KeyCounter(SMALL, NUMBA).tables(), SMALL, k, NUMBA)
    assert len(hitters.keys) == len(hitters.counts) == 0


def test_nothing_wanted_is_nothing_found():
    assert len(recover(tables(SMALL, stream(1000)), SMALL, 0, NUMBA).keys) == 0


def test_tables_of_another_plan_are_refused():
    with pytest.raises(PlanMismatch, match="table 'dense' of shape \\(1048576,\\) is needed"):
        recover(tables(SMALL, stream(10)), PAPER, 10, NUMBA)


def test_where_all_keys_are_alike_a_search_ends_when_it_has_expanded_as_many_prefixes_as_it_may():
    keys = np.random.default_rng(1).integers(0, SMALL.quantiser.keyspace.size, 100_000, np.uint64)
    found = recover(defined(SMALL, keys), SMALL, 3, NUMPY)
    assert len(found.keys) == 3
