from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from cairn import kernels, moments
from cairn.errors import PlanError, StudyError
from cairn.pixels import BACKGROUND, INTENSITY_BINS, MIN_RANGE, UNIT_BINS, PixelLevels, Quantiser, intensity_edges
from cairn.ranges import ranges

NUMBA = kernels.load("numba")
Levels = npt.NDArray[np.uint16]


def projected(levels: Levels, dimensions: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    second = NUMBA.moments(levels)[1]
    tables = {"pixels": np.array([levels.shape[1]]), "second": moments.split(second)}
    weights = moments.projection(tables, dimensions)
    unit = np.zeros((dimensions, INTENSITY_BINS, UNIT_BINS), np.int64)
    NUMBA.unit_histogram(levels, weights, unit)
    return weights, unit


def slide(rng: np.random.Generator, tissue: float, n: int = 100_000) -> tuple[Levels, npt.NDArray[np.bool_]]:
    """Make fluorescence-like pixels of 12 bands: glass of faint noise, and tissue of six cell types over it."""
    is_tissue = rng.random(n) < tissue
    spectra = rng.gamma(0.5, 1, (6, 12))
    light = spectra[rng.integers(0, 6, n)].T * rng.lognormal(0, 0.5, n) * 400 * is_tissue
    return np.clip(np.rint(rng.poisson(light) + rng.normal(40, 6, (12, n))), 0, 65535).astype(np.uint16), is_tissue


@pytest.mark.parametrize("tissue", [0.1, 0.3, 0.6, 0.9])
def test_the_cut_off_parts_glass_from_tissue(tissue: float) -> None:
    levels, is_tissue = slide(np.random.default_rng(4), tissue)
    weights, unit = projected(levels, 4)
    found = ranges({"unit": unit})
    keys = Quantiser(PixelLevels(tuple(map(str, range(12)))), weights, found.min_norm, found.low, found.high, 22).keys(
        levels, NUMBA
    )
    foreground = keys != BACKGROUND
    assert foreground[~is_tissue].mean() < 0.001
    assert foreground[is_tissue].mean() > 0.95
    assert "the glass peak keeps" in found.said


def test_the_foreground_share_that_is_reported_is_the_share_of_pixels_that_get_keys() -> None:
    levels, _ = slide(np.random.default_rng(5), 0.4)
    weights, unit = projected(levels, 3)
    found = ranges({"unit": unit})
    q = Quantiser(PixelLevels(tuple(map(str, range(12)))), weights, found.min_norm, found.low, found.high, 22)
    assert np.mean(q.keys(levels, NUMBA) != BACKGROUND) == pytest.approx(found.foreground, abs=1e-12)
    assert np.nextafter(found.min_norm, np.inf) in intensity_edges()


def test_without_glass_all_pixels_that_are_not_zero_are_kept_and_a_sentence_says_so() -> None:
    levels, _ = slide(np.random.default_rng(6), 1.0)
    levels[:, :1000] = 0
    _, unit = projected(levels, 3)
    found = ranges({"unit": unit})
    assert (found.min_norm, found.foreground) == (0.0, 1.0)
    assert "there seems to be no glass, so all that are not zero are kept" in found.said


def test_without_any_peak_all_pixels_that_are_not_zero_are_kept() -> None:
    unit = np.zeros((1, INTENSITY_BINS, UNIT_BINS), np.int64)
    unit[0, 3::6, 300] = 1000  # 56 lone bins, none of them 2 % of the pixels
    found = ranges({"unit": unit})
    assert (found.min_norm, found.foreground) == (0.0, 1.0)
    assert found.said == "no glass peak stands out, so all pixels that are not zero are kept"


def test_real_ion_counts_keep_most_of_what_is_not_zero(real_data: Path) -> None:
    fields = []
    for folder in sorted((real_data / "mibi41").iterdir()):
        planes = [tifffile.imread(path) for path in sorted(folder.glob("*.tif"))]
        fields.append(np.stack(planes).reshape(len(planes), -1)[:, ::3])
    levels = NUMBA.to_levels(np.concatenate(fields, axis=1), 0, 1)
    weights, unit = projected(levels, 8)
    found = ranges({"unit": unit})
    assert 0.5 < found.foreground <= 1
    q = Quantiser(PixelLevels(tuple(map(str, range(41)))), weights, found.min_norm, found.low, found.high, 22)
    keys = q.keys(levels, NUMBA)
    _, counts = np.unique(keys[keys != BACKGROUND], return_counts=True)
    assert len(counts) > 10_000
    assert np.sort(counts)[::-1][:20_000].sum() > 0.9 * counts.sum()


def unit_table(*histograms: dict[int, int]) -> npt.NDArray[np.int64]:
    """Make a table with all pixels in one intensity bin, from unit bin to count for each component."""
    unit = np.zeros((len(histograms), INTENSITY_BINS, UNIT_BINS), np.int64)
    for d, histogram in enumerate(histograms):
        for at, count in histogram.items():
            unit[d, 150, at] = count
    return unit


def test_a_range_is_cut_at_the_quantile_from_each_end_or_at_the_extremes() -> None:
    table = unit_table({0: 1, 100: 49, 200: 900, 300: 49, 511: 1})
    whole = ranges({"unit": table}, quantile=0.0)
    assert (whole.low[0], whole.high[0]) == (-1.0, 1.0)
    one = ranges({"unit": table}, quantile=0.01)
    assert (one.low[0], one.high[0]) == (-1 + 100 / 256, -1 + 301 / 256)
    ten = ranges({"unit": table}, quantile=0.1)
    assert ten.low[0] == -1 + 200 / 256


def test_a_component_of_one_value_gives_every_pixel_the_same_digit() -> None:
    table = unit_table({511: 1000}, {255: 500, 256: 500})
    found = ranges({"unit": table}, quantile=0.0)
    assert np.all(found.high - found.low >= MIN_RANGE)
    levels = np.array([[5, 6, 70], [0, 0, 0]], np.uint16)
    axes = np.array([[2**14, 0], [0, 2**14]], np.int32)
    for radix in (2, 22, 256):
        q = Quantiser(PixelLevels(("a", "b")), axes, 0.0, found.low, found.high, radix)
        assert len(np.unique(q.keys(levels, NUMBA))) == 1


def test_ranges_of_nothing_or_of_an_impossible_quantile_are_refused() -> None:
    with pytest.raises(StudyError, match="every pixel at every site is zero"):
        ranges({"unit": unit_table({})})
    with pytest.raises(PlanError, match=r"at least 0 and under 0\.5"):
        ranges({"unit": unit_table({3: 1})}, quantile=0.5)


def test_ranges_of_merged_sites_are_the_ranges_of_the_union() -> None:
    rng = np.random.default_rng(8)
    sites = [slide(rng, tissue, 20_000)[0] for tissue in (0.2, 0.7)]
    weights, union = projected(np.concatenate(sites, axis=1), 3)
    merged = np.zeros_like(union)
    for site in sites:
        NUMBA.unit_histogram(site, weights, merged)
    assert np.array_equal(merged, union)
    assert ranges({"unit": merged}).said == ranges({"unit": union}).said
