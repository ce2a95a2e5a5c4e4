"""The discrete Gaussian: its distribution, the decisions at the border, shares that add up."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from cairn.errors import PlanError
from cairn.privacy import noise
from cairn.privacy.noise import add_noise, discrete_gaussian
from cairn.privacy.sensitivity import LEAST_SIGMA, merged_scale, site_scale
from cairn.privacy.terms import Privacy


def keystream(seed: int) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run of the tests."""
    bits = np.random.default_rng(seed)
    return bits.bytes


def distribution(sigma: float, reach: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5, 7.25, 300.0])
def test_samples_have_the_probabilities_of_the_definition(sigma: float) -> None:
    n, reach = 40_000, math.ceil(12 * sigma)
    found = discrete_gaussian(n, sigma, keystream(int(100 * sigma)))
    seen = np.bincount(found + reach, minlength=2 * reach + 1).cumsum() / n
    # Kolmogorov's bound at one in a million; the seed is fixed, so this passes always or never.
    assert np.abs(seen - distribution(sigma, reach).cumsum()).max() < 2.7 / math.sqrt(n)


@pytest.mark.parametrize("sigma", [1e7, 1e12])
def test_wide_noise_has_the_spread_that_was_asked_for(sigma: float) -> None:
    found = discrete_gaussian(4_000, sigma, keystream(5)).astype(float)
    assert abs(found.std() / sigma - 1) < 0.05
    assert abs(found.mean()) < 4 * sigma / math.sqrt(len(found))


def test_where_64_bits_do_not_decide_more_bits_do() -> None:
    border = np.array([int(math.exp(-1) * 2**64)], np.uint64)  # -ln u is 1 somewhere among the u of these 53 bits
    for scale, low, high in ((1, 1, 0),):
        exact = np.array([6786177901268885274], np.uint64)  # ⌊2^64/e⌋
        assert abs(int(border[0]) - int(exact[0])) < 2**11
        assert noise._geometric(exact, scale, bytes)[0] == low
        assert noise._geometric(exact, scale, lambda size: b"\xff" * size)[0] == high


def test_bits_of_nothing_but_zeros_still_give_a_number() -> None:
    assert noise._geometric(np.zeros(1, np.uint64), 3, bytes)[0] > 3 * 64 * math.log(2)


def test_the_same_bytes_give_the_same_noise_and_every_cell_its_own() -> None:
    first, second = np.zeros((3, 50_000), np.int64), np.zeros((3, 50_000), np.int64)
    add_noise(first, 20.0, keystream(1))
    add_noise(second, 20.0, keystream(1))
    np.testing.assert_array_equal(first, second)
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 0.02


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**50])
def test_noise_of_no_spread_is_refused(sigma: float) -> None:
    with pytest.raises(PlanError):
        discrete_gaussian(1, sigma, keystream(0))


def test_the_shares_of_the_sharers_alone_have_the_wanted_variance() -> None:
    terms = Privacy("image", 2.0, 1e-6, 5.0, 10, 1000, sites=5, sharers=3)
    assert math.sqrt(terms.sharers) * site_scale(90.0, terms) == pytest.approx(90.0)
    assert site_scale(0.1, terms) == LEAST_SIGMA
    shares = np.zeros(20_000, np.int64)
    for site in range(terms.sharers):
        shares += discrete_gaussian(len(shares), site_scale(90.0, terms), keystream(site))
    assert abs(shares.std() / 90.0 - 1) < 0.03
    assert merged_scale(90.0, terms, 5) > 90.0


def test_a_table_of_the_papers_size_takes_one_hash_worth_of_bytes_at_a_time() -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return (hashlib.sha256(len(asked).to_bytes(4, "big")).digest() * (size // 32 + 1))[:size]

    add_noise(np.zeros(200_000, np.int64), 50.0, random)
    assert max(asked) <= 16 * noise.BLOCK
