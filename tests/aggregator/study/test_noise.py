"""What people see of noisy tables, and the thresholds on it."""

import numpy as np
import pytest

from aggregator.study import results
from aggregator.study.noise import promised, table_noise, threshold
from aggregator.study.recovery import candidates, verified
from aggregator.study.studies import PRIVACY_SHARES, as_published, moments_plan
from cairn.errors import StudyError
from cairn.heavy import KeyCounter
from cairn.moments import second_moment, split
from cairn.pixels import INTENSITY_BINS, UNIT_BINS, Quantiser
from cairn.plan import CountsPlan, prefix_levels
from cairn.privacy.noise import discrete_gaussian
from cairn.ranges import ranges
from cairn.sketch import SketchSpec
from cairn.tally import zeros
from tests.aggregator.simulated import NUMPY, spec
from tests.aggregator.study.test_recovery import QUANTISER, counts_plan, recovery_plan
from tests.aggregator.study.test_results import MAP

PROMISE = {"unit": "image", "epsilon": 4.0, "delta": 1e-6, "clip": 10, "brightest": 1500}
BITS = np.random.default_rng(11)


def noise(shape: tuple[int, ...], sigma: float) -> np.ndarray:
    return discrete_gaussian(int(np.prod(shape)), sigma, BITS.bytes).reshape(shape)


def test_the_stages_of_a_study_share_all_of_its_privacy() -> None:
    assert sum(PRIVACY_SHARES.values()) == pytest.approx(1.0)


def test_an_exact_plan_has_no_noise_and_no_promise() -> None:
    plan = as_published(spec(), moments_plan(spec()))
    assert plan.privacy is None
    assert set(table_noise(plan, 3).values()) == {0.0}
    assert promised(plan, {}) == {}
    assert threshold(7, 0.0) == 7


def test_without_masking_every_site_adds_all_of_the_noise_and_with_it_a_share() -> None:
    alone, masked = (
        as_published(made, moments_plan(made)).privacy
        for made in (spec(min_sites=4, masking=how, privacy=PROMISE) for how in ("off", "on"))
    )
    assert alone is not None
    assert masked is not None
    assert (alone.sites, alone.sharers) == (1, 1)
    assert (masked.sites, masked.sharers) == (4, 3)
    assert alone.noise == masked.noise


def test_the_promise_grows_with_every_merge_and_more_than_one_window_costs_more() -> None:
    made = spec(privacy=PROMISE)
    plan, known, epsilons = as_published(made, moments_plan(made)), {}, []
    for _ in range(3):
        known |= promised(plan, known)
        epsilons.append(known["privacy"]["epsilon"])
    assert epsilons == sorted(set(epsilons))
    assert f"ε {epsilons[-1]:.3g}" in known["privacy"]["said"]


def test_keys_that_noise_made_are_not_shown_and_true_ones_are() -> None:
    keys = list(range(0, 3000, 3))
    counts = noise((len(keys),), 30.0)
    counts[5] += 400
    found = verified({"count": counts, "foreground": np.array([400])}, recovery_plan(keys), 50, 1, 30.0)
    assert found.keys.tolist() == [15]
    assert found.mass <= 1.0
    with pytest.raises(StudyError, match="a larger ε"):
        verified({"count": noise((1000,), 30.0), "foreground": np.array([0])}, recovery_plan(keys), 50, 1, 30.0)


def test_heavy_keys_are_found_under_noise_in_every_table() -> None:
    stage = counts_plan(4096)
    heavy = np.random.default_rng(0).integers(0, QUANTISER.keyspace.size, 20, dtype=np.uint64)
    counter = KeyCounter(stage, NUMPY)
    counter.add(np.repeat(heavy, 800))
    tables = {**zeros(stage), **counter.tables()}
    for name, table in tables.items():
        table += noise(table.shape, 40.0 if name == "dense" else 90.0)
    found = candidates(tables, stage, 40, NUMPY, 1, 40.0)
    assert set(heavy.tolist()) <= set(found.keys.tolist())


def test_noise_over_cells_of_no_key_makes_no_candidate() -> None:
    narrow = Quantiser(QUANTISER.pixels, QUANTISER.projection[:2], 0.5, np.zeros(2), np.ones(2), 6)
    stage = CountsPlan(narrow, SketchSpec(5, 64, bytes(32)), *prefix_levels(narrow.keyspace))
    tables = zeros(stage)
    tables["dense"] += 1000  # 64 cells, of which 36 are keys
    assert candidates(tables, stage, 60, NUMPY, 1, 10.0).keys.max() == 35


def test_a_candidate_without_hope_of_the_least_count_goes_to_no_site() -> None:
    stage = counts_plan(4096)
    counter = KeyCounter(stage, NUMPY)
    counter.add(np.repeat(np.array([7, 5000], np.uint64), [500, 3]))
    found = candidates({**zeros(stage), **counter.tables()}, stage, 40, NUMPY, 100)
    assert found.keys.tolist() == [7]


def test_a_cluster_of_too_few_pixels_has_no_profile() -> None:
    tables = {"pixels": np.array([9]), "clusters": np.array([40, 9]), "profile": split(np.array([[80, 40], [9, 9]]))}
    shown, hidden = results.exact_rows(results.cluster_rows(MAP), tables, 10)
    assert (shown["pixels"], shown["profile"]) == (40, [2.0, 1.0])
    assert (hidden["pixels"], hidden["profile"]) == (0, [None, None])


def test_the_second_moment_of_a_noisy_tally_is_symmetric() -> None:
    words = np.zeros((2, 3, 3), np.int64)
    words[0] = noise((3, 3), 1000.0)
    found = second_moment({"pixels": np.array([5]), "second": words})
    np.testing.assert_array_equal(found, found.T)


def test_ranges_of_noisy_histograms_are_near_those_of_exact_ones() -> None:
    rng = np.random.default_rng(3)
    unit = np.zeros((2, INTENSITY_BINS, UNIT_BINS), np.int64)
    rows = rng.integers(INTENSITY_BINS // 2, INTENSITY_BINS // 2 + 12, 400_000)
    for component, centre in enumerate((300, 180)):
        np.add.at(unit[component], (rows, np.clip(rng.normal(centre, 25, len(rows)), 0, 511).astype(int)), 1)
    exact = ranges({"unit": unit})
    noisy = ranges({"unit": unit + noise(unit.shape, 25.0)}, noise=25.0)
    np.testing.assert_allclose(noisy.low, exact.low, atol=0.07)
    np.testing.assert_allclose(noisy.high, exact.high, atol=0.07)
    with pytest.raises(StudyError, match="stand out of the noise"):
        ranges({"unit": noise(unit.shape, 25.0)}, noise=25.0)
