from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import pytest
from flwr.common.constant import ErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.classification import count, figures
from agent_trainer.config import DqnConfig
from agent_trainer.rounds.checkpoints import Checkpoints
from agent_trainer.rounds.layout import flatten, unflatten
from agent_trainer.rounds.reports import read_report
from agent_trainer.rounds.run import Run
from agent_trainer.rounds.wire import answer, read_order
from cairn.codec import decode_plan
from cairn.errors import CairnError, Diverged, PlanError, TooFewSites, TrainingError
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint
from cairn.run import OPTIONS, RunSpec
from cairn.tally import Tally, zeros
from tests.agent_trainer.rounds.post import MovingClock, Post, Site, adds, fails, in_turn

ZERO = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)}
NORMALISED = {
    "conv.weight": np.zeros((2, 2), np.float32),
    "norm.running_var": np.ones(2, np.float32),
    "norm.num_batches_tracked": np.zeros((), np.float32),
    "norm.weight": np.ones(2, np.float32),
}
LEARNT = {name: NORMALISED[name] for name in ("conv.weight", "norm.weight")}


@dataclass
class NotingDesk:
    """The aggregator's side: notes what it is told, merges what the sites would have tallied."""

    asked_to_stop: bool = False
    published: list[bytes] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    merged_from: list[list[str]] = field(default_factory=list)
    merge_fails: bool = False
    given: bytes = b""

    def first_weights(self):
        return self.given

    def publish(self, plan, open_for):
        assert open_for > timedelta(0)
        self.published.append(plan)

    def merge(self, digest, sites, patience):
        assert digest == fingerprint(self.published[-1])
        if self.merge_fails:
            raise PlanError("the plan was closed")
        self.merged_from.append(list(sites))
        stage = decode_plan(self.published[-1]).stage
        tables = zeros(stage)
        tables["transitions"][0] = 10
        for name, table in tables.items():
            if name != "transitions":
                table[0, :10] = 1
        return Tally(digest, tables)

    def log(self, text):
        self.lines.append(text)

    def stopping(self):
        return self.asked_to_stop


def spec(**changes):
    values = {"name": "run", "algorithm": "dqn", "rounds": 3, "min_sites": 1, "round_deadline": 60}
    return RunSpec.model_validate(values | changes)


def begin(tmp_path, run_spec, desk=None, config=None, weights=ZERO):
    return Run(
        run_spec, config or DqnConfig(), weights, Checkpoints(tmp_path / "run", {}), desk or NotingDesk(), MovingClock()
    )


def post(*apps):
    return Post({n: Site(app) for n, app in enumerate(apps, 1)}, MovingClock()), {
        n: f"site-{n}" for n in range(1, len(apps) + 1)
    }


def play(run, grid, sites):
    return list(run.play(grid, sites))


def weights_of(tmp_path):
    return flatten(Checkpoints(tmp_path / "run", {}).latest().weights)


def test_the_average_is_weighted_by_examples(tmp_path):
    (report,) = play(begin(tmp_path, spec()), *post(adds(1, examples=3, loss=1.0), adds(5, examples=1, loss=5.0)))
    assert weights_of(tmp_path).tolist() == [2.0] * 7
    assert report.metrics == {"examples": 4, "loss": 2.0}
    assert [(site.site, site.state, site.bytes) for site in report.sites] == [
        ("site-1", "trained", 56),
        ("site-2", "trained", 56),
    ]


@pytest.mark.parametrize("weights", [ZERO, NORMALISED], ids=["plain", "normalised"])
@pytest.mark.parametrize("strategy", OPTIONS)
def test_every_strategy_survives_a_restart_after_each_round_with_the_same_result(tmp_path, strategy, weights):
    """Three rounds in one go equal three processes of one round."""
    apps = (adds(1, examples=2), adds(2), adds(4, examples=3))
    whole = begin(tmp_path / "whole", spec(strategy=strategy), weights=weights)
    grid, sites = post(*apps)
    for _ in range(3):
        play(whole, grid, sites)
    for _ in range(3):
        play(begin(tmp_path / "parts", spec(strategy=strategy), weights=weights), grid, sites)
    made = weights_of(tmp_path / "whole")
    np.testing.assert_array_equal(made, weights_of(tmp_path / "parts"))
    assert made.dtype == np.float32
    assert (made > 0.01).all()


def learns(amount, variances, batches, examples=1.0):
    """A site that adds to what is learnt, and in every round finds the next variance, and its number of batches."""
    left = iter(variances)

    def app(message):
        order, vector = read_order(message)
        weights, variance = unflatten(vector, order.layout), next(left)
        for name in LEARNT:
            weights[name] += np.float32(amount)
        if "norm.running_var" in weights:
            weights["norm.running_var"][:] = variance
            weights["norm.num_batches_tracked"][...] = batches
        return answer({"examples": examples}, flatten(weights), message)

    return app


def learnt_of(tmp_path):
    """What the last checkpoint holds: of every array, and of those that are learnt."""
    weights = Checkpoints(tmp_path / "run", {}).latest().weights
    return weights, {name: weights[name] for name in LEARNT}


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_statistics_are_the_sites_mean_under_every_strategy_and_change_nothing_for_the_weights(tmp_path, strategy):
    made = {}
    for whose, network in (("normalised", NORMALISED), ("bare", LEARNT)):
        run = begin(tmp_path / whose, spec(strategy=strategy), weights=network)
        grid, sites = post(learns(0.5, (40, 0.4, 0.04), 100, examples=3), learns(2, (80, 0.8, 0.08), 500))
        for variance in (50, 0.5, 0.05):  # rises far, then falls to where momentum would shoot below 0
            play(run, grid, sites)
            found, made[whose] = learnt_of(tmp_path / whose)
            if whose == "normalised":
                np.testing.assert_allclose(found["norm.running_var"], variance, rtol=1e-6)
                np.testing.assert_allclose(found["norm.num_batches_tracked"], 200)
    for name in LEARNT:
        np.testing.assert_array_equal(made["normalised"][name], made["bare"][name])


def test_krum_chooses_by_what_is_learnt_and_takes_the_statistics_of_its_choice(tmp_path):
    apps = (
        learns(1.0, [2], 10),
        learns(1.1, [7], 5000),  # far from all others only by its batches
        learns(1.25, [3], 11),
        learns(1.5, [4], 12),
        learns(-500.0, [1e6], 13),
    )
    play(begin(tmp_path, spec(strategy="krum"), weights=NORMALISED), *post(*apps))
    found, _ = learnt_of(tmp_path)
    np.testing.assert_allclose(found["conv.weight"], 1.1, rtol=1e-6)
    np.testing.assert_array_equal(found["norm.running_var"], 7)
    assert found["norm.num_batches_tracked"] == 5000


def test_a_trimmed_mean_trims_the_statistics_too(tmp_path):
    run = begin(tmp_path, spec(strategy="trimmed-mean", strategy_options={"beta": 0.25}), weights=NORMALISED)
    play(run, *post(*(learns(1, [variance], 10) for variance in (1, 2, 3, 1e6))))
    np.testing.assert_allclose(learnt_of(tmp_path)[0]["norm.running_var"], 2.5)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi"])
def test_a_checkpoint_whose_momentum_is_of_the_statistics_too_goes_on_without_that(tmp_path, strategy):
    """Checkpoints from before the statistics were kept from the strategy hold it."""
    of_statistics = flatten({name: np.full_like(a, name not in LEARNT) for name, a in NORMALISED.items()}) > 0
    made = []
    for whose in ("now", "before"):
        grid, sites = post(learns(1, [5, 6], 10))
        play(begin(tmp_path / whose, spec(strategy=strategy), weights=NORMALISED), grid, sites)
        checkpoints = Checkpoints(tmp_path / whose / "run", {})
        saved = checkpoints.latest()
        assert saved.strategy
        if whose == "before":
            held = {name: np.where(of_statistics, np.float32(9), value) for name, value in saved.strategy.items()}
            checkpoints.save(replace(saved, strategy=held))
        play(begin(tmp_path / whose, spec(strategy=strategy), weights=NORMALISED), grid, sites)
        made.append(weights_of(tmp_path / whose))
    np.testing.assert_array_equal(*made)


def test_fedprox_tells_the_sites_its_mu(tmp_path):
    grid, sites = post(adds(1))
    play(begin(tmp_path, spec(strategy="fedprox", strategy_options={"proximal_mu": 0.25})), grid, sites)
    assert read_order(grid.sites[1].seen[0])[0].proximal_mu == 0.25


def test_krum_takes_the_update_that_is_nearest_to_the_others(tmp_path):
    run = begin(tmp_path, spec(strategy="krum"))
    play(run, *post(adds(1.0), adds(1.1), adds(1.2), adds(-500.0)))
    assert weights_of(tmp_path).max() == pytest.approx(1.1, abs=0.11)


def test_a_trimmed_mean_leaves_out_the_extremes(tmp_path):
    run = begin(tmp_path, spec(strategy="trimmed-mean", strategy_options={"beta": 0.25}))
    play(run, *post(adds(1), adds(2), adds(3), adds(1e6)))
    np.testing.assert_allclose(weights_of(tmp_path), 2.5)


def test_an_option_out_of_range_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"trimmed-mean refuses its options: `beta` must be"):
        begin(tmp_path, spec(strategy="trimmed-mean", strategy_options={"beta": 0.7}))


def test_a_diverged_site_is_named_and_the_run_goes_on_without_it(tmp_path):
    desk = NotingDesk()
    (report,) = play(begin(tmp_path, spec(), desk), *post(adds(1), adds(float("nan"))))
    assert weights_of(tmp_path).tolist() == [1.0] * 7
    assert [site.state for site in report.sites] == ["trained", "refused"]
    assert desk.lines == ["round 1: site-2 refused: Diverged: 7 of 7 weights are not finite numbers"]


def test_an_aggregate_that_overflows_fails_the_run_and_keeps_the_last_checkpoint(tmp_path):
    run = begin(tmp_path, spec(strategy="fedavgm", strategy_options={"server_learning_rate": 1e38}))
    with pytest.raises(Diverged, match=r"^the aggregate of round 1 diverged"):
        play(run, *post(adds(1e3)))
    assert Checkpoints(tmp_path / "run", {}).latest() is None


def test_a_round_below_quorum_is_tried_three_times_and_can_be_resumed(tmp_path):
    desk = NotingDesk()
    run = begin(tmp_path, spec(min_sites=2), desk)
    grid, sites = post(adds(1), fails(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ImageError: the site's incident 1"))
    with pytest.raises(TooFewSites, match=r"^round 1 failed 3 times: 1 sites trained where 2 are needed"):
        play(run, grid, sites)
    assert sum("is tried again" in line for line in desk.lines) == 2
    grid.sites[2].app = adds(3)
    play(begin(tmp_path, spec(min_sites=2), desk), grid, sites)
    assert weights_of(tmp_path).tolist() == [2.0] * 7


def test_a_run_that_is_asked_to_stop_does_not_try_a_failed_round_again(tmp_path):
    desk = NotingDesk(asked_to_stop=True)
    with pytest.raises(TooFewSites, match="failed 1 times"):
        play(begin(tmp_path, spec(min_sites=2), desk), *post(adds(1)))


def test_validation_belongs_to_the_round_whose_weights_it_measured(tmp_path):
    """The weights of round 1 are validated at the start of round 2, and round 1 is reported again."""
    grid, sites = post(
        adds(1, validation__sella__n=3, validation__sella__mean_mm=2.0, validation__sella__sdr_2=1.0),
        adds(1, validation__sella__n=1, validation__sella__mean_mm=6.0, validation__sella__sdr_2=0.0),
    )
    run = begin(tmp_path, spec())
    play(run, grid, sites)
    again, second = play(run, grid, sites)
    assert [again.number, second.number] == [1, 2]
    assert again.metrics["validation/mean_mm"] == 3.0
    assert again.metrics["validation/sella/sdr_2"] == 0.75
    later = [second.metrics, *(site.metrics for site in second.sites)]
    assert not any(name.startswith("validation") for metrics in later for name in metrics)
    assert again.sites[1].metrics["validation/sella/mean_mm"] == 6.0
    assert run.progress.best_round == 1


def test_the_counts_that_sites_send_to_be_added_are_in_no_report(tmp_path):
    told = {"validation__sella__n": 3, "validation__sella__mean_mm": 2.0, "validation__counts__confusion__0__1": 5}
    grid, sites = post(adds(1, **told))
    run = begin(tmp_path, spec())
    play(run, grid, sites)
    for report in play(run, grid, sites):
        assert not [name for site in report.sites for name in site.metrics if "counts" in name]
    assert read_report(run.progress.report) == report


def test_the_last_weights_are_validated_by_a_message_of_its_own(tmp_path):
    grid, sites = post(adds(1, validation__sella__n=3, validation__sella__mean_mm=2.0))
    run = begin(tmp_path, spec(rounds=1, evaluate_every=0))
    play(run, grid, sites)
    assert run.finished == "all 1 rounds are done"
    (report,) = run.evaluate(grid, sites)
    assert (report.number, report.metrics["validation/mean_mm"]) == (1, 2.0)
    assert list(run.evaluate(grid, sites)) == []
    assert grid.sites[1].seen[-1].metadata.message_type == "evaluate.dqn"


def test_a_run_stops_early_when_validation_no_longer_improves(tmp_path):
    errors = iter([4.0, 3.0, 3.5, 3.2])

    def app(message):
        order, _ = read_order(message)
        value = next(errors) if order.evaluate else 0.0
        return adds(1, validation__sella__n=1, validation__sella__mean_mm=value)(message)

    grid, sites = post(app)
    run = begin(tmp_path, spec(rounds=20, patience=2))
    while not run.finished:
        play(run, grid, sites)
    assert run.progress.round == 5
    assert run.finished == (
        "stopped early after round 5: 2 validations without a better one than that of round 2 (3 mm)"
    )
    assert 2 in Checkpoints(tmp_path / "run", {}).rounds(), "the best checkpoint is kept"
    errors = iter([3.4, 3.0])  # of the last round, and of the best again
    list(run.evaluate(grid, sites))
    assert run.give_best(grid, sites)
    order, weights = read_order(grid.sites[1].seen[-1])
    assert (order.number, weights.tolist()) == (2, [2.0] * 7), "the sites are left with the best round's weights"
    assert grid.sites[1].seen[-1].metadata.message_type == "evaluate.dqn"


def test_sites_are_sent_nothing_more_when_the_last_round_is_the_best(tmp_path):
    grid, sites = post(adds(1, validation__sella__n=3, validation__sella__mean_mm=2.0))
    run = begin(tmp_path, spec(rounds=1))
    play(run, grid, sites)
    assert not run.give_best(grid, sites), "nothing was validated"
    list(run.evaluate(grid, sites))
    seen = len(grid.sites[1].seen)
    assert not run.give_best(grid, sites)
    assert len(grid.sites[1].seen) == seen


def test_of_a_classifier_the_round_with_the_largest_balanced_accuracy_is_the_best(tmp_path):
    right = iter([2, 4, 3, 3])  # of four images

    def app(message):
        order, _ = read_order(message)
        sure = np.arange(4) < (next(right) if order.evaluate else 0)
        labels = np.array([0, 1, 0, 1])
        answers = np.where((labels == 1) == sure, 0.75, 0.25)
        counts = count(np.stack([1 - answers, answers], 1), labels)
        return adds(1, **figures(counts, ("ill", "well"), least=4))(message)

    grid, sites = post(app)
    classifier = ApgaConfig(classes=("ill", "well"))
    run = begin(tmp_path, spec(algorithm="apga", rounds=20, patience=2), config=classifier)
    while not run.finished:
        reports = play(run, grid, sites)
    assert (run.progress.round, run.progress.best_round, run.progress.best_value) == (5, 2, 1.0)
    assert reports[0].metrics["validation/balanced_accuracy"] == 0.75


def test_the_report_of_a_round_survives_a_crash_between_checkpoint_and_report(tmp_path):
    (report,) = play(begin(tmp_path, spec()), *post(adds(1, loss=0.5)))
    assert begin(tmp_path, spec()).reported == report


def test_a_checkpoint_of_another_architecture_is_refused_in_one_sentence(tmp_path):
    play(begin(tmp_path, spec()), *post(adds(1)))
    wider = {**ZERO, "b": np.zeros(4, np.float32)}
    with pytest.raises(TrainingError, match=r"^the checkpoint of round 1 has the array b of \(3,\) where b of \(4,\)"):
        begin(tmp_path, spec(), weights=wider)
    deeper = {**ZERO, "c": np.zeros(1, np.float32)}
    with pytest.raises(TrainingError, match="has 2 arrays where 3 were expected"):
        begin(tmp_path, spec(), weights=deeper)


SKETCHED = DqnConfig(replay="sketched", sketch_depth=3, sketch_width=64)


def test_the_first_round_tallies_cells_and_later_ones_keys_under_the_fitted_coder(tmp_path):
    desk = NotingDesk()
    run = begin(tmp_path, spec(), desk, SKETCHED)
    grid, sites = post(adds(1), adds(1))
    for _ in range(3):
        play(run, grid, sites)
    stages = [decode_plan(plan) for plan in desk.published]
    assert [plan.window for plan in stages] == [1, 2, 3]
    assert isinstance(stages[0].stage, ReplayRangesPlan)
    assert isinstance(stages[1].stage, ReplayPlan)
    assert desk.merged_from == [["site-1", "site-2"]] * 3
    orders = [read_order(message)[0] for message in grid.sites[1].seen]
    assert [bool(order.coder_plan) for order in orders] == [False, True, True]
    assert [bool(order.counts) for order in orders] == [False, False, True]
    assert [order.plan for order in orders] == desk.published


def test_merged_counts_add_up_over_rounds_and_over_a_restart(tmp_path):
    desk = NotingDesk()
    grid, sites = post(adds(1))
    for _ in range(4):
        run = begin(tmp_path, spec(rounds=4), desk, SKETCHED)
        play(run, grid, sites)
    assert int(run._plans.counts().tables["transitions"][0]) == 30


def test_a_merge_that_fails_costs_the_counts_of_its_round_only(tmp_path):
    desk = NotingDesk(merge_fails=True)
    run = begin(tmp_path, spec(), desk, SKETCHED)
    grid, sites = post(adds(1))
    play(run, grid, sites)
    assert desk.lines == ["the replay tallies of this round are not counted: the plan was closed"]
    desk.merge_fails = False
    play(run, grid, sites)
    assert [type(decode_plan(plan).stage) for plan in desk.published] == [ReplayRangesPlan, ReplayRangesPlan]


def test_a_run_with_uniform_replay_asks_for_no_tally(tmp_path):
    desk = NotingDesk()
    play(begin(tmp_path, spec(), desk), *post(adds(1)))
    assert desk.published == []


@settings(deadline=None)  # writes and syncs files
@given(damage=st.sampled_from(["state.json", "weights.safetensors", "strategy.safetensors", "replay.tally"]))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path_factory, damage):
    tmp_path = tmp_path_factory.mktemp("run")
    run = begin(tmp_path, spec())
    grid, sites = post(adds(1))
    for _ in range(2):
        play(run, grid, sites)
    (tmp_path / "run" / "round-000002" / damage).unlink()
    assert begin(tmp_path, spec()).progress.round == 1


def test_the_only_checkpoint_being_damaged_is_one_clear_error(tmp_path):
    play(begin(tmp_path, spec()), *post(adds(1)))
    (tmp_path / "run" / "round-000001" / "weights.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CairnError, match=r"^the checkpoint of round 1 cannot be read"):
        begin(tmp_path, spec())


def test_an_unfinished_checkpoint_is_swept_away(tmp_path):
    part = tmp_path / "run" / ".round-000001.part"
    part.mkdir(parents=True)
    assert begin(tmp_path, spec()).progress.round == 0
    assert not part.exists()


def test_a_site_that_answers_better_the_second_time_is_counted_once(tmp_path):
    grid, sites = post(in_turn(fails(ErrorCode.CLIENT_APP_CRASHED, ""), adds(2)), adds(2))
    play(begin(tmp_path, spec(min_sites=2)), grid, sites)
    assert weights_of(tmp_path).tolist() == [2.0] * 7
