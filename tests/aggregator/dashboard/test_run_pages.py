"""The pages of training runs: what they say, and the curves behind the plots."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest

from aggregator.dashboard import curves, make_app, runs, words
from aggregator.database import reading, writing
from aggregator.tables import Run, RunRound


def figures(operator: httpx.Client, name: str = "sella-run") -> dict[str, Any]:
    answer = operator.get(f"/runs/{name}/curves.json?v=1")
    assert answer.headers["content-type"] == "application/json"
    return {figure["id"]: figure for figure in answer.json()}


def test_every_run_is_listed_newest_first_with_how_far_it_is(operator: httpx.Client) -> None:
    page = operator.get("/runs").text
    links = [page.index(f'href="/runs/{name}"') for name in ("sella-run", "next-run", "knee-pilot")]
    assert links == sorted(links)
    assert "round 25 of 30" in page
    assert "error 1.24 mm" in page
    assert "Diverged: every site&#39;s update holds NaN" in page


def test_the_error_of_a_round_that_is_not_validated_yet_is_that_of_the_one_before(
    filled: Any, operator: httpx.Client
) -> None:
    with writing(filled.engine) as session:
        session.get_one(Run, "sella-run").round = 26
        session.add(
            RunRound(run="sella-run", round=26, ended_at=filled.clock(), seconds=1, metrics={"loss": 9}, sites=[])
        )
    for path in ("/runs", "/runs/sella-run"):
        page = operator.get(path).text
        assert "1.24" in page
        assert "9" in page


def test_a_run_shows_its_state_its_sites_and_its_log(operator: httpx.Client) -> None:
    page = operator.get("/runs/sella-run").text
    assert "running" in page
    assert "fedprox" in page
    assert "about 8\u202fmin to go" in page
    assert "Diverged: the loss of update 17 is not a number" in page, "why a site failed in the last round"
    assert page.count('class="bad"') == 1, "the round that failed, in the row of squares"
    assert "round 3: late" in page
    assert "24 trained" in page
    assert page.index("round 25 counts") < page.index("round 24 counts"), "the newest line is first"
    assert "315\u202fMB" in page, "3 sites, 25 rounds, 4.2 MB each"


def test_the_curves_hold_each_site_and_all_sites_round_by_round(operator: httpx.Client) -> None:
    found = figures(operator)
    assert list(found) == [
        "goal", "tasks", "loss", "reward", "replay-unique_share", "replay-effective", "replay-fill", "seconds"
    ]  # fmt: skip
    loss = {trace["name"]: trace for trace in found["loss"]["data"]}
    assert list(loss) == ["bern-insel", "goettingen", "leiden-lumc", "all sites"]
    assert loss["all sites"]["x"] == list(range(1, 26))
    assert 3 not in loss["leiden-lumc"]["x"], "a round in which a site was late is a gap"
    assert loss["bern-insel"]["y"][0] == 2.0
    assert "color" not in loss["all sites"]["line"]
    error = {trace["name"]: trace for trace in found["goal"]["data"]}
    assert error["bern-insel"]["y"][0] == 6.0, "(10·9 + 30·5) / 40"
    assert [trace["name"] for trace in found["tasks"]["data"]] == ["nasion", "sella"]
    assert found["replay-unique_share"]["layout"]["yaxis"]["tickformat"] == ".0%"
    assert found["seconds"]["data"][-1]["y"][0] == 104.5


def test_a_classifiers_run_shows_its_goal_its_measures_and_its_classes(
    filled: Any, samples: Any, operator: httpx.Client
) -> None:
    of_all = {"loss": 0.5, "validation/balanced_accuracy": 0.625, "validation/accuracy": 0.75, "validation/auc": 0.875}
    of_all |= {"validation/ece": 0.125, "validation/sensitivity/ill": 0.5, "validation/sensitivity/well": 0.8125}
    of_site = {**of_all, "validation/balanced_accuracy": 0.3125, "examples": 40.0}
    site = {"site": "trondheim", "state": "trained", "reason": "", "metrics": of_site, "bytes": 1}
    with writing(filled.engine) as session:
        run = samples.add_run(session, "chest", "done", 0)
        run.spec = {**run.spec, "algorithm": "apga", "settings": {"classes": ["ill", "well"]}}
        run.round = 1
        row = RunRound(run="chest", round=1, ended_at=filled.clock(), seconds=3.0, metrics=of_all, sites=[site])
        session.add(row)
    assert "balanced accuracy 0.625" in operator.get("/runs").text
    page = operator.get("/runs/chest").text
    for said in ("Balanced accuracy", "0.625", "0.312", "AUC", "0.875", "Calibration error", "Sensitivity", "0.812"):
        assert said in page
    assert " mm" not in page
    found = figures(operator, "chest")
    assert list(found) == [
        "goal",
        "sensitivity",
        "validation-accuracy",
        "validation-auc",
        "validation-ece",
        "loss",
    ]
    assert found["goal"]["title"] == "Balanced accuracy on validation images"
    assert [trace["name"] for trace in found["sensitivity"]["data"]] == ["ill", "well"]


def test_a_search_shows_the_reward_over_jobs_and_each_site_as_its_last_job_left_it(
    filled: Any, samples: Any, operator: httpx.Client
) -> None:
    with writing(filled.engine) as session:
        run = samples.add_run(session, "rates", "running", 0)
        searched = {"method": "ppo", "space": {"parameters": {"learning_rate": {"min": 1e-4, "max": 0.01}}}}
        run.spec = {**run.spec, "algorithm": "apga", "rounds": 40, "min_sites": 1, "search": searched}
        run.round = 3
        for number, (name, value) in enumerate((("leiden-lumc", 0.5), ("trondheim", 0.75), ("trondheim", 0.625)), 1):
            metrics = {"validation/balanced_accuracy": value}
            site = {"site": name, "state": "trained", "reason": "", "metrics": metrics, "bytes": 1}
            told = {**metrics, "job": 3.0 - number, "strategy/learning_rate": 0.001}
            row = RunRound(run="rates", round=number, ended_at=filled.clock(), seconds=3, metrics=told, sites=[site])
            session.add(row)
    assert "job 3 of 40" in operator.get("/runs").text
    page = operator.get("/runs/rates").text
    for said in ("search by ppo", "1 site a job", "Last job", "method: ppo"):
        assert said in page
    assert "absent" not in page, "a site without a part in the last job"
    goal = {trace["name"]: trace for trace in figures(operator, "rates")["goal"]["data"]}
    assert goal["all sites"]["y"] == [0.5, 0.75, 0.625]
    assert goal["leiden-lumc"]["x"] == [1]


def test_a_run_without_rounds_has_no_curves_and_says_that_it_waits(operator: httpx.Client) -> None:
    assert figures(operator, "next-run") == {}
    page = operator.get("/runs/next-run").text
    assert "waits for its turn" in page
    assert 'data-version=""' in page


@pytest.mark.parametrize("path", ["/runs/nowhere", "/runs/nowhere/curves.json", "/runs/..%2Fx"])
def test_a_run_that_is_not_there_is_not_found(operator: httpx.Client, path: str) -> None:
    assert operator.get(path).status_code == 404


def test_the_curves_have_another_version_when_a_round_comes_or_its_validation(filled: Any) -> None:
    def version() -> str:
        with reading(filled.engine) as session:
            return runs.version(runs.rounds(session, "sella-run"))

    versions = [version()]
    with writing(filled.engine) as session:
        row = session.get_one(RunRound, ("sella-run", 25))
        row.metrics = {**row.metrics, "validation/mean_mm": 0.5}
    versions.append(version())
    with writing(filled.engine) as session:
        session.add(RunRound(run="sella-run", round=26, ended_at=filled.clock(), seconds=1, metrics={}, sites=[]))
    versions.append(version())
    assert len(set(versions)) == 3


def test_a_long_run_is_drawn_with_so_many_points_and_its_last_round(filled: Any) -> None:
    with writing(filled.engine) as session:
        run = session.get_one(Run, "sella-run")
        for number in range(26, 1728):
            session.add(
                RunRound(
                    run=run.name, round=number, ended_at=filled.clock(), seconds=1, metrics={"loss": 1.0}, sites=[]
                )
            )
    with reading(filled.engine) as session:
        shown = [row.round for row in runs.rounds(session, "sella-run")]
    assert 300 < len(shown) <= runs.POINTS
    assert shown[-1] == 1727
    assert len({b - a for a, b in pairwise(shown)}) == 1


def test_one_site_is_drawn_once(filled: Any) -> None:
    site = {"site": "north", "state": "trained", "reason": "", "metrics": {"loss": 1.0}, "bytes": 1}
    row = RunRound(run="x", round=1, ended_at=filled.clock(), seconds=3.0, metrics={"loss": 1.0}, sites=[site])
    (loss,) = [figure for figure in curves.curves("dqn", [row]) if figure["id"] == "loss"]
    assert [trace["name"] for trace in loss["data"]] == ["north"]


def test_markup_in_the_name_of_a_task_is_no_markup_in_a_plot(filled: Any) -> None:
    metrics = {"validation/<a href='http://x'>click</a>/mean_mm": 1.0, "validation/sella/mean_mm": 2.0}
    row = RunRound(run="x", round=1, ended_at=filled.clock(), seconds=3.0, metrics=metrics, sites=[])
    (tasks,) = [figure for figure in curves.curves("dqn", [row]) if figure["id"] == "tasks"]
    assert [trace["name"] for trace in tasks["data"]] == ["‹a href='http://x'>click‹/a>", "sella"]


def test_the_overview_shows_runs_and_what_a_person_should_look_at(operator: httpx.Client) -> None:
    page = operator.get("/").text
    assert "Runs under way" in page
    assert '<a href="/runs/knee-pilot">knee-pilot</a> <span>Diverged: every site&#39;s update holds NaN' in page


def test_a_process_of_training_that_is_away_is_said_where_a_run_waits_for_it(filled: Any, visit: Any) -> None:
    up = {"superlink": True, "trainer": False}
    app = make_app(filled.engine, filled.store, "", filled.registry, filled.clock, training=lambda: up)
    from aggregator.members.tokens import new_dashboard_token

    visitor = visit(app)
    token = new_dashboard_token(filled.engine, "anna-lindqvist", filled.clock())
    assert visitor.post("/login", data={"token": token}).status_code == 303
    assert "the trainer does not answer" in visitor.get("/").text
    page = visitor.get("/runs").text
    assert "superlink answers" in page
    assert "trainer does not answer" in page


def test_an_aggregator_without_training_says_so(operator: httpx.Client) -> None:
    assert "does not train" in operator.get("/runs").text


def test_merges_and_work_of_a_run_lead_to_its_page(filled: Any, operator: httpx.Client, samples: Any) -> None:
    from aggregator.tables import Member, Merge, Plan

    with writing(filled.engine) as session:
        plan = Plan(fingerprint="e" * 64, study="sella-run", stage="replay", window=7, published=b"", state="done",
                    deadline=samples.NOW, opened_at=samples.NOW, sites_expected=[])  # fmt: skip
        session.add(plan)
        session.flush()
        session.add(Merge(plan=plan.fingerprint, digest="d" * 64, uploads=[], at=samples.NOW))
        session.get_one(Member, "bern-insel").working_fingerprint = plan.fingerprint
    assert '<a href="/runs/sella-run">sella-run</a> · replay · round 7' in operator.get("/audit").text
    assert '<a href="/runs/sella-run">sella-run</a> · replay' in operator.get("/sites").text


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=7), "7\u202fs"),
        (timedelta(minutes=59), "59\u202fmin"),
        (timedelta(hours=5, minutes=3), "5\u202fh 3\u202fmin"),
        (timedelta(days=12), "12\u202fdays"),
    ],
)
def test_a_span_of_time_is_written_coarsely(span: timedelta, text: str) -> None:
    assert words.span(span) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "–"), (0.0, "0"), (1.23456, "1.23"), (0.000123, "0.000123"), (123456.7, "123457")]
)
def test_a_measured_number_has_three_digits_that_count(number: float | None, text: str) -> None:
    assert words.figure(number) == text
