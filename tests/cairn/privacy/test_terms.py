"""What is promised, what it costs, and how far a unit can move a tally."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cairn import codec
from cairn.errors import PlanError, TrainingError
from cairn.pixels import PixelLevels
from cairn.plan import MomentsPlan, Plan, ReplayRangesPlan, Secrecy
from cairn.privacy import gaussian, updates
from cairn.privacy.accountant import composed, shared
from cairn.privacy.sensitivity import bounds, dimmed, scales
from cairn.privacy.terms import Privacy, honest
from tests.cairn.privacy.test_noise import keystream

STAGE = MomentsPlan(PixelLevels(("a", "b", "c")))
TERMS = Privacy("image", 3.0, 1e-6, 2.0, 10, 1000, sites=3, sharers=2)
MASKED = Secrecy(64, 400, 100)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-9), (1.0, 1e-6), (8.0, 1e-5), (40.0, 1e-6)])
def test_stages_composed_by_the_library_cost_what_the_study_asked_for_and_no_more(epsilon: float, delta: float) -> None:
    noise = shared(epsilon, delta, [0.1, 0.15, 0.4, 0.25, 0.1])
    assert 0.999 * epsilon < composed(noise, delta) <= epsilon
    alone = gaussian.epsilon(sum(gaussian.concentration(one) for one in noise), delta)
    assert alone <= composed(noise, delta) < 1.001 * alone  # the closed form, a little tighter


def test_the_closed_form_is_below_the_textbooks_bound_and_above_the_exact_one() -> None:
    rho, delta = 0.125, 1e-6  # z = 2
    assert gaussian.multiplier(rho) == 2.0
    assert gaussian.epsilon(rho, delta) < rho + 2 * math.sqrt(rho * math.log(1 / delta))
    # The exact ε of a continuous Gaussian of z = 2 solves Φ(1/2z - εz) - e^ε·Φ(-1/2z - εz) = δ (Balle & Wang 2018).
    assert gaussian.epsilon(rho, delta) > 2.18


def test_a_plan_whose_noise_does_not_keep_its_promise_is_refused() -> None:
    with pytest.raises(PlanError, match=r"promises ε 3 .* keeps only"):
        dataclasses.replace(TERMS, noise=1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 0},
        {"unit": "pixel"},
        {"unit": "ward"},
        {"delta": 0.0},
        {"sharers": 4},
        {"brightest": 0},
        {"noise": math.nan},
    ],
)
def test_terms_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        dataclasses.replace(TERMS, **change)


def test_a_private_plan_comes_back_from_its_bytes_and_a_plan_without_is_as_it_was() -> None:
    plain = Plan("tumour", 0, STAGE, MASKED)
    private = dataclasses.replace(plain, privacy=TERMS)
    assert codec.decode_plan(codec.encode_plan(private)) == private
    assert codec.decode_plan(codec.encode_plan(plain)).privacy is None
    assert codec.encode_plan(private).startswith(codec.encode_plan(plain)[:8])


def test_shared_noise_needs_masking_and_images() -> None:
    with pytest.raises(PlanError, match="not masked"):
        Plan("tumour", 0, STAGE, None, TERMS)
    with pytest.raises(PlanError, match="over images"):
        Plan("tumour", 0, ReplayRangesPlan((2, 2)), MASKED, TERMS)
    Plan("tumour", 0, STAGE, None, dataclasses.replace(TERMS, sites=1, sharers=1))


def test_accomplices_and_one_curious_site_are_not_counted_on() -> None:
    assert [honest(3, 100), honest(10, 100), honest(10, 300), honest(1, 0), honest(100, 250)] == [2, 9, 7, 1, 75]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 8))),
    st.integers(1, 150_000),
)
def test_no_pixel_is_brighter_than_the_plan_says_and_dark_ones_stay(levels: np.ndarray, brightest: int) -> None:
    terms = dataclasses.replace(TERMS, brightest=brightest)
    found = dimmed(levels, terms)
    squares = (levels.astype(object) ** 2).sum(axis=0)
    assert all(total <= brightest**2 for total in (found.astype(object) ** 2).sum(axis=0))
    np.testing.assert_array_equal(found[:, squares <= brightest**2], levels[:, squares <= brightest**2])


def test_the_tables_of_a_release_are_together_as_private_as_its_noise_says() -> None:
    shapes = {"pixels": (1,), "foreground": (1,), "dense": (64,), "sketch_9": (5, 40), "sketch_12": (5, 40)}
    moved, spread = bounds(shapes, TERMS), scales(shapes, TERMS)
    assert sum((moved[name] / spread[name]) ** 2 for name in shapes) == pytest.approx(1 / TERMS.noise**2)
    assert moved == {
        "pixels": 100, "foreground": 100, "dense": 10, "sketch_9": 10 * 5**0.5, "sketch_12": 10 * 5**0.5
    }  # fmt: skip


def test_an_update_is_clipped_to_its_norm_and_one_that_is_not_finite_is_refused() -> None:
    assert np.linalg.norm(updates.clip(np.array([3.0, 4.0]), 1.0)) == pytest.approx(1.0)
    np.testing.assert_array_equal(updates.clip(np.array([0.3, 0.4]), 1.0), [0.3, 0.4])
    np.testing.assert_array_equal(updates.clip(np.zeros(2, np.float32), 1.0), [0.0, 0.0])
    with pytest.raises(TrainingError):
        updates.clip(np.array([1.0, np.nan]), 1.0)


def test_the_noised_mean_moves_by_no_more_than_its_norm_over_the_sites_and_spreads_as_it_must() -> None:
    rng = np.random.default_rng(3)
    sent = rng.normal(size=4_000).astype(np.float32)
    trained = [sent + rng.normal(size=4_000).astype(np.float32) * scale for scale in (0.001, 1.0, 1e6)]
    bare = updates.private_weights(sent, trained, 2.0, 0.0, 3, keystream(0))
    without = updates.private_weights(sent, trained[:2], 2.0, 0.0, 3, keystream(0))
    assert np.linalg.norm(bare.astype(float) - without) <= 2.0 / 3 * 1.001
    noised = updates.private_weights(sent, trained, 2.0, 1.5, 3, keystream(0))
    assert np.std(noised.astype(float) - bare) == pytest.approx(1.5 * 2.0 / 3, rel=0.05)


def test_rounds_cost_more_than_one_and_less_than_their_sum() -> None:
    one, ten = updates.epsilon_of_rounds(4.0, 1, 1e-5), updates.epsilon_of_rounds(4.0, 10, 1e-5)
    assert one < ten < 10 * one
