"""A transition's key is the same at every site, and says what the transition was."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.errors import PlanError
from cairn.transitions import LEVELS, TransitionCoder, cell_histogram, fit_thresholds, pool


def test_a_cell_is_the_rounded_down_mean_of_its_pixels() -> None:
    frame = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    # Means of the quarters: (0+1+4+5)/4 = 2.5, (2+3+6+7)/4 = 4.5, 10.5, 12.5
    np.testing.assert_array_equal(pool(frame, (2, 2)), [[2, 4, 10, 12]])


def test_cells_that_do_not_divide_the_box_cover_every_pixel_once() -> None:
    frame = np.zeros((1, 1, 5, 1), np.uint8)
    frame[0, 0, :, 0] = [10, 20, 30, 40, 50]
    np.testing.assert_array_equal(pool(frame, (2, 1)), [[15, 40]])


def test_channels_are_averaged_with_the_pixels() -> None:
    frame = np.array([[[[0]], [[100]], [[200]], [[101]]]], np.uint8)
    np.testing.assert_array_equal(pool(frame, (1, 1)), [[100]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_pooling_is_the_mean_of_each_block(seed: int, high: int, wide: int, deep: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (3, 2, 7, 9, 5), np.uint8)
    grid = (high, wide, deep)
    cuts = [[i * side // g for i in range(g + 1)] for side, g in zip((7, 9, 5), grid, strict=True)]
    expected = [
        [
            frames[n, :, a0:a1, b0:b1, c0:c1].astype(int).sum() // frames[n, :, a0:a1, b0:b1, c0:c1].size
            for a0, a1 in zip(cuts[0], cuts[0][1:], strict=False)
            for b0, b1 in zip(cuts[1], cuts[1][1:], strict=False)
            for c0, c1 in zip(cuts[2], cuts[2][1:], strict=False)
        ]
        for n in range(3)
    ]
    np.testing.assert_array_equal(pool(frames, grid), expected)


@pytest.mark.parametrize("grid", [(0, 1), (5, 1), (2,), (2, 2, 2)])
def test_a_grid_that_does_not_fit_the_box_is_refused(grid: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="does not fit a box"):
        pool(np.zeros((1, 1, 4, 4), np.uint8), grid)


def test_the_histograms_of_two_sites_add_up_to_the_one_of_both() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (40, 3), np.uint8), rng.integers(0, 256, (60, 3), np.uint8)
    both = cell_histogram(np.concatenate([one, two]))
    np.testing.assert_array_equal(cell_histogram(one) + cell_histogram(two), both)
    assert both.shape == (3, LEVELS)
    assert both.sum(axis=1).tolist() == [100, 100, 100]


def test_thresholds_cut_a_flat_histogram_into_equal_parts() -> None:
    np.testing.assert_array_equal(fit_thresholds(np.full((1, LEVELS), 3), 4), [[64, 128, 192]])


def test_digits_of_what_the_thresholds_were_fitted_on_are_about_equally_frequent() -> None:
    rng = np.random.default_rng(1)
    cells = np.minimum(rng.gamma(2.0, 20.0, (20_000, 2)), 255).astype(np.uint8)
    coder = TransitionCoder((2, 1), fit_thresholds(cell_histogram(cells), 8), 1, 4, (0.0,))
    shares = np.bincount(coder.digits(cells)[:, 0], minlength=8) / len(cells)
    assert 0.09 < shares.min() <= shares.max() < 0.16


def test_an_empty_histogram_gives_thresholds_that_a_coder_takes() -> None:
    TransitionCoder((1, 1), fit_thresholds(np.zeros((1, LEVELS), np.int64), 8), 1, 4, (0.0,))


CODER = TransitionCoder((2, 1), np.array([[10, 200], [50, 60]], np.uint8), 3, 4, (-0.5, 0.5))


def test_a_key_by_hand() -> None:
    keys = CODER.keys(
        np.array([[9, 60]], np.uint8), np.array([2]), np.array([3]), np.array([0.5], np.float32),
        np.array([[200, 55]], np.uint8),
    )  # fmt: skip
    # digits 0, 2 | task 2 | action 3 | bin 2 | digits 2, 1, of radices 3, 3, 3, 4, 3, 3, 3
    assert keys.tolist() == [(((((0 * 3 + 2) * 3 + 2) * 4 + 3) * 3 + 2) * 3 + 2) * 3 + 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_digits_give_equal_keys_and_different_ones_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 50
    before, after = rng.integers(0, 256, (2, n, 2), np.uint8)
    task, action, reward = rng.integers(0, 3, n), rng.integers(0, 4, n), rng.normal(0, 1, n).astype(np.float32)
    keys = CODER.keys(before, task, action, reward, after)
    bins = (reward >= -0.5).astype(int) + (reward >= 0.5)
    said = np.column_stack([CODER.digits(before), task, action, bins, CODER.digits(after)])
    assert len(np.unique(keys)) == len(np.unique(said, axis=0))
    assert int(keys.max()) < CODER.keyspace.size


def test_one_task_takes_no_room_in_the_key() -> None:
    alone = TransitionCoder((2, 1), CODER.thresholds, 1, 4, (0.0,))
    assert math.prod(alone.keyspace.radices) == 3**4 * 4 * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": (3, 1)}, "do not belong"),
        ({"thresholds": np.array([[200, 10], [50, 60]], np.uint8)}, "thresholds fall"),
        ({"reward_edges": (0.5, 0.5)}, "do not rise"),
        ({"reward_edges": ()}, "do not rise"),
        ({"reward_edges": (float("nan"),)}, "do not rise"),
        ({"tasks": 0}, "cannot be coded"),
        ({"actions": 1}, "cannot be coded"),
        ({"grid": (8, 8), "thresholds": np.ones((64, 7), np.uint8)}, "1 to 63 bits"),
    ],
)
def test_a_coder_that_cannot_be_is_refused(change: dict[str, object], said: str) -> None:
    right = {"grid": (2, 1), "thresholds": CODER.thresholds, "tasks": 3, "actions": 4, "reward_edges": (-0.5, 0.5)}
    with pytest.raises(PlanError, match=said):
        TransitionCoder(**{**right, **change})  # type: ignore[arg-type]
