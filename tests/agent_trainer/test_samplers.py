"""Drawing: the tree finds what a plain running sum finds, and everything is drawn by its share of the mass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent_trainer.samplers import FAN, ROOT, SMALLEST_ERROR, Sampling, SumTree

SIZES = [1, FAN, FAN + 1, ROOT, ROOT + 1, FAN * ROOT + 1]  # one level, two and three


def whole_numbers(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return sums that are exact in whatever order they are taken; every third or so is 0, but never all."""
    leaves = np.where(rng.random(size) < 0.3, 0, rng.integers(1, 1000, size)).astype(float)
    leaves[rng.integers(size)] = 7
    return leaves


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from(SIZES), batches=st.integers(0, 5), batch=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_the_tree_finds_what_a_plain_running_sum_finds(size, batches, batch, seed):
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(size), whole_numbers(size, rng)
    tree.set(np.arange(size), leaves)
    for _ in range(batches):
        index, values = rng.integers(0, size, batch), rng.integers(0, 1000, batch).astype(float)
        tree.set(index, values)
        leaves[index] = values
    assert np.array_equal(tree.leaves, leaves)
    assert tree.total == leaves.sum()
    if leaves.any():
        mass = np.concatenate([[0.0, leaves.sum() - 1], rng.random(50) * leaves.sum()])
        assert tree.find(mass).tolist() == np.searchsorted(np.cumsum(leaves), mass, side="right").tolist()


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1))
def test_a_leaf_without_mass_is_never_found_whatever_rounding_does(size, seed):
    rng = np.random.default_rng(seed)
    leaves = np.where(whole_numbers(size, rng) > 0, 10.0 ** rng.uniform(-12, 12, size), 0)
    tree = SumTree(size)
    tree.set(np.arange(size), leaves)
    ends, padded = np.cumsum(leaves), np.concatenate([leaves, np.zeros(-size % FAN)])
    families = np.cumsum(padded.reshape(-1, FAN).sum(axis=1))  # just below the end of a family: past its last child?
    mass = np.nextafter(np.concatenate([[tree.total, ends[-1]], ends[rng.integers(0, size, 50)], families]), 0)
    assert np.all(leaves[tree.find(mass)] > 0)


@pytest.mark.parametrize("size", [200, ROOT + 200])
def test_leaves_are_found_as_often_as_their_share_of_the_mass(size):
    rng = np.random.default_rng(1)
    leaves = np.zeros(size)
    leaves[-200:] = rng.uniform(0.1, 3, 200)
    tree = SumTree(size)
    tree.set(np.arange(size), leaves)
    draws = 200_000
    found = np.bincount(tree.find(rng.random(draws) * tree.total), minlength=size)
    assert not found[:-200].any()
    assert stats.chisquare(found[-200:], leaves[-200:] / leaves.sum() * draws).pvalue > 0.01


def test_a_batch_takes_one_row_from_each_part_of_the_mass():
    sampling = Sampling(100, alpha=1.0, beta=0.0)
    rows = np.arange(100)
    sampling.put(rows, np.ones(100, np.int64))
    sampling.learn(rows, rows.astype(np.float32))
    expected = (rows + SMALLEST_ERROR) / (rows + SMALLEST_ERROR).sum() * 1000
    drawn, _ = sampling.draw(1000, 100, 0.0, np.random.default_rng(0))
    assert np.all(np.abs(np.bincount(drawn, minlength=100) - expected) < 2)


def weights_of(sampling: Sampling, beta_is: float) -> dict[int, float]:
    rows, weight = sampling.draw(100, 3, beta_is, np.random.default_rng(0))
    return {row: float(weight[rows == row][0]) for row in set(rows.tolist())}


def test_importance_weights_of_three_td_errors_are_those_by_hand():
    sampling = Sampling(8, alpha=1.0, beta=0.0)
    rows = np.array([0, 3, 5])
    sampling.put(rows, np.ones(3, np.int64))
    sampling.learn(rows, np.array([1, -2, 1], np.float32) - np.sign([1, -2, 1], dtype=np.float32) * SMALLEST_ERROR)
    # P = 1/4, 1/2, 1/4; N·P = 3/4, 3/2, 3/4; to the power -1: 4/3, 2/3, 4/3
    assert weights_of(sampling, 1.0) == pytest.approx({0: 1, 3: 0.5, 5: 1}, rel=1e-6)
    assert weights_of(sampling, 0.5) == pytest.approx({0: 1, 3: 0.5**0.5, 5: 1}, rel=1e-6)
    assert weights_of(sampling, 0.0) == {0: 1, 3: 1, 5: 1}


def test_importance_weights_of_three_counts_are_those_by_hand():
    sampling = Sampling(3, alpha=0.0, beta=0.5)
    sampling.put(np.arange(3), np.array([1, 4, -9]))
    # p = 1, 1/2, 1 (an estimate below 1 is 1); P = 2/5, 1/5, 2/5; N·P = 6/5, 3/5, 6/5; to the power -1: 5/6, 5/3, 5/6
    assert weights_of(sampling, 1.0) == pytest.approx({0: 0.5, 1: 1, 2: 0.5}, rel=1e-6)
    assert sampling.effective() == pytest.approx(2.5**2 / 2.25)


def test_td_error_and_count_multiply():
    sampling = Sampling(2, alpha=2.0, beta=1.0)
    sampling.put(np.arange(2), np.array([1, 2]))
    sampling.learn(np.arange(2), np.array([1, 2], np.float32) - np.float32(SMALLEST_ERROR))
    # p = 1²/1, 2²/2
    drawn, _ = sampling.draw(3000, 2, 0.0, np.random.default_rng(0))
    assert np.bincount(drawn).tolist() == pytest.approx([1000, 2000], abs=2)


def test_a_new_row_comes_in_with_the_largest_error_seen():
    sampling = Sampling(3, alpha=1.0, beta=0.0)
    sampling.put(np.arange(2), np.ones(2, np.int64))
    sampling.learn(np.arange(2), np.array([3, 0.5], np.float32))
    sampling.learn(np.arange(1), np.array([0.5], np.float32))
    sampling.put(np.array([2]), np.ones(1, np.int64))
    drawn, _ = sampling.draw(4030, 3, 0.0, np.random.default_rng(0))
    assert np.bincount(drawn).tolist() == pytest.approx([510, 510, 3010], abs=2)


def test_packing_keeps_each_rows_error_and_count_and_nothing_else():
    rng = np.random.default_rng(2)
    sampling, packed = Sampling(50, 0.6, 0.5), Sampling(50, 0.6, 0.5)
    counts, errors = rng.integers(1, 9, 50), rng.normal(size=50).astype(np.float32)
    kept = np.array([4, 7, 8, 30, 49])
    sampling.put(np.arange(50), counts)
    sampling.learn(np.arange(50), errors)
    sampling.pack(kept)
    packed.put(np.arange(5), counts[kept])
    packed.learn(np.arange(5), errors[kept])
    ours, theirs = (s.draw(200, 5, 1.0, np.random.default_rng(0)) for s in (sampling, packed))
    assert np.array_equal(ours[0], theirs[0])
    assert np.array_equal(ours[1], theirs[1])


def test_the_effective_size_is_the_number_of_rows_when_all_are_drawn_alike_and_0_when_there_are_none():
    sampling = Sampling(40, alpha=0.0, beta=0.0)
    assert sampling.effective() == 0
    sampling.put(np.arange(30), np.arange(30))
    assert sampling.effective() == pytest.approx(30)
    sampling.remove(np.arange(10))
    assert sampling.effective() == pytest.approx(20)
