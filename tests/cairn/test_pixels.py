import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cairn import kernels
from cairn.errors import ImageError, PlanError
from cairn.pixels import BACKGROUND, INTENSITY_BINS, UNIT_BINS, PixelLevels, Quantiser, intensity_edges

NUMPY = kernels.load("numpy")
NUMBA = kernels.load("numba")
BOTH = pytest.mark.parametrize("backend", [NUMPY, NUMBA], ids=["numpy", "numba"])


def quantiser(
    projection: npt.NDArray[np.integer], radix: int = 22, low: float = -1.0, high: float = 1.0, min_norm: float = 0.0
) -> Quantiser:
    components, bands = projection.shape
    names = tuple(f"band {b}" for b in range(bands))
    ranges = np.full(components, low), np.full(components, high)
    return Quantiser(PixelLevels(names), projection.astype(np.int32), min_norm, *ranges, radix)


@st.composite
def tiles_and_quantisers(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint16], Quantiser]:
    """Draw a tile of random size and a quantiser; random values come from a seed, so that tiles may be large."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bands, components = draw(st.integers(1, 128)), draw(st.integers(1, 9))
    n = draw(st.sampled_from([0, 1, 3, 255, 256, 257, 1000]))
    top = draw(st.sampled_from([1, 255, 4095, 65535]))
    levels = rng.integers(0, top + 1, (bands, n)).astype(np.uint16)
    levels[:, rng.random(n) < draw(st.sampled_from([0.0, 0.5]))] = 0
    weight = draw(st.sampled_from([1, 500, 2**15]))
    projection = rng.integers(-weight, weight + 1, (components, bands))
    radix = draw(st.integers(2, min(256, int(2 ** (63 / components)))))
    q = quantiser(projection, radix, *sorted(rng.choice([-1, -0.3, 0.2, 1], 2, replace=False)))
    cut_off = draw(st.sampled_from([0.0, 1000.0, float(weight * top)]))
    return levels, Quantiser(q.pixels, q.projection, cut_off, q.low, q.high, radix)


@settings(deadline=None, max_examples=150)
@given(tiles_and_quantisers())
def test_compiled_keys_are_the_defined_keys_bit_for_bit(drawn: tuple[npt.NDArray[np.uint16], Quantiser]) -> None:
    levels, q = drawn
    assert np.array_equal(q.keys(levels, NUMBA), q.keys(levels, NUMPY))


@settings(deadline=None, max_examples=50)
@given(tiles_and_quantisers())
def test_compiled_histograms_are_the_defined_histograms(drawn: tuple[npt.NDArray[np.uint16], Quantiser]) -> None:
    levels, q = drawn
    tables = [np.zeros((len(q.projection), INTENSITY_BINS, UNIT_BINS), np.int64) for _ in range(2)]
    NUMPY.unit_histogram(levels, q.projection, tables[0])
    NUMBA.unit_histogram(levels, q.projection, tables[1])
    assert np.array_equal(*tables)
    lit = np.any(q.projection.astype(np.int64) @ levels.astype(np.int64), axis=0)
    assert np.all(tables[0].sum(axis=(1, 2)) == np.count_nonzero(lit))


@BOTH
def test_a_key_is_what_exact_arithmetic_says_wherever_no_tie_is_near(backend: kernels.Kernels) -> None:
    rng = np.random.default_rng(7)
    q = quantiser(rng.integers(-9000, 9000, (3, 5)), radix=22, low=-0.9, high=0.8)
    levels = rng.integers(0, 65536, (5, 40)).astype(np.uint16)
    for key, pixel in zip(q.keys(levels, backend), levels.T, strict=True):
        p = [sum(int(w) * int(x) for w, x in zip(row, pixel, strict=True)) for row in q.projection]
        norm = Fraction(math.isqrt(sum(v * v for v in p) << 200), 1 << 100)
        exact = [(v / norm - Fraction(-0.9)) / (Fraction(0.8) - Fraction(-0.9)) * 21 for v in p]
        assert all(abs(t - math.floor(t) - Fraction(1, 2)) > 1e-9 for t in exact)
        digits = [min(max(round(t), 0), 21) for t in exact]
        assert int(key) == (digits[0] * 22 + digits[1]) * 22 + digits[2]


@BOTH
def test_a_component_at_or_beyond_its_range_takes_the_first_or_last_digit(backend: kernels.Kernels) -> None:
    one = np.array([[2**14]])
    for low, high, digit in [(-1.0, 1.0, 21), (-1.0, 0.5, 21), (1.0, 2.0, 0), (1.5, 2.0, 0), (0.0, 2.0, 10)]:
        q = quantiser(one, 22, low, high)  # u = 1; at the middle of the range 10.5 goes to the even 10
        assert q.keys(np.array([[3]], np.uint16), backend).tolist() == [digit]


@BOTH
def test_a_pixel_is_foreground_only_above_the_cut_off_and_never_when_zero(backend: kernels.Kernels) -> None:
    levels = np.array([[0, 1, 2, 3]], np.uint16)
    one = np.array([[2**14]])
    assert (quantiser(one).keys(levels, backend) != BACKGROUND).tolist() == [False, True, True, True]
    at_two = quantiser(one, min_norm=2.0 * 2**14)
    assert (at_two.keys(levels, backend) != BACKGROUND).tolist() == [False, False, False, True]


@BOTH
def test_histogram_bins_begin_at_the_published_edges(backend: kernels.Kernels) -> None:
    edges = intensity_edges()
    assert len(edges) == INTENSITY_BINS
    assert np.all(np.diff(edges) > 0)
    levels = np.array([[1, 2, 3, 1000, 65535]], np.uint16)
    table = np.zeros((1, INTENSITY_BINS, UNIT_BINS), np.int64)
    backend.unit_histogram(levels, np.array([[2**14]], np.int32), table)
    norms = levels[0] * 2.0**14
    expected = np.searchsorted(edges, norms, side="right") - 1
    assert np.array_equal(np.flatnonzero(table[0].sum(axis=1)), expected)
    assert table[0, expected, UNIT_BINS - 1].tolist() == [1] * 5


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64]),
        (3, 5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.sampled_from([0.0, 0.5, -3.0, 1e6]),
    st.sampled_from([1.0, 2.0, 0.1, 1e300]),
)
def test_compiled_levels_are_the_defined_levels(values: npt.NDArray[np.number], offset: float, scale: float) -> None:
    levels = NUMPY.to_levels(values, offset, scale)
    assert np.array_equal(NUMBA.to_levels(values, offset, scale), levels)
    assert NUMBA.to_levels(values, offset, scale).dtype == levels.dtype == np.uint16


@BOTH
def test_levels_round_half_to_even_and_stop_at_both_ends(backend: kernels.Kernels) -> None:
    values = np.array([[-7.0, 0.5, 1.5, 2.5, 2.500001, 65534.5, 65535.5, 1e30]])
    assert backend.to_levels(values, 0.0, 1.0).tolist() == [[0, 0, 2, 2, 3, 65534, 65535, 65535]]
    assert backend.to_levels(np.array([[100, 101, 103]], np.uint8), 100, 0.5).tolist() == [[0, 0, 2]]
    assert backend.to_levels(np.array([[1, 256]], ">u2").astype(">i4"), 0, 1).tolist() == [[1, 256]]


@BOTH
def test_levels_of_unsigned_bytes_are_themselves_without_arithmetic(backend: kernels.Kernels) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert backend.to_levels(values, 0, 1) is values
    assert np.array_equal(backend.to_levels(values.astype(np.uint8), 0, 1), values)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_refused_in_one_sentence(backend: kernels.Kernels, bad: float) -> None:
    with pytest.raises(ImageError, match="not a number or infinite; expected finite values"):
        backend.to_levels(np.array([[1.0, bad]], np.float32), 0, 1)


@BOTH
def test_moments_are_those_of_whole_numbers_even_at_the_brightest_level(backend: kernels.Kernels) -> None:
    rng = np.random.default_rng(3)
    levels = rng.choice(np.array([0, 1, 65534, 65535], np.uint16), (4, 5000))
    total, second = backend.moments(levels)
    whole = [[int(x) for x in row] for row in levels]
    assert total.tolist() == [sum(row) for row in whole]
    assert second.tolist() == [[sum(x * y for x, y in zip(a, b, strict=True)) for b in whole] for a in whole]


@BOTH
def test_profiles_sum_levels_by_cluster_and_leave_background_out(backend: kernels.Kernels) -> None:
    levels = np.array([[1, 2, 3, 4, 5], [10, 20, 30, 40, 65535]], np.uint16)
    counts, sums = np.zeros(3, np.int64), np.zeros((3, 2), np.int64)
    for _ in range(2):
        backend.profile(levels, np.array([0, 1, 3, 1, 3], np.uint8), counts, sums)
    assert counts.tolist() == [4, 0, 4]
    assert sums.tolist() == [[12, 120], [0, 0], [16, 131130]]


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 60), max_size=40), st.lists(st.integers(0, 60), max_size=60), st.integers(0, 2**58))
def test_a_lookup_finds_the_listed_keys_and_no_other(listed: set[int], asked: list[int], step: int) -> None:
    rising = np.array(sorted(listed), np.uint64) * np.uint64(step + 1)
    keys = np.array([*asked, 0], np.uint64) * np.uint64(step + 1)
    keys[-1] = BACKGROUND
    for backend in (NUMPY, NUMBA):
        expected = [sorted(listed).index(x) if x in listed else -1 for x in asked]
        assert backend.lookup(keys, rising).tolist() == [*expected, -1]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.5, 0.5 + 1e-9), (np.nan, 1.0), (-np.inf, 1.0)])
def test_a_range_without_width_is_refused(low: float, high: float) -> None:
    with pytest.raises(PlanError, match="finite range"):
        quantiser(np.array([[2**14]]), low=low, high=high)


def test_a_real_field_gives_the_same_keys_on_both_backends(real_data: Path) -> None:
    folder = real_data / "mibi41" / "Point2203_pt1072_31606"
    mibi_field = np.stack([tifffile.imread(path) for path in sorted(folder.glob("*.tif"))])
    rng = np.random.default_rng(5)
    axes, _ = np.linalg.qr(rng.normal(size=(len(mibi_field), 8)))
    q = quantiser(np.rint(axes.T * 2**14))
    levels = NUMBA.to_levels(mibi_field, 0, 1).reshape(len(mibi_field), -1)[:, ::4]
    keys = q.keys(levels, NUMBA)
    assert np.array_equal(keys, q.keys(levels, NUMPY))
    assert np.array_equal(keys == BACKGROUND, ~np.any(q.projection.astype(int) @ levels, axis=0))
    assert 0.1 < np.mean(keys != BACKGROUND) < 1
