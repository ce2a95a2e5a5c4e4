"""The sketch by itself: linear, unbiased, within its bounds, and refusing what it must not add."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import kernels
from cairn.errors import PlanError, PlanMismatch
from cairn.sketch import Sketch, SketchSpec, error_bound, suggest, suggest_for_top

NUMBA = kernels.load("numba")
SEED = bytes(range(32))
SPEC = SketchSpec(7, 512, SEED)


def sketch(keys: np.ndarray, spec: SketchSpec = SPEC) -> Sketch:
    made = Sketch(spec, NUMBA)
    made.update(keys)
    return made


def zipf(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).zipf(1.3, n).astype(np.uint64)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 2000), seed=st.integers(0, 2**32 - 1))
def test_a_merge_is_the_sketch_of_both_streams(cut, seed):
    keys = zipf(2000, seed)
    merged = sketch(keys[:cut])
    merged.merge(sketch(keys[cut:]))
    assert np.array_equal(merged.table, sketch(keys).table)


def test_a_batch_is_the_same_as_item_by_item():
    keys, one_by_one = zipf(300), Sketch(SPEC, NUMBA)
    for key in keys:
        one_by_one.update(np.array([key]))
    assert np.array_equal(one_by_one.table, sketch(keys).table)


@pytest.mark.parametrize(
    "other", [SketchSpec(7, 512, SEED[::-1]), SketchSpec(7, 513, SEED), SketchSpec(6, 512, SEED)], ids=str
)
def test_a_merge_refuses_a_foreign_spec(other):
    with pytest.raises(PlanMismatch, match="depth, width, seed and family must be the same"):
        sketch(zipf(10)).merge(Sketch(other, NUMBA))


def test_a_merge_refuses_itself():
    mine = sketch(zipf(10))
    with pytest.raises(PlanMismatch, match="merged with itself"):
        mine.merge(mine)


@pytest.mark.parametrize(
    "values", [(0, 512, SEED), (65, 512, SEED), (7, 1, SEED), (7, 2**26 + 1, SEED), (7, 512, SEED[1:])], ids=str
)
def test_a_spec_outside_the_limits_is_refused(values):
    with pytest.raises(PlanError, match="depth must be 1 to 64, width 2 to 2\\^26, the seed 32 bytes"):
        SketchSpec(*values)


def test_an_unknown_hash_family_is_refused():
    with pytest.raises(PlanError, match="'murmur/3' is not known"):
        SketchSpec(7, 512, SEED, "murmur/3")


def test_counting_goes_on_past_2_to_the_24_and_2_to_the_31():
    mine = Sketch(SPEC, NUMBA)
    for count in (20_000_000, 2**31, 2**40):
        mine.update(np.array([5], np.uint64), np.array([count]))
    assert mine.estimate(np.array([5], np.uint64)).tolist() == [20_000_000 + 2**31 + 2**40]


@pytest.mark.parametrize("depth", [1, 5, 10, 16])
def test_estimates_are_unbiased_over_seeds(depth):
    keys, counts = np.arange(60, dtype=np.uint64), np.arange(60)[::-1] ** 2
    errors = []
    for trial in range(400):
        mine = Sketch(SketchSpec(depth, 16, trial.to_bytes(32, "little")), NUMBA)
        mine.update(keys, counts)
        errors.append(mine.estimate(keys) - counts)
    means = np.mean(errors, axis=1)  # one figure per seed; the seeds are independent, the keys of a sketch are not
    assert abs(means.mean()) < 5 * means.std() / math.sqrt(len(means))


def test_the_guarantee_of_a_suggested_size_holds():
    epsilon, delta = 0.05, 0.05
    depth, width = suggest(epsilon, delta)
    keys, counts = np.unique(zipf(200_000), return_counts=True)
    norm = math.sqrt(float(np.sum(counts.astype(np.float64) ** 2)))
    outside = [
        np.mean(np.abs(made.estimate(keys) - counts) > epsilon * norm)
        for trial in range(20)
        for made in [sketch(np.repeat(keys, counts), SketchSpec(depth, width, trial.to_bytes(32, "big")))]
    ]
    assert np.mean(outside) <= delta


@pytest.mark.parametrize(
    "spec", [SketchSpec(16, 2000, SEED), SketchSpec(7, 500, SEED), SketchSpec(1, 4000, SEED)], ids=str
)
@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_the_shown_bound_holds_for_all_but_delta_of_the_keys_and_is_not_idle(spec, delta):
    keys, counts = np.unique(zipf(100_000), return_counts=True)
    outside, bounds = [], []
    for trial in range(40):  # the probability is over seeds
        made = Sketch(replace(spec, seed=trial.to_bytes(32, "big")), NUMBA)
        made.update(keys, counts)
        bounds.append(error_bound(made.table, delta))
        outside.append(np.mean(np.abs(made.estimate(keys) - counts) > bounds[-1]))
    assert np.mean(outside) <= delta + 3 * np.std(outside) / math.sqrt(len(outside))
    assert np.mean(outside) > delta / 100
    assert max(bounds) < 2 * counts.max()


def test_the_shown_bound_of_a_nearly_empty_table_is_zero():
    assert error_bound(sketch(np.arange(3, dtype=np.uint64)).table) == 0


@pytest.mark.parametrize("delta", [0, 1, -0.5])
def test_a_bound_for_an_impossible_probability_is_refused(delta):
    with pytest.raises(PlanError, match="must be over 0 and under 1"):
        error_bound(np.zeros((3, 3), np.int64), delta)


def test_suggested_sizes_grow_as_the_bounds_say():
    assert suggest(0.01, 0.01) == (12, 80_000)
    assert suggest(0.005, 0.01)[1] == 4 * suggest(0.01, 0.01)[1]
    assert suggest(0.01, 0.0001)[0] > suggest(0.01, 0.01)[0]


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 0.1), (0.1, 0), (1, 0.1), (1e-5, 0.1), (0.1, 1e-30)])
def test_a_guarantee_that_no_sketch_has_is_refused(epsilon, delta):
    with pytest.raises(PlanError, match="ε"):
        suggest(epsilon, delta)


def test_the_paper_sized_study_is_suggested_the_default_sketch():
    depth, width = suggest_for_top(20_000, 16_000_000)
    assert (depth, width) == (17, 200_000)
    SketchSpec(depth, width, SEED)


@pytest.mark.parametrize(("k", "keys"), [(1, 1), (1, 10**12), (10**7, 10**12), (5, 2)])
def test_every_suggestion_for_a_top_k_is_a_spec(k, keys):
    SketchSpec(*suggest_for_top(k, keys), SEED)


def test_no_keys_at_all_are_refused():
    with pytest.raises(PlanError, match="must be at least 1"):
        suggest_for_top(0, 100)
