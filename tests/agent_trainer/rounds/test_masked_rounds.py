"""Masked rounds: the middle learns a mean and nothing else, whoever is lost; below T a round is lost, not the run."""

import numpy as np
import pytest

from agent_trainer.rounds.bounds import bounded, noised, plain_updates
from agent_trainer.rounds.layout import layout_of
from agent_trainer.rounds.masked_updates import FORM, decoded, hand_over
from agent_trainer.rounds.server_app import Outcome
from agent_trainer.rounds.wire import Order
from cairn.codec import encode_plan
from cairn.errors import PlanMismatch
from cairn.plan import Plan, Secrecy, UpdatePlan, fingerprint
from cairn.tally import Tally
from tests.agent_trainer.rounds.masked import MaskedFederation
from tests.agent_trainer.rounds.test_run import begin, play, post, spec, weights_of
from tests.aggregator.conftest import Clock, clock  # noqa: F401 - a fixture

RNG = np.random.default_rng(11)
NETWORK = {"a": np.zeros((40, 50), np.float32), "b": np.zeros(48, np.float32)}
SIZE = 2048


def order(number=1, run="run", **changes):
    plan = Plan("run", 1, UpdatePlan(SIZE, **vars(FORM)), Secrecy(64, 400, 100))
    values = {"update_plan": encode_plan(plan)} | changes
    return Order(run, number, "dqn", "{}", 0, layout_of(NETWORK), evaluate=False, deadline_s=60.0, **values)


def test_the_unmasked_mean_is_the_plain_one_within_the_quantisers_step(tmp_path):
    before = RNG.normal(size=SIZE).astype(np.float32)
    trained = [before + RNG.normal(0, 0.05, SIZE).astype(np.float32) for _ in range(5)]
    examples = [1, 7, 300, 12, 90]
    total = np.zeros(SIZE + 1, np.int64)
    for update, weight in zip(trained, examples, strict=True):
        name = hand_over(order(), before, update, weight, tmp_path)
        total += np.load(tmp_path / f"{name}.npy")
    mean, weight = decoded(order().update_plan, total)
    changes = np.stack([(update - before).astype(np.float64) for update in trained])
    assert weight == sum(examples)
    assert np.abs(mean - np.average(changes, axis=0, weights=examples)).max() <= FORM.error_bound(5, sum(examples))
    assert FORM.error_bound(5, sum(examples)) < 2.0**-FORM.fraction_bits


@pytest.mark.parametrize(
    "asked", [{"number": 2}, {"run": "other"}, {"update_plan": encode_plan(Plan("run", 1, UpdatePlan(9, 20, 1.0, 5)))}]
)
def test_a_plan_of_another_round_or_network_or_in_plain_gets_no_update(tmp_path, asked):
    zeros = np.zeros(SIZE, np.float32)
    with pytest.raises(PlanMismatch, match="another round or network"):
        hand_over(order(**asked), zeros, zeros, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_site_shortens_its_update_to_the_bound_and_keeps_its_direction():
    update = RNG.normal(size=6).astype(np.float32)
    learnt = np.array([True] * 5 + [False])
    shorter = bounded(update, learnt, 0.5)
    assert np.linalg.norm(shorter[:5]) == pytest.approx(0.5, rel=1e-6)
    assert np.dot(shorter[:5], update[:5]) == pytest.approx(0.5 * np.linalg.norm(update[:5]), rel=1e-6)
    assert shorter[5] == update[5], "what a normalisation counts is not learnt"
    np.testing.assert_array_equal(bounded(update, learnt, 100.0), update)
    assert bounded(update, learnt, 0.0) is update


def test_the_noise_of_a_private_round_is_of_the_length_that_was_promised():
    cells = np.zeros(20_000, np.int64)
    noised(cells, 2.0**-20, 0.5, 1.5)
    assert np.std(cells) * 2.0**-20 == pytest.approx(1.5 * 0.5, rel=0.05)
    assert abs(np.mean(cells)) * 2.0**-20 < 0.05


def test_a_private_sites_update_is_shortened_whole_and_weighs_as_any_other(tmp_path):
    trained = RNG.normal(size=SIZE).astype(np.float32)
    name = hand_over(order(alike=True, norm_bound=2.0), np.zeros(SIZE, np.float32), trained, 700, tmp_path)
    cells = np.load(tmp_path / f"{name}.npy")
    assert cells[-1] == 1
    assert np.linalg.norm(cells[:-1] * 2.0**-20) == pytest.approx(2.0, abs=1e-4)


def test_in_plain_the_middle_shortens_updates_and_a_strategy_sees_one_noised():
    message = object()
    before, far = np.zeros(4, np.float32), np.array([30.0, 40.0, 0.0, 0.0], np.float32)
    came = [Outcome(f"site-{n}", "trained", metrics={"examples": n}, update=far, message=message) for n in (1, 2)]
    learnt = np.ones(4, np.bool_)
    shorter = plain_updates(spec(norm_bound=5.0), before, learnt, came, 2)
    assert [(update.tolist(), weight) for update, weight, _ in shorter] == [([3, 4, 0, 0], 1), ([3, 4, 0, 0], 2)]
    (one,) = plain_updates(spec(norm_bound=5.0, noise=1e-4), before, learnt, came, 4)
    np.testing.assert_allclose(one[0], [1.5, 2.0, 0.0, 0.0], atol=0.01)  # two of four came


def test_rounds_go_on_whoever_is_lost_and_the_aggregator_sees_noise(tmp_path, clock: Clock):  # noqa: F811
    run = spec(min_sites=3, masking="on", rounds=9, evaluate_every=0, masking_patience=60)
    federation = MaskedFederation(tmp_path, ("site-1", "site-2", "site-3", "site-4"), run, clock)
    amounts, examples = (1.0, 2.0, 3.0, 6.0), (1, 2, 3, 4)
    grid, sites = post(
        *(federation.app(f"site-{n}", *one) for n, one in enumerate(zip(amounts, examples, strict=True), 1))
    )
    middle = begin(tmp_path, run, federation, weights=NETWORK)

    (report,) = play(middle, grid, sites)
    np.testing.assert_allclose(weights_of(tmp_path), np.average(amounts, weights=examples), atol=2.0**-20)
    assert (report.metrics["examples"], report.metrics["loss"]) == (10.0, 3.0)
    assert [(site.state, site.metrics) for site in report.sites] == [("trained", {"loss": a}) for a in amounts]
    check_noise(federation)
    first = set(federation.blobs())

    federation.silent_after["site-4"] = "dealing"  # killed before its masked words: its pair masks must come off
    before = weights_of(tmp_path)
    (report,) = play(middle, grid, sites)
    np.testing.assert_allclose(weights_of(tmp_path) - before, np.average([1, 2, 3], weights=[1, 2, 3]), atol=2.0**-20)
    assert [site.state for site in report.sites] == ["trained"] * 3 + ["late"]

    federation.silent_after["site-3"] = "receipt"  # two are left to agree, and three are needed
    before = weights_of(tmp_path)
    federation.dead.clear()
    (report,) = play(middle, grid, sites)
    np.testing.assert_array_equal(weights_of(tmp_path), before)
    assert [site.state for site in report.sites] == ["late"] * 4
    assert federation.lines[-1].startswith("the masked sum of run, round 3 is lost: "), federation.lines

    federation.dead.clear()
    federation.silent_after.clear()
    (report,) = play(middle, grid, sites)
    np.testing.assert_allclose(weights_of(tmp_path) - before, np.average(amounts, weights=examples), atol=2.0**-20)
    assert report.number == 4
    play(middle, grid, sites)
    assert not first & set(federation.blobs()), "masked words and sums of rounds long past take no room"

    federation.sites.sites["site-2"].tally = lambda plan, of: Tally(
        bytes.fromhex(of), {"update": np.full(SIZE + 1, 2**60)}
    )
    before = weights_of(tmp_path)
    (report,) = play(middle, grid, sites)
    np.testing.assert_array_equal(weights_of(tmp_path), before)
    assert "holds cells from" in federation.lines[-1], "a site that adds what no update is costs the round, not the run"


def check_noise(federation):
    """Every byte of what a site sent is any byte as often as another: χ² over 256 values, 255 degrees of freedom."""
    words = [blob for blob in federation.blobs() if len(blob) == 8 * (SIZE + 1)]
    assert len(words) == 4
    for blob in words:
        expected = len(blob) / 256
        seen = np.bincount(np.frombuffer(blob, np.uint8), minlength=256)
        assert 150 < ((seen - expected) ** 2 / expected).sum() < 400, "chance is under 10^-7"
    # And no two sites' differ by what their updates do: the same in every word but the last.
    one, other = (np.frombuffer(blob, "<u8") for blob in words[:2])
    assert len(np.unique(one[:-1] - other[:-1])) > SIZE - 4


def test_the_plan_of_a_round_names_its_run_and_number():
    plans = [
        fingerprint(encode_plan(Plan(run, number, UpdatePlan(SIZE, **vars(FORM)), Secrecy(64, 400, 100))))
        for run, number in (("run", 1), ("run", 2), ("other", 1))
    ]
    assert len(set(plans)) == 3
