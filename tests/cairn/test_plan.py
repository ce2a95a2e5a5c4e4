"""Plans: what they refuse, and the shapes of their tallies."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import PlanError
from cairn.keyspace import KeySpace
from cairn.pixels import INTENSITY_BINS, UNIT_BINS
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, RangesPlan, RecoveryPlan, fingerprint, prefix_levels
from cairn.sketch import SketchSpec

from ..golden.make_plans import KEYS, PIXELS, PROJECTION, QUANTISER

SKETCH = SketchSpec(3, 16, bytes(32))


def test_the_levels_of_the_default_key_are_dense_to_twenty_bits_and_then_every_four() -> None:
    assert prefix_levels(KeySpace((22,) * 8)) == (20, (24, 28, 32, 36))


def test_a_short_key_is_counted_in_the_dense_table_alone() -> None:
    assert prefix_levels(KeySpace((22, 22))) == (9, ())


@given(st.lists(st.integers(2, 256), min_size=1, max_size=7))
def test_levels_rise_in_near_equal_steps_of_at_most_five_bits_to_the_whole_key(radices: list[int]) -> None:
    keyspace = KeySpace(tuple(radices))
    dense, sketches = prefix_levels(keyspace)
    levels = (dense, *sketches)
    assert levels[-1] == keyspace.bits
    steps = [b - a for a, b in pairwise(levels)]
    assert all(1 <= step <= 5 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


def test_each_stage_names_its_tables() -> None:
    assert MomentsPlan(PIXELS).shapes() == {"pixels": (1,), "sum": (2, 3), "second": (2, 3, 3)}
    assert RangesPlan(PIXELS, PROJECTION).shapes() == {"pixels": (1,), "unit": (2, INTENSITY_BINS, UNIT_BINS)}
    assert CountsPlan(QUANTISER, SKETCH, 4, (6, 9)).shapes() == {
        "pixels": (1,),
        "foreground": (1,),
        "dense": (16,),
        "sketch_6": (3, 16),
        "sketch_9": (3, 16),
    }
    assert RecoveryPlan(QUANTISER, KEYS).shapes() == {"foreground": (1,), "count": (4,)}
    book = CodebookPlan(QUANTISER, KEYS, np.array([0, 1, 1, 0], np.uint8), (0, 0), ("x",))
    assert book.shapes() == {"pixels": (1,), "clusters": (2,), "profile": (2, 2, 3)}


@pytest.mark.parametrize(
    ("dense", "sketches"), [(4, (6, 8)), (4, (6, 10)), (4, (6, 6, 9)), (9, (9,)), (0, (9,)), (25, (9,)), (4, ())]
)
def test_levels_that_do_not_rise_to_the_whole_key_are_refused(dense: int, sketches: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="do not rise to the key's 9 bits"):
        CountsPlan(QUANTISER, SKETCH, dense, sketches)


@pytest.mark.parametrize(
    "keys",
    [
        np.array([7, 7], np.uint64),
        np.array([8, 7], np.uint64),
        np.array([[7]], np.uint64),
        np.array([7], np.int64),
    ],
)
def test_candidates_that_are_not_rising_keys_are_refused(keys: np.ndarray) -> None:
    with pytest.raises(PlanError, match="candidates must be one list of rising 64-bit keys, each once"):
        RecoveryPlan(QUANTISER, keys)


def test_a_candidate_over_the_key_space_is_refused() -> None:
    with pytest.raises(PlanError, match="candidates hold the key 484, over the key space's 484"):
        RecoveryPlan(QUANTISER, np.array([1, 484], np.uint64))


@pytest.mark.parametrize(
    ("clusters", "cluster_states", "states"),
    [
        ([0, 1, 1], (0, 0), ("x",)),
        ([0, 1, 2, 0], (0, 0), ("x",)),
        ([0, 1, 1, 0], (0, 1), ("x",)),
        ([0, 1, 1, 0], (0, -1), ("x",)),
        ([0, 0, 0, 0], (), ("x",)),
        ([0, 0, 0, 0], (0,), ()),
        ([0, 0, 0, 0], (0,) * 251, ("x",)),
    ],
)
def test_a_codebook_with_a_gap_is_refused(
    clusters: list[int], cluster_states: tuple[int, ...], states: tuple[str, ...]
) -> None:
    with pytest.raises(PlanError, match="does not give every key one of its clusters"):
        CodebookPlan(QUANTISER, KEYS, np.array(clusters, np.uint8), cluster_states, states)


def test_an_empty_codebook_is_refused() -> None:
    with pytest.raises(PlanError):
        CodebookPlan(QUANTISER, KEYS[:0], np.zeros(0, np.uint8), (0,), ("x",))


def test_a_fingerprint_is_the_sha256_of_the_published_bytes() -> None:
    assert fingerprint(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
