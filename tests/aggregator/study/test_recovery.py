"""From merged counts to verified heavy hitters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.study.recovery import OVER_PROVISION, candidates, verified
from cairn import kernels
from cairn.errors import StudyError
from cairn.heavy import KeyCounter
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser
from cairn.plan import CountsPlan, RecoveryPlan, prefix_levels
from cairn.sketch import SketchSpec
from cairn.tally import zeros

NUMPY = kernels.load("numpy")
QUANTISER = Quantiser(
    PixelLevels(tuple("abcdef")), np.eye(6, dtype=np.int32) * WEIGHT_ONE, 0.0, -np.ones(6), np.ones(6), 22
)


def counts_plan(width: int) -> CountsPlan:
    dense, sketches = prefix_levels(QUANTISER.keyspace)
    return CountsPlan(QUANTISER, SketchSpec(5, width, bytes(32)), dense, sketches)


def recovery_plan(keys: list[int]) -> RecoveryPlan:
    return RecoveryPlan(QUANTISER, np.array(keys, np.uint64))


def test_candidates_hold_the_heavy_hitters_and_a_quarter_more_keys() -> None:
    stage = counts_plan(4096)
    rng = np.random.default_rng(0)
    heavy = rng.integers(0, QUANTISER.keyspace.size, 40, dtype=np.uint64)
    light = rng.integers(0, QUANTISER.keyspace.size, 2000, dtype=np.uint64)
    counter = KeyCounter(stage, NUMPY)
    counter.add(np.concatenate([np.repeat(heavy, 200), light]))
    found = candidates({**zeros(stage), **counter.tables()}, stage, 40, NUMPY)
    assert set(heavy) <= set(found.keys)
    assert len(found.keys) <= 40 * OVER_PROVISION
    assert found.error_bound > 0


def test_a_study_without_foreground_has_no_candidates_and_says_so() -> None:
    stage = counts_plan(64)
    with pytest.raises(StudyError, match="none of 0 foreground pixels makes a key that stands out"):
        candidates(zeros(stage), stage, 10, NUMPY)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 10), st.integers(1, 4))
def test_verified_keys_are_the_largest_exact_counts_and_ties_go_to_the_smaller_key(
    counts: list[int], top_k: int, min_count: int
) -> None:
    plan = recovery_plan(list(range(10, 10 + len(counts))))
    tables = {"count": np.array(counts, np.int64), "foreground": np.array([1000], np.int64)}
    expected = sorted((-c, key) for key, c in enumerate(counts, 10) if c >= min_count)[:top_k]
    if not expected:
        with pytest.raises(StudyError, match="ask for a smaller min_count"):
            verified(tables, plan, top_k, min_count)
        return
    found = verified(tables, plan, top_k, min_count)
    assert list(zip((-found.counts).tolist(), found.keys.tolist(), strict=True)) == expected
    assert found.mass == -sum(c for c, _ in expected) / 1000


def test_a_key_under_the_threshold_is_not_shown_even_when_there_is_room() -> None:
    tables = {"count": np.array([9, 10, 11]), "foreground": np.array([40])}
    found = verified(tables, recovery_plan([1, 2, 3]), 20, 10)
    assert found.keys.tolist() == [3, 2]


def test_a_candidate_that_no_site_holds_is_never_a_heavy_hitter() -> None:
    tables = {"count": np.array([0, 3]), "foreground": np.array([3])}
    found = verified(tables, recovery_plan([1, 2]), 20, 1)
    assert found.keys.tolist() == [2]
    assert found.mass == 1.0
