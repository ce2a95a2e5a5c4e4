import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import PlanError
from cairn.keyspace import KeySpace

radices = st.lists(st.integers(2, 256), min_size=1, max_size=7).map(tuple)  # at most 56 bits


@given(radices, st.integers(0, 2**32))
def test_keys_are_read_back_as_the_digits_that_wrote_them(r: tuple[int, ...], seed: int) -> None:
    space = KeySpace(r)
    digits = np.random.default_rng(seed).integers(0, r, (50, len(r)))
    keys = space.encode(digits)
    assert np.array_equal(space.decode(keys), digits)
    assert int(keys.max()) < space.size <= 2**space.bits


@given(radices)
def test_the_first_and_last_key_are_all_lowest_and_all_highest_digits(r: tuple[int, ...]) -> None:
    space = KeySpace(r)
    ends = np.array([[0] * len(r), [x - 1 for x in r]])
    assert space.encode(ends).tolist() == [0, space.size - 1]


def test_the_first_digit_is_the_most_significant() -> None:
    space = KeySpace((22, 22))
    assert space.encode(np.array([[1, 0], [0, 21]])).tolist() == [22, 21]


def test_63_bits_is_the_most_and_is_exact() -> None:
    space = KeySpace((2,) * 63)
    assert (space.size, space.bits) == (2**63, 63)
    assert space.encode(np.ones((1, 63), np.uint8)).tolist() == [2**63 - 1]
    assert KeySpace((22,) * 8).bits == 36


@pytest.mark.parametrize("r", [(), (1,), (2,) * 64, (256,) * 8])
def test_spaces_that_do_not_fit_are_refused(r: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="1 to 63 bits"):
        KeySpace(r)
