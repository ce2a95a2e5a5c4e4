"""The sketch's kernels: every backend equals the definition bit for bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import kernels
from cairn.errors import ConfigError
from cairn.hashing import row_seeds
from cairn.kernels import sketch_numba

DEFINITION = kernels.load("numpy")
NUMBA = kernels.load("numba")
SEED = bytes(range(32))
NO_KEY = 2**64 - 1

words = st.integers(0, 2**64 - 1)
streams = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 22**8 - 1), words), max_size=300)
weights = st.integers(-(2**40), 2**40)


def sums(keys: np.ndarray, counts: np.ndarray) -> dict[int, int]:
    found: dict[int, int] = {}
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        found[key] = found.get(key, 0) + count
    return found


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, weights), max_size=200),
    depth=st.integers(1, 20),
    width=st.sampled_from([2, 3, 97, 1000]),
    dtype=st.sampled_from([np.int32, np.int64]),
)
def test_numba_updates_and_estimates_as_the_definition(pairs, depth, width, dtype):
    keys = np.array([key for key, _ in pairs], np.uint64)
    counts = np.array([count for _, count in pairs], np.int64)
    seeds = row_seeds(SEED, depth)
    slow, fast = np.zeros((depth, width), dtype), np.zeros((depth, width), dtype)
    DEFINITION.update(slow, keys, counts, seeds)
    NUMBA.update(fast, keys, counts, seeds)
    assert np.array_equal(slow, fast)
    assert np.array_equal(DEFINITION.estimate(slow, keys, seeds), NUMBA.estimate(slow, keys, seeds))


@pytest.mark.parametrize(("depth", "width"), [(16, 20_000), (10, 2_000), (7, 333)])
def test_numba_equals_the_definition_over_many_blocks(depth, width):
    rng = np.random.default_rng(4)
    keys = np.concatenate([rng.zipf(1.2, 9_000).astype(np.uint64), rng.integers(0, 22**8, 9_001, np.uint64)])
    counts, seeds = rng.integers(1, 1000, len(keys)), row_seeds(SEED, depth)
    slow, fast = np.zeros((depth, width), np.int32), np.zeros((depth, width), np.int32)
    DEFINITION.update(slow, keys, counts, seeds)
    NUMBA.update(fast, keys, counts, seeds)
    assert np.array_equal(slow, fast)
    assert np.array_equal(DEFINITION.estimate(slow, keys, seeds), NUMBA.estimate(slow, keys, seeds))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_numba_adds_to_a_dense_table_as_the_definition(dtype):
    rng = np.random.default_rng(6)
    keys, counts = rng.integers(0, 300, 5000, np.uint64), rng.integers(-(2**40), 2**40, 5000)
    slow, fast = np.zeros(300, dtype), np.zeros(300, dtype)
    DEFINITION.scatter(slow, keys, counts)
    NUMBA.scatter(fast, keys, counts)
    assert slow.any()
    assert np.array_equal(slow, fast)


@pytest.mark.parametrize("backend", [DEFINITION, NUMBA], ids=lambda backend: backend.name)
def test_a_key_beyond_the_dense_table_is_an_error_and_not_a_stray_write(backend):
    with pytest.raises(IndexError):
        backend.scatter(np.zeros(300, np.int32), np.array([300], np.uint64), np.array([1]))


@pytest.mark.parametrize("backend", [DEFINITION, NUMBA], ids=lambda backend: backend.name)
def test_counters_wrap_as_the_wire_does(backend):
    table, key, seeds = np.zeros((3, 5), np.int32), np.array([9], np.uint64), row_seeds(SEED, 3)
    for count in (2**31 - 1, 2**31 - 1, 7):
        backend.update(table, key, np.array([count]), seeds)
    assert np.abs(table).sum() == 3 * 5


@pytest.mark.parametrize("backend", [DEFINITION, NUMBA], ids=lambda backend: backend.name)
def test_taking_away_what_was_added_leaves_nothing(backend):
    keys, seeds = np.arange(500, dtype=np.uint64), row_seeds(SEED, 4)
    table, counts = np.zeros((4, 64), np.int64), np.arange(500)
    backend.update(table, keys, counts, seeds)
    assert table.any()
    backend.update(table, keys, -counts, seeds)
    assert not table.any()


@pytest.mark.parametrize("backend", [DEFINITION, NUMBA], ids=lambda backend: backend.name)
@pytest.mark.parametrize(
    ("rows", "middle"),
    [([5], 5), ([1, 9, 2], 2), ([1, 2], 2), ([2, 3], 2), ([3, 4], 4), ([-1, 0], 0), ([-2, -1], -2), ([4, 1, 9, 2], 3)],
)
def test_an_even_number_of_rows_gives_the_mean_of_the_middle_two_halves_to_even(backend, rows, middle):
    seeds, key = row_seeds(SEED, len(rows)), np.array([77], np.uint64)
    signs = np.zeros((len(rows), 2), np.int64)
    DEFINITION.update(signs, key, np.array([1]), seeds)
    table = signs * np.array(rows)[:, None]
    assert backend.estimate(table, key, seeds).tolist() == [middle]


@pytest.mark.parametrize("backend", [DEFINITION, NUMBA], ids=lambda backend: backend.name)
def test_the_mean_of_the_middle_two_does_not_overflow(backend):
    seeds, key = row_seeds(SEED, 2), np.array([77], np.uint64)
    table = np.zeros((2, 2), np.int64)
    DEFINITION.update(table, key, np.array([2**63 - 1]), seeds)
    assert backend.estimate(table, key, seeds).tolist() == [2**63 - 1]


@pytest.mark.parametrize("depth", range(1, 14))
def test_the_comparators_sort_every_row_of_zeros_and_ones(depth):
    rows = np.array(list(itertools.product([0, 1], repeat=depth)))
    for low, high in sketch_numba._comparators(depth):
        rows[:, [low, high]] = np.sort(rows[:, [low, high]], axis=1)
    assert np.all(np.diff(rows, axis=1) >= 0)


@settings(max_examples=100, deadline=None)
@given(
    keys=streams,
    counted=st.booleans(),
    shift=st.sampled_from([0, 4, 62]),
    room=st.integers(2, 40),
    backend=st.sampled_from([DEFINITION, NUMBA]),
)
def test_combining_keeps_every_keys_sum(keys, counted, shift, room, backend):
    stream = np.array([*keys, NO_KEY], np.uint64)
    counts = (np.arange(len(stream)) * 37 % 500 + 1) if counted else None
    cache, out_keys, out_counts = np.zeros(2**8, np.uint64), np.empty(room, np.uint64), np.empty(room, np.int64)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    at = 0
    while at < len(stream):
        rest = None if counts is None else counts[at:]
        taken, emitted = backend.combine(stream[at:], rest, shift, cache, NO_KEY, out_keys, out_counts)
        assert taken > 0
        found.append((out_keys[:emitted].copy(), out_counts[:emitted].copy()))
        at += taken
    last_keys, last_counts = np.empty(2**8, np.uint64), np.empty(2**8, np.int64)
    left = backend.drain(cache, last_keys, last_counts)
    found.append((last_keys[:left], last_counts[:left]))
    assert not cache.any()
    wanted = stream != np.uint64(NO_KEY)
    expected = sums(
        stream[wanted] >> np.uint64(shift), (np.ones(len(stream), np.int64) if counts is None else counts)[wanted]
    )
    assert sums(np.concatenate([k for k, _ in found]), np.concatenate([c for _, c in found])) == expected
    assert all(count > 0 for _, c in found for count in c.tolist())


def test_the_cache_emits_a_key_whose_count_is_full():
    cache, out_keys, out_counts = np.zeros(2**8, np.uint64), np.empty(64, np.uint64), np.empty(64, np.int64)
    taken, emitted = NUMBA.combine(np.full(1000, 3, np.uint64), None, 0, cache, NO_KEY, out_keys, out_counts)
    assert (taken, out_keys[:emitted].tolist(), out_counts[:emitted].tolist()) == (1000, [3, 3, 3], [255, 255, 255])
    out_counts = np.empty(256, np.int64)
    assert NUMBA.drain(cache, np.empty(256, np.uint64), out_counts) == 1
    assert out_counts[0] == 1000 - 3 * 255


def test_the_cache_emits_less_than_it_takes_where_keys_repeat():
    keys = np.tile(np.arange(100, dtype=np.uint64), 1000)
    cache, out_keys, out_counts = np.zeros(2**16, np.uint64), np.empty(2**12, np.uint64), np.empty(2**12, np.int64)
    taken, emitted = NUMBA.combine(keys, None, 0, cache, NO_KEY, out_keys, out_counts)
    assert taken == len(keys)
    assert emitted < 0.02 * len(keys)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ConfigError, match="there is no backend 'abacus'; choose one of numpy, numba, cupy"):
        kernels.load("abacus")  # type: ignore[arg-type]
