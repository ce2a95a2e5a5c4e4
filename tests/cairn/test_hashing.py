"""The hash family: golden vectors, and the statistics that the bounds rest on."""

import json
from pathlib import Path

import numpy as np
import pytest

from cairn.errors import PlanError
from cairn.hashing import mix, place, row_seeds

GOLDEN = Path(__file__).parents[1] / "golden" / "pair_multiply_shift_1.json"
SEED = bytes(range(32))


def words(texts: list[str]) -> np.ndarray:
    return np.array([int(text, 16) for text in texts], np.uint64)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: f"{case['width']}")
def test_seeds_columns_and_signs_are_the_golden_ones(case):
    seeds = row_seeds(bytes.fromhex(case["seed"]), len(case["row_seeds"]), case["family"])
    assert np.array_equal(seeds, np.array([words(row) for row in case["row_seeds"]]))
    mixed = mix(words(case["keys"]))
    assert np.array_equal(mixed, words(case["mixed"]))
    for row, columns, signs in zip(seeds, case["columns"], case["signs"], strict=True):
        found = place(mixed, row, case["width"])
        assert found[0].tolist() == columns
        assert found[1].tolist() == signs


def test_the_finaliser_is_that_of_splitmix64():
    assert int(mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_the_finaliser_leaves_distinct_keys_distinct():
    keys = np.concatenate([np.arange(2**18, dtype=np.uint64), np.arange(2**18, dtype=np.uint64) << np.uint64(40)])
    assert len(np.unique(mix(keys))) == len(np.unique(keys))


def test_fewer_rows_are_the_first_of_more():
    assert np.array_equal(row_seeds(SEED, 7), row_seeds(SEED, 64)[:7])


def test_another_seed_gives_other_rows():
    assert not np.any(row_seeds(SEED, 8) == row_seeds(SEED[::-1], 8))


@pytest.mark.parametrize(("seed", "family"), [(SEED, "murmur/3"), (SEED[:31], "pair-multiply-shift/1")])
def test_an_unknown_family_or_a_short_seed_is_refused(seed, family):
    with pytest.raises(PlanError, match="expected 'pair-multiply-shift/1' and 32 bytes"):
        row_seeds(seed, 4, family)


def test_columns_stay_in_the_row_at_the_greatest_width():
    keys = np.random.default_rng(0).integers(0, 2**64, 10**5, np.uint64)
    for row in row_seeds(SEED, 4):
        column, sign = place(mix(keys), row, 2**26)
        assert column.min() >= 0
        assert column.max() < 2**26
        assert set(sign.tolist()) == {-1, 1}


def grid() -> np.ndarray:
    """Neighbouring bins in three digits of the key: the structure that defeats plain multiply-shift."""
    i = np.arange(40, dtype=np.uint64)
    return (i[:, None, None] * np.uint64(22**5) + i[None, :, None] * np.uint64(22**2) + i).ravel()


def test_structured_keys_fall_evenly_into_columns():
    keys, width = mix(grid()), 1000
    expected = len(keys) / width
    for row in row_seeds(SEED, 32):
        chi2 = float(np.sum((np.bincount(place(keys, row, width)[0], minlength=width) - expected) ** 2) / expected)
        assert chi2 < width + 6 * np.sqrt(2 * width)


def test_two_keys_meet_in_a_column_as_often_as_chance_with_signs_that_cancel():
    pairs = np.array([[0, 1], [22**7, 2 * 22**7], [5, 5 + 22**4], [2**35, 2**35 + 2**20]], np.uint64)
    width, trials = 8, 400
    together = products = 0
    for trial in range(trials):
        for row in row_seeds(trial.to_bytes(32, "little"), 16):
            column, sign = place(mix(pairs.ravel()), row, width)
            met = column[::2] == column[1::2]
            together += int(met.sum())
            products += int((sign[::2] * sign[1::2])[met].sum())
    n = trials * 16 * len(pairs)
    assert abs(together / n - 1 / width) < 5 * np.sqrt(1 / width / n)
    assert abs(products) < 5 * np.sqrt(n / width)
