"""`cairn runs …` as a researcher types it, against a real aggregator."""

import json
import threading
from pathlib import Path

import pytest
from PIL import Image as Pillow

from tests.agent_trainer.commands.conftest import round_of
from tests.aggregator.runs.parties import Parties


@pytest.fixture
def sella(parties: Parties) -> Parties:
    """A run of five rounds that has played two."""
    parties.researcher.create("sella", seed=2**60, settings_json='{"batch": 96, "replay": "sketched"}')
    parties.trainer.claim()
    parties.trainer.report(round=round_of(1, **{"validation/mean_mm": 9.5}), log="round 1: south late")
    parties.trainer.report(round=round_of(2, **{"validation/mean_mm": 2.5}))
    return parties


def test_a_list_of_runs_is_a_table_and_json(cairn, sella: Parties) -> None:
    (run,) = cairn("runs", "list", "--json").json["runs"]
    assert (run["name"], run["state"], run["round"], run["rounds"]) == ("sella", "running", 2, 5)
    table = cairn("runs", "list").out
    assert "2 of 5" in table
    assert "running" in table


def test_a_run_is_shown_with_what_every_site_did(cairn, sella: Parties) -> None:
    shown = cairn("runs", "show", "sella", "--json").json
    assert shown["spec"]["settings"] == {"batch": 96, "replay": "sketched"}
    assert shown["spec"]["seed"] == 2**60
    assert [one["round"] for one in shown["rounds"]] == [1, 2]
    north, south = shown["rounds"][0]["sites"]
    assert (north["bytes"], north["metrics"]["validation/nasion/mean_mm"]) == (2**40, 4.0)
    assert (south["state"], south["reason"]) == ("late", "it did not answer in time")
    text = cairn("runs", "show", "sella").out
    assert "north 2.5 mm · south: late (it did not answer in time)" in text, "the mean over both landmarks' images"
    assert "running  round 2 of 5" in text


def test_a_run_that_is_watched_is_shown_when_it_has_ended(cairn, sella: Parties) -> None:
    ending = threading.Timer(0.3, lambda: sella.trainer.report(ended="done", message="stopped early"))
    ending.start()
    shown = cairn("runs", "show", "sella", "--watch", "--json").json
    ending.join()
    assert (shown["summary"]["state"], shown["summary"]["message"]) == ("done", "stopped early")


def test_a_run_that_has_failed_is_shown_and_ends_the_command_with_its_sentence(cairn, sella: Parties) -> None:
    sella.trainer.report(ended="failed", message="round 3 failed 3 times")
    said = cairn("runs", "show", "sella", "--json")
    assert (said.code, json.loads(said.out)["summary"]["state"]) == (1, "failed")
    assert said.err == "cairn: the run sella has failed: round 3 failed 3 times\n"


def test_a_log_is_printed_as_text_and_as_json_lines(cairn, sella: Parties) -> None:
    sella.trainer.report(log="round 2: all came", ended="done")
    first, second = cairn("runs", "logs", "sella", "--follow").out.splitlines()
    assert first.endswith("  round 1: south late")
    assert second.endswith("  round 2: all came")
    lines = [json.loads(line) for line in cairn("runs", "logs", "sella", "--json").out.splitlines()]
    assert [(line["line"], line["text"]) for line in lines] == [(1, "round 1: south late"), (2, "round 2: all came")]


def test_a_run_is_stopped_after_its_round_and_resumed(cairn, sella: Parties) -> None:
    assert cairn("runs", "stop", "sella").out == "sella ends with its round; resume it with: cairn runs resume sella\n"
    sella.trainer.report(ended="stopped", message="stopped by an operator")
    assert cairn("runs", "stop", "sella").out == "sella is stopped\n"
    assert cairn("runs", "resume", "sella").out.startswith("sella is in the queue again")
    assert cairn("runs", "stop", "sella", "--json").json["state"] == "stopped", "at once, as it was in the queue"
    assert cairn("runs", "resume", "sella", "--json").json["state"] == "queued"
    said = cairn("runs", "resume", "sella")
    assert (said.code, "sella is queued" in said.err) == (1, True)


@pytest.mark.parametrize("method", ["show", "logs", "stop", "resume"])
def test_a_run_that_is_not_there_is_one_sentence(cairn, method: str) -> None:
    said = cairn("runs", method, "nowhere")
    assert (said.code, said.out) == (1, "")
    assert said.err == "cairn: there is no run 'nowhere'; `cairn runs list` shows all\n"


def test_runs_are_compared_by_the_settings_that_differ_and_by_where_they_got_to(
    cairn, sella: Parties, tmp_path: Path
) -> None:
    sella.trainer.report(ended="done")
    sella.researcher.create("plain", rounds=9, settings_json='{"batch": 96}')
    plot = tmp_path / "curves.png"
    found = cairn("runs", "compare", "sella", "plain", "--plot", plot, "--json").json
    assert found["differing"] == {
        "replay": {"sella": "sketched", "plain": "default"},
        "rounds": {"sella": 5, "plain": 9},
        "seed": {"sella": 2**60, "plain": 0},
    }
    assert found["last_round"] == {"sella": {"loss": 0.25, "validation/mean_mm": 2.5}, "plain": {}}
    with Pillow.open(plot) as picture:
        assert picture.size[0] > 100
    table = cairn("runs", "compare", "sella", "plain").out
    assert "sketched" in table
    assert "–" in table, "plain has no loss yet"
    assert "96" not in table


def test_one_run_alone_is_not_compared(cairn, sella: Parties) -> None:
    said = cairn("runs", "compare", "sella", "sella")
    assert (said.code, said.err) == (1, "cairn: one run was named; name at least two to compare\n")
