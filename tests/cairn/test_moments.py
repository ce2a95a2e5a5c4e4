import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import kernels, moments
from cairn.errors import PlanError, StudyError
from cairn.pixels import PixelLevels
from cairn.plan import MomentsPlan
from cairn.tally import Tables, add, zeros

NUMBA = kernels.load("numba")


def tables_of(levels: npt.NDArray[np.uint16]) -> Tables:
    tables = zeros(MomentsPlan(PixelLevels(tuple(map(str, range(len(levels)))))))
    total, second = NUMBA.moments(levels)
    add(tables, {"pixels": np.array([levels.shape[1]]), "sum": moments.split(total), "second": moments.split(second)})
    return tables


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_words_add_to_the_sum_of_any_whole_numbers(values: list[int]) -> None:
    words = np.zeros((2, 1), np.int64)
    for value in values:
        words += moments.split(np.array([value]))
    assert moments.exact(words).tolist() == [sum(values)]
    moments.carry(words)
    assert moments.exact(words).tolist() == [sum(values)]
    assert 0 <= words[0, 0] < 2**32


def test_sums_beyond_63_bits_stay_exact() -> None:
    second = np.array([65535**2 * (2**31 - 1)])
    words = sum((moments.split(second) for _ in range(1000)), np.zeros((2, 1), np.int64))
    moments.carry(words)
    assert moments.exact(words).tolist() == [65535**2 * (2**31 - 1) * 1000]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 40), st.lists(st.integers(0, 300), min_size=1, max_size=4))
def test_the_merge_of_sites_is_the_union_of_their_pixels(seed: int, bands: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    sites = [rng.integers(0, 65536, (bands, size)).astype(np.uint16) for size in sizes]
    union = np.concatenate(sites, axis=1)
    merged = tables_of(sites[0])
    for site in sites[1:]:
        add(merged, tables_of(site))
    whole = union.astype(object)
    assert moments.exact(merged["sum"]).tolist() == whole.sum(axis=1).tolist()
    assert moments.exact(merged["second"]).tolist() == (whole @ whole.T).tolist()
    if union.size:
        assert np.array_equal(moments.projection(merged, 1), moments.projection(tables_of(union), 1))


def test_the_projection_finds_planted_directions_largest_first() -> None:
    rng = np.random.default_rng(1)
    axes = np.array([[0.6, 0.8, 0, 0], [0, 0, 0.8, 0.6]])
    strength = np.array([[60000], [9000]]) * np.eye(2)[rng.integers(0, 2, 4000)].T * rng.random(4000)
    levels = np.rint(axes.T @ strength).astype(np.uint16)
    weights = moments.projection(tables_of(levels), 2)
    assert weights.dtype == np.int32
    assert np.abs(weights - 2**14 * axes).max() < 4
    assert moments.explained(tables_of(levels))[:2].sum() > 0.999


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_each_direction_has_its_largest_weight_positive_and_unit_length(seed: int, bands: int) -> None:
    rng = np.random.default_rng(seed)
    weights = moments.projection(tables_of(rng.integers(0, 4096, (bands, 200)).astype(np.uint16)), bands)
    assert np.all(weights[np.arange(bands), np.abs(weights).argmax(axis=1)] > 0)
    assert np.abs(weights @ weights.T / 2**28 - np.eye(bands)).max() < 0.002


def test_shares_fall_and_add_to_one() -> None:
    rng = np.random.default_rng(2)
    share = moments.explained(tables_of(rng.integers(0, 4096, (6, 500)).astype(np.uint16)))
    assert np.all(np.diff(share) <= 0)
    assert share.sum() == pytest.approx(1)


def test_no_pixels_dark_pixels_and_too_many_components_are_refused() -> None:
    with pytest.raises(StudyError, match="no site has counted a pixel"):
        moments.projection(tables_of(np.empty((3, 0), np.uint16)), 2)
    with pytest.raises(StudyError, match="every pixel at every site is zero"):
        moments.projection(tables_of(np.zeros((3, 5), np.uint16)), 2)
    with pytest.raises(PlanError, match="4 components were asked of 3 bands"):
        moments.projection(tables_of(np.ones((3, 5), np.uint16)), 4)
