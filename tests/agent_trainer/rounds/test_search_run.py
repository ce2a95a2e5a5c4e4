"""A search whose jobs run at sites: who gets which job, what is given out again, and how it goes on."""

import json
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.common.constant import ErrorCode

from agent_trainer.algorithms import algorithm
from agent_trainer.classification import count, figures
from agent_trainer.rounds.layout import flatten
from agent_trainer.rounds.reports import RoundReport
from agent_trainer.rounds.search_run import JOURNAL, SearchRun
from agent_trainer.rounds.wire import EXAMPLES, Order, answer, read_order
from agent_trainer.search.as_run import as_run, search_of
from agent_trainer.search.journal import read_journal
from agent_trainer.search.leaderboard import best
from agent_trainer.search.spec import SearchSpec
from cairn.errors import ConfigError, TooFewSites, TrainingError, Unreachable
from cairn.run import RunSpec, read_run, run_message
from tests.agent_trainer.rounds.post import MovingClock, Post, Site, fails, in_turn, silent

RATE = {"min": 1e-4, "max": 1e-2, "scale": "log", "routine": 1e-4}
APGA = {
    "classes": ["dark", "light"],
    "side": 16,
    "channels": 1,
    "classifier": "small",
    "masker": "small",
    "small_channels": [2],
}
GOAL = "validation/balanced_accuracy"
DIVERGED = fails(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "Diverged: the loss is not finite")
REFUSES = fails(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "PolicyError: this site does not take part in the run rates")
BROKEN = fails(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ImageError: the site's incident 1234")


def asked(**changes) -> SearchSpec:
    values = {
        "algorithm": "apga",
        "space": {"parameters": {"learning_rate": RATE}, "settings": APGA},
        "method": "random",
        "jobs": 6,
        "in_flight": 3,
        "updates": 10,
        "deadline": 100,
    }
    return SearchSpec.model_validate(values | changes)


def rate_of(order: Order) -> float:
    return float(json.loads(order.settings)["learning_rate"])


def score(order: Order) -> float:
    """A validation that only the learning rate decides; best at 1e-3."""
    return 1 - abs(math.log10(rate_of(order)) + 3) / 2


def trains(message):
    """A site that does whole jobs."""
    order, _ = read_order(message)
    assert message.metadata.message_type == "train.apga"
    assert (order.updates, order.validations, order.leg) == (10, 1, 0)
    return answer({EXAMPLES: 4.0, "loss": 0.5, "updates": 10.0, GOAL: score(order), "validation/n": 8.0}, None, message)


class Desk:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stop = False

    def log(self, text: str) -> None:
        self.lines.append(text)

    def stopping(self) -> bool:
        return self.stop


class Federation:
    """Sites with apps of their own, and a middle that plays a search at them."""

    def __init__(self, folder: Path, *apps, **changes) -> None:
        self.clock, self.desk, self.folder = MovingClock(), Desk(), folder
        self.nodes = {number: Site(app, after_s=5.0) for number, app in enumerate(apps, 1)}
        self.post = Post(self.nodes, self.clock)
        self.names = {number: f"site-{number}" for number in self.nodes}
        self.reports: list[RoundReport] = []
        self.per_job = changes.pop("per_job", 1)
        self.spec = asked(**changes)

    def run(self) -> RunSpec:
        return read_run(run_message(as_run(self.spec, "rates", self.per_job)))

    def play(self, reported: int | None = None, given=None):
        known = len(self.reports) if reported is None else reported
        search = SearchRun(self.run(), self.folder, self.desk, known, given, self.clock)
        return search.play(self.post, lambda: self.names, self.reports.append)

    def records(self):
        return read_journal(self.folder / JOURNAL)[1]

    def orders(self, node: int) -> list[Order]:
        return [read_order(message)[0] for message in self.nodes[node].seen]


def test_every_site_has_a_job_and_the_search_ends_with_the_best(tmp_path):
    federation = Federation(tmp_path, trains, trains, trains)
    state, sentence = federation.play()
    assert state == "done"
    found = best(federation.records())
    assert sentence == f"all 6 jobs have ended; the best is job {found.job} with balanced accuracy {found.reward:.3g}"
    assert [report.number for report in federation.reports] == [1, 2, 3, 4, 5, 6]
    assert sorted(report.metrics["job"] for report in federation.reports) == [0, 1, 2, 3, 4, 5]
    first = federation.reports[0]
    assert first.metrics["strategy/learning_rate"] == pytest.approx(1e-4), "the routine strategy"
    assert first.metrics[GOAL] == pytest.approx(0.5)
    assert [(site.site, site.state, site.metrics["loss"]) for site in first.sites] == [("site-1", "trained", 0.5)]
    assert first.sites[0].bytes > 0
    assert [len(federation.orders(node)) for node in (1, 2, 3)] == [2, 2, 2]
    assert federation.clock.now < 13, "three at a time, of 5 s each"
    assert "job 0 at site-1: balanced accuracy 0.5 (learning_rate 0.0001)" in federation.desk.lines


def test_a_job_has_weights_and_draws_of_its_own(tmp_path):
    federation = Federation(tmp_path, trains)
    federation.play()
    orders = federation.orders(1)
    assert len({order.seed for order in orders}) == 6
    weights = [read_order(message)[1] for message in federation.nodes[1].seen]
    assert not np.array_equal(weights[0], weights[1])


def test_jobs_begin_with_the_weights_that_a_search_was_given_wherever_they_fit(tmp_path):
    federation = Federation(tmp_path, trains, jobs=1)
    chosen = algorithm("apga")
    first = chosen.first_weights(chosen.read_config(json.dumps(APGA)), 99)
    name = next(iter(first))
    federation.play(given={**first, name: np.zeros(7, np.float32)})
    found = read_order(federation.nodes[1].seen[0])[1]
    np.testing.assert_array_equal(found[first[name].size :], flatten(first)[first[name].size :])


def test_a_site_that_goes_away_costs_nothing_but_time_and_its_job_is_given_to_another(tmp_path):
    federation = Federation(tmp_path, trains, silent, jobs=4, in_flight=2)
    federation.clock.at(10, lambda: setattr(federation.nodes[2], "online", False))
    assert federation.play()[0] == "done"
    assert [record.state for record in federation.records()] == ["finished"] * 4
    assert "job 1 is given out again: site-2: its SuperNode went away in mid-job" in federation.desk.lines
    assert federation.clock.now < 40
    assert len(federation.orders(1)) == 4


def test_a_site_that_was_restarted_has_lost_its_job(tmp_path):
    federation = Federation(tmp_path, in_turn(silent, trains), jobs=2)
    federation.clock.at(10, lambda: setattr(federation.nodes[1], "since", "2026-01-02"))
    assert federation.play()[0] == "done"
    assert [record.attempts for record in federation.records()] == [2, 1]


def test_a_job_that_is_never_answered_is_given_to_another_site_at_its_deadline(tmp_path):
    federation = Federation(tmp_path, silent, trains, jobs=1)
    assert federation.play()[0] == "done"
    (record,) = federation.records()
    assert (record.state, record.attempts) == ("finished", 2)
    assert record.why == "site-1: it did not answer within the job's deadline of 100 s"
    assert 100 <= federation.clock.now < 110
    assert [site.site for site in federation.reports[0].sites] == ["site-2"]


def test_a_job_that_nobody_answers_is_lost_and_the_search_goes_on(tmp_path):
    # Of six messages the first three are of job 0.
    federation = Federation(tmp_path, in_turn(silent, silent, silent, trains), jobs=3, in_flight=1)
    assert federation.play()[0] == "done"
    assert [record.state for record in federation.records()] == ["lost", "finished", "finished"]
    lost = federation.reports[0]
    assert (lost.metrics["job"], GOAL in lost.metrics) == (0, False)
    assert [(site.state, site.site) for site in lost.sites] == [("late", "site-1")]


def test_a_site_that_refuses_the_run_is_asked_once_and_no_attempt_is_spent(tmp_path):
    federation = Federation(tmp_path, REFUSES, trains, jobs=4)
    assert federation.play()[0] == "done"
    assert [record.attempts for record in federation.records()] == [1] * 4
    assert len(federation.nodes[1].seen) == 1
    line = "site-1 gets no more jobs: site-1: PolicyError: this site does not take part in the run rates"
    assert federation.desk.lines.count(line) == 1


def test_a_site_that_cannot_read_its_images_gets_three_jobs_and_no_more(tmp_path):
    federation = Federation(tmp_path, BROKEN, trains, jobs=8, in_flight=2)
    assert federation.play()[0] == "done"
    assert [record.state for record in federation.records()] == ["finished"] * 8
    assert len(federation.nodes[1].seen) == 3
    assert max(record.attempts for record in federation.records()) == 2


def test_where_no_site_can_do_a_job_the_search_fails_with_their_reasons_and_can_be_resumed(tmp_path):
    federation = Federation(tmp_path, REFUSES, BROKEN, jobs=2, attempts=9)
    with pytest.raises(TooFewSites, match=r"^a job needs 1 sites, and 0 of 2 can still do one \(.*PolicyError.*Image"):
        federation.play()
    federation.nodes[2].app = trains
    assert federation.play()[0] == "done"
    assert [record.state for record in federation.records()] == ["finished"] * 2


def test_without_any_site_a_job_waits_until_one_comes(tmp_path):
    federation = Federation(tmp_path, trains, jobs=2)
    federation.nodes[1].online = False
    federation.clock.at(60, lambda: setattr(federation.nodes[1], "online", True))
    assert federation.play()[0] == "done"
    assert 60 < federation.clock.now < 80


def test_where_no_site_comes_the_search_fails_after_a_jobs_deadline(tmp_path):
    federation = Federation(tmp_path, trains)
    federation.nodes[1].online = False
    with pytest.raises(TooFewSites, match=r"^a job needs 1 sites, and for 100 s 0 could do one; resume the search"):
        federation.play()


def test_sites_that_come_later_get_jobs_and_no_job_is_proposed_before_there_is_a_site_for_it(tmp_path):
    federation = Federation(tmp_path, trains, trains, trains, jobs=9)
    for node in (2, 3):
        federation.nodes[node].online = False
    federation.clock.at(12, lambda: setattr(federation.nodes[2], "online", True))
    seen = []
    federation.clock.at(9, lambda: seen.append(len(federation.records())))
    assert federation.play()[0] == "done"
    assert seen == [2], "one had ended and one was under way"
    assert len(federation.nodes[2].seen) >= 3
    assert not federation.nodes[3].seen


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (DIVERGED, "site-1: Diverged: the loss is not finite"),
        (
            lambda message: answer({EXAMPLES: 4.0, GOAL: math.nan, "validation/n": 8.0}, None, message),
            "the balanced accuracy of its validation is no finite number",
        ),
    ],
    ids=["diverged", "NaN"],
)
def test_a_strategy_that_cannot_be_trained_fails_at_once_and_the_search_goes_on(tmp_path, app, why):
    federation = Federation(tmp_path, in_turn(app, trains), jobs=3, in_flight=1)
    assert federation.play()[0] == "done"
    first, *others = federation.records()
    assert (first.state, first.attempts, first.why) == ("failed", 1, why)
    assert [record.state for record in others] == ["finished"] * 2
    assert federation.desk.lines[0] == f"job 0 failed: {why} (learning_rate 0.0001)"


def test_where_every_job_fails_the_search_says_so(tmp_path):
    with pytest.raises(TrainingError, match="none of 10 jobs gave a reward; the last: site-1: Diverged"):
        Federation(tmp_path, DIVERGED, jobs=12).play()


def test_a_middle_that_was_killed_goes_on_and_tells_what_had_not_been_told(tmp_path):
    whole = Federation(tmp_path / "whole", trains)
    whole.play()
    federation = Federation(tmp_path / "killed", trains)
    calls = iter(range(100))

    def dies(report):
        if next(calls) == 2:
            raise KeyboardInterrupt  # behind the journal's line and before the report's
        federation.reports.append(report)

    search = SearchRun(federation.run(), federation.folder, federation.desk, 0, None, federation.clock)
    with pytest.raises(KeyboardInterrupt):
        search.play(federation.post, lambda: federation.names, dies)
    assert len(federation.reports) == 2
    assert federation.play()[0] == "done"
    assert [report.number for report in federation.reports] == [1, 2, 3, 4, 5, 6]
    assert federation.reports[2].metrics == whole.reports[2].metrics
    assert [r.reward for r in federation.records()] == [r.reward for r in whole.records()]
    assert "the search goes on behind 3 jobs that have ended" in federation.desk.lines


def test_superlink_that_was_away_costs_the_jobs_under_way_and_nothing_that_had_ended(tmp_path):
    federation = Federation(tmp_path, trains)

    def away():
        raise Unreachable("SuperLink did not answer")

    federation.clock.at(12, away)
    with pytest.raises(Unreachable):
        federation.play()
    done = len(federation.reports)
    assert 0 < done < 6
    assert federation.play()[0] == "done"
    assert len(federation.orders(1)) == 7, "one of them twice"


def test_a_search_that_is_stopped_waits_for_what_sites_work_on_and_begins_nothing_new(tmp_path):
    federation = Federation(tmp_path, trains, trains, jobs=20)
    federation.clock.at(7, lambda: setattr(federation.desk, "stop", True))
    assert federation.play() == ("stopped", "stopped by an operator after 4 jobs")
    assert [record.state for record in federation.records()] == ["finished"] * 4
    federation.desk.stop = False
    assert federation.play()[0] == "done"
    assert len(federation.records()) == 20


def test_a_stopped_search_without_any_site_ends_at_once_and_its_job_stays_open(tmp_path):
    federation = Federation(tmp_path, trains)
    federation.nodes[1].online = False
    federation.clock.at(5, lambda: setattr(federation.desk, "stop", True))
    assert federation.play() == ("stopped", "stopped by an operator after 0 jobs")
    assert [record.state for record in federation.records()] == ["open"]


def shares(adds: float, examples: float, wrong: list[int]):
    """A site of a job at several: adds to the weights that came; of its 16 images it says so many wrong in each leg."""

    def app(message):
        order, weights = read_order(message)
        if message.metadata.message_type == "train.apga":
            assert order.validations == 0
            return answer({EXAMPLES: examples, "updates": float(order.updates)}, weights + np.float32(adds), message)
        app.measured.append(float(weights[0]))
        labels = np.arange(16) % 2
        said = np.where(np.arange(16) < wrong[order.leg], 1 - labels, labels)
        return answer(figures(count(np.eye(2, dtype=np.float32)[said], labels), ("dark", "light")), None, message)

    app.measured = []
    return app


def test_a_job_at_several_sites_joins_their_weights_by_examples_and_validates_at_the_same_sites(tmp_path):
    north, south = shares(1, 3, [8, 0]), shares(5, 1, [8, 8])
    federation = Federation(tmp_path, north, south, per_job=2, jobs=1, updates=11, validations=2)
    assert federation.play()[0] == "done"
    began = float(read_order(federation.nodes[1].seen[0])[1][0])
    assert north.measured == south.measured == pytest.approx([began + 2, began + 4])
    (record,) = federation.records()
    assert record.reward == pytest.approx(0.75), "8 of 32 are wrong in the better leg"
    orders = federation.orders(2)
    assert [(order.leg, order.updates) for order in orders] == [(0, 5), (0, 5), (1, 6), (1, 6)]
    (report,) = federation.reports
    assert [(site.site, site.metrics[GOAL]) for site in report.sites] == [("site-1", 1.0), ("site-2", 0.5)]
    assert (report.metrics["updates"], report.metrics["validation/n"]) == (12, 32)
    assert not [name for name in report.metrics if "counts/" in name]


def test_weights_of_one_site_that_are_not_finite_fail_the_strategy(tmp_path):
    north, south = shares(1, 1, [0]), shares(math.inf, 1, [0])
    federation = Federation(tmp_path, north, south, per_job=2, jobs=1)
    with pytest.raises(TrainingError, match="no job of this search has finished"):
        federation.play()
    (record,) = federation.records()
    assert record.state == "failed"
    assert record.why.startswith("site-2: Diverged: ")


def test_a_search_travels_as_a_run_and_comes_out_as_it_went_in():
    spec = asked(validations=2, failed_as=0.0, deadline=timedelta(minutes=3))
    run = as_run(spec, "rates", 2)
    assert (run.rounds, run.min_sites, run.round_deadline.total_seconds()) == (6, 2, 180)
    assert run.settings == APGA
    assert search_of(read_run(run_message(run))) == spec


def test_what_only_a_search_on_one_machine_can_have_is_refused_or_stays_behind(tmp_path):
    with pytest.raises(ConfigError, match="share_weights = true is for jobs on one machine"):
        as_run(asked(share_weights=True), "rates", 1)
    assert "sources" not in (as_run(asked(sources=tmp_path / "data.toml"), "rates", 1).search or {})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "best"}, "the search: method: Input should be"),
        (
            {"space": {"parameters": {"learning_rate": {"min": -1.0, "max": 1.0, "routine": 0.5}}}},
            "the parameter learning_rate cannot",
        ),
        ({"space": {"parameters": {"learnign_rate": RATE}}}, "known are"),
        ({"share_weights": True}, "which jobs at sites cannot have"),
        ({"space": 3}, "space is no table"),
    ],
)
def test_a_search_that_cannot_be_ends_before_any_job(tmp_path, change, sentence):
    run = as_run(asked(), "rates", 1)
    changed = run.model_copy(update={"search": {**(run.search or {}), **change}})
    with pytest.raises(ConfigError, match=sentence):
        SearchRun(changed, tmp_path, Desk())
    assert not (tmp_path / JOURNAL).exists()
