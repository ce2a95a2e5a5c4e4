"""A search whose jobs train at the sites: one is killed in mid-job, one takes no part, and the aggregator is killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import tomli_w

from cairn.errors import CairnError
from deploy.federation import federation
from tests.invoking import invoke
from tests.system.observing import Observed
from tests.system.test_classifiers import SETTINGS, folders, tables
from tests.system.training import (
    audit_lines,
    cairn,
    ended,
    join,
    log_of,
    rounds_of,
    run_of,
    status,
    wait_in,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAME: Final = "rates"
JOBS: Final = 6
GOAL: Final = "validation/balanced_accuracy"
CLASSES: Final = ["dark", "light"]
SEARCH: Final[dict[str, Any]] = {
    "algorithm": "apga",
    "method": "ppo",
    "jobs": JOBS,
    "in_flight": 4,
    "updates": 60,
    "validations": 2,
    "deadline": 90,
    "space": {
        "parameters": {
            "learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log", "routine": 1e-4},
            "batch": {"min": 4.0, "max": 8.0, "whole": True},
        },
        "settings": {
            **{name: value for name, value in SETTINGS["apga"].items() if name not in {"learning_rate", "batch"}},
            "classes": CLASSES,
        },
    },
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("search")

    def section(name: str, seed: int, *runs: str) -> dict[str, Any]:
        images = folders(folder / name, seed, *CLASSES)
        return {"runs": list(runs), "threads": 1, "device": "cpu", "labelled": tables(images)}

    north = section("north", 1, "*")
    with federation(folder / "all", [], training=north, command=invoke) as running:
        join(running, "north", north)
        join(running, "south", section("south", 2, "*"))
        join(running, "west", section("west", 3, "others-*"))
        yield Observed(running, [])


@pytest.fixture(scope="module")
def search(seen: Observed) -> dict[str, Any]:
    """A search of six jobs, as its researcher sees it in the end."""
    config = seen.running.folder / "search.toml"
    config.write_text(tomli_w.dumps(SEARCH))
    said = cairn(seen, "search", "start", config, "--name", NAME, "--no-watch")
    assert f"cairn runs show {NAME} --watch" in said

    def works(site: str) -> bool:
        now = status(seen, site).training
        return now.run == NAME and now.busy

    wait_in(seen, NAME, "a job at south", lambda: works("south"))
    seen.running.sites.pop("south").kill()
    wait_in(seen, NAME, "two jobs more", lambda: run_of(seen, NAME).round >= 2)
    seen.running.aggregator.kill()
    seen.running.start_aggregator()
    ended(seen, NAME)
    told: dict[str, Any] = json.loads(cairn(seen, "runs", "show", NAME, "--json"))
    return told


def test_the_search_goes_to_its_end_and_each_job_is_told_once(seen: Observed, search: dict[str, Any]) -> None:
    assert search["summary"]["state"] == "done", search["summary"]["message"]
    assert search["summary"]["message"].startswith(f"all {JOBS} jobs have ended; the best is job ")
    rounds = search["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, JOBS + 1))
    assert sorted(one["metrics"]["job"] for one in rounds) == list(range(JOBS))
    for one in rounds:
        assert 0 <= one["metrics"][GOAL] <= 1
        assert one["metrics"]["updates"] in {30, 60}
        assert 1e-4 <= one["metrics"]["strategy/learning_rate"] <= 1e-2
        assert {site["site"] for site in one["sites"]} <= {"north", "south"}
    assert search["summary"]["best"] == max(one["metrics"][GOAL] for one in rounds)
    assert search["spec"]["search"]["method"] == "ppo"


def test_the_job_of_the_killed_site_was_given_to_another_and_the_log_says_so(
    seen: Observed, search: dict[str, Any]
) -> None:
    lines = log_of(seen, NAME)
    assert any(" is given out again: south: " in line for line in lines), lines
    assert any(line.startswith("the search goes on behind ") for line in lines), lines
    refusal = f"west gets no more jobs: west: PolicyError: this site does not take part in the run {NAME}"
    assert refusal in lines
    assert not any("west" in sites for sites in rounds_of(seen, NAME).values())


def test_no_weights_leave_a_site_that_does_jobs_alone_and_nothing_of_them_stays(
    seen: Observed, search: dict[str, Any]
) -> None:
    assert [line for line in audit_lines(seen, "north") if line["event"] == "update" and line["study"] == NAME] == []
    runs = seen.running.site_folder("north") / "state" / "training" / "site" / "runs"
    assert not list((runs / NAME).glob("**/*.safetensors"))


def test_the_best_strategy_is_one_that_a_run_takes(seen: Observed, search: dict[str, Any], tmp_path: Path) -> None:
    shown = json.loads(cairn(seen, "search", "show", NAME, "--json"))
    assert [row["reward"] for row in shown["leaderboard"]] == sorted(
        (one["metrics"][GOAL] for one in search["rounds"]), reverse=True
    )
    best = tmp_path / "best.toml"
    cairn(seen, "search", "best", NAME, "--out", best)
    arguments = ("best", "--config", best, "--rounds", 1, "--min-sites", 1, "--set", "round_updates=5", "--json")
    run = json.loads(cairn(seen, "train", "apga", *arguments))
    assert run["summary"]["state"] == "done"
    assert run["spec"]["settings"]["learning_rate"] == shown["leaderboard"][0]["strategy"]["learning_rate"]


def test_the_journal_of_a_run_that_is_no_search_is_refused_in_one_sentence(
    seen: Observed, search: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CairnError, match="there is no run 'other'"):
        cairn(seen, "search", "show", "other")
