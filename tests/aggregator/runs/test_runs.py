"""A run from its creation to its end, between a researcher and the trainer, over real TLS and both databases."""

import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from aggregator.database import reading
from aggregator.tables import Audit, RunLog
from cairn.errors import NotEnrolled, Revoked, StudyError, TrainingError, WrongRole
from cairn.v1 import operations_pb2, operations_pb2_grpc, training_pb2
from tests.aggregator.conftest import Clock, Running
from tests.aggregator.runs.parties import Parties, Researcher, let_in
from tests.aggregator.simulated import wait_until


def a_round(number: int, **metrics: float) -> training_pb2.Round:
    sites = [
        training_pb2.SiteRound(
            site="north", state="trained", metrics={"loss": 0.5, "examples": 100.0}, bytes=2_000_000
        ),
        training_pb2.SiteRound(site="south", state="late", reason="no answer within 1 h"),
    ]
    return training_pb2.Round(round=number, seconds=12.5, sites=sites, metrics=metrics or {"loss": 0.5})


def audited(parties: Parties, subject: str) -> list[tuple[str, str]]:
    with reading(parties.running.aggregator.engine) as session:
        rows = session.scalars(select(Audit).filter_by(subject=subject).order_by(Audit.id))
        return [(row.actor, row.action) for row in rows]


def test_a_run_goes_from_the_queue_through_its_rounds_to_its_end(parties: Parties) -> None:
    parties.researcher.create(settings_json='{"gamma": 0.9}')
    assert parties.researcher.state() == "queued"
    claimed = parties.trainer.claim()
    assert (claimed.spec.name, claimed.round, json.loads(claimed.spec.settings_json)) == ("sella", 0, {"gamma": 0.9})
    assert parties.researcher.state() == "running"
    assert not parties.trainer.report(round=a_round(1))
    assert not parties.trainer.report(round=a_round(2, loss=0.25))
    parties.trainer.report(ended="done", message="all rounds are done")
    shown = parties.researcher.show()
    summary = shown.summary
    assert (summary.state, summary.round, summary.rounds, summary.message) == ("done", 2, 5, "all rounds are done")
    assert [(r.round, dict(r.metrics), r.seconds) for r in shown.rounds] == [
        (1, {"loss": 0.5}, 12.5),
        (2, {"loss": 0.25}, 12.5),
    ]
    north, south = shown.rounds[1].sites
    assert (north.site, north.state, north.metrics["examples"], north.bytes) == ("north", "trained", 100.0, 2_000_000)
    assert (south.site, south.state, south.reason) == ("south", "late", "no answer within 1 h")
    assert not parties.trainer.claim().HasField("spec")
    assert audited(parties, "sella") == [
        ("operator/operator", "create-run"),
        ("trainer/trainer", "begin-run"),
        ("trainer/trainer", "end-run"),
    ]


def test_runs_are_taken_one_after_another_and_one_that_was_begun_before_any_that_waits(
    parties: Parties, clock: Clock
) -> None:
    for name in ("zebra", "adder"):
        parties.researcher.create(name)
        clock.advance(timedelta(seconds=1))
    assert parties.trainer.claim().spec.name == "zebra"
    parties.trainer.report("zebra", round=a_round(1))
    again = parties.trainer.claim()
    assert (again.spec.name, again.round) == ("zebra", 1)
    parties.trainer.report("zebra", ended="failed", message="it diverged")
    assert parties.trainer.claim().spec.name == "adder"


def test_a_round_that_is_reported_again_takes_the_place_of_what_was_known_of_it_and_of_all_later_ones(
    parties: Parties,
) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    for number in (1, 2, 3):
        parties.trainer.report(round=a_round(number))
    parties.trainer.report(round=a_round(3, **{"loss": 0.5, "validation/mean_mm": 2.25}))
    shown = parties.researcher.show()
    assert dict(shown.rounds[2].metrics) == {"loss": 0.5, "validation/mean_mm": 2.25}
    parties.trainer.report(round=a_round(2, loss=9.0))  # a trainer that came back to an older checkpoint
    shown = parties.researcher.show()
    assert [(r.round, r.metrics["loss"]) for r in shown.rounds] == [(1, 0.5), (2, 9.0)]
    assert shown.summary.round == 2


def test_numbers_that_are_none_are_left_out(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    parties.trainer.report(round=a_round(1, loss=float("nan"), reward=float("inf"), error=1.5))
    assert dict(parties.researcher.show().rounds[0].metrics) == {"error": 1.5}


def test_rounds_are_shown_from_one_on_and_in_messages_that_fit(parties: Parties) -> None:
    parties.researcher.create(rounds=100)
    parties.trainer.claim()
    many = {f"validation/landmark-{n:04d}/mean_mm/of/this/very/long/name/for/a/landmark": 1.0 for n in range(1500)}
    site = training_pb2.SiteRound(site="north", state="trained", metrics=many)
    for number in range(1, 9):
        sites = [training_pb2.SiteRound(), *[site] * 5][1:]
        parties.trainer.report(round=training_pb2.Round(round=number, seconds=1, sites=sites, metrics=many))
    first = parties.researcher.show()
    assert first.more
    rest = parties.researcher.show(after=first.rounds[-1].round)
    assert [r.round for r in first.rounds] + [r.round for r in rest.rounds] == list(range(1, 9))
    assert not rest.more


def test_a_stopped_run_ends_with_its_round_and_goes_on_when_it_is_resumed(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    parties.trainer.report(round=a_round(1))
    parties.researcher.call("StopRun", "sella")
    assert parties.researcher.state() == "stopping"
    assert parties.trainer.report(round=a_round(2))
    parties.trainer.report(ended="stopped")
    parties.researcher.call("StopRun", "sella")  # again: nothing changes
    assert parties.researcher.state() == "stopped"
    assert parties.trainer.report(round=a_round(3))  # too late: told to stop, and nothing noted
    assert parties.researcher.show().summary.round == 2
    parties.researcher.call("ResumeRun", "sella")
    assert parties.researcher.state() == "queued"
    claimed = parties.trainer.claim()
    assert (claimed.spec.name, claimed.round) == ("sella", 2)
    assert not parties.trainer.report(round=a_round(3))


def test_a_run_that_was_to_stop_when_its_trainer_died_has_stopped_when_the_next_one_asks(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    parties.researcher.call("StopRun", "sella")
    assert not parties.trainer.claim().HasField("spec")
    assert parties.researcher.state() == "stopped"


def test_a_run_in_the_queue_is_stopped_at_once(parties: Parties) -> None:
    parties.researcher.create()
    parties.researcher.call("StopRun", "sella")
    assert parties.researcher.state() == "stopped"
    assert not parties.trainer.claim().HasField("spec")


def test_a_run_that_is_done_or_goes_on_cannot_be_resumed(parties: Parties) -> None:
    parties.researcher.create()
    with pytest.raises(StudyError, match="sella is queued; a run that was stopped"):
        parties.researcher.call("ResumeRun", "sella")
    parties.trainer.claim()
    parties.trainer.report(ended="done")
    with pytest.raises(StudyError, match="sella is done"):
        parties.researcher.call("ResumeRun", "sella")


def test_an_end_that_is_none_and_a_run_that_is_not_there_are_refused(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    with pytest.raises(StudyError, match="'asleep' is no end of a run"):
        parties.trainer.report(ended="asleep")
    assert parties.researcher.state() == "running"
    with pytest.raises(StudyError, match="rounds begin with 1"):
        parties.trainer.report(round=training_pb2.Round(round=0))
    bad = training_pb2.Round(round=1, sites=[training_pb2.SiteRound(site="<script>")])
    with pytest.raises(StudyError, match="is not a site's name"):
        parties.trainer.report(round=bad)
    for method in ("ShowRun", "StopRun", "ResumeRun"):
        with pytest.raises(StudyError, match="there is no run 'nowhere'"):
            parties.researcher.call(method, "nowhere")
    with pytest.raises(StudyError, match="there is no run"):
        parties.researcher.log("nowhere")


def test_studies_and_runs_share_their_names(parties: Parties) -> None:
    parties.researcher.create("twice")
    with pytest.raises(StudyError, match="there is a run twice already"):
        parties.researcher.create("twice")
    study = operations_pb2.StudySpec(name="twice", bands=["a", "b"], min_sites=1)
    with (
        pytest.raises(StudyError, match="there is a run twice already"),
        parties.researcher.stub(operations_pb2_grpc.StudiesStub) as studies,
    ):
        studies.CreateStudy(operations_pb2.CreateStudyRequest(spec=study), timeout=10)
    study.name = "map"
    with parties.researcher.stub(operations_pb2_grpc.StudiesStub) as studies:
        studies.CreateStudy(operations_pb2.CreateStudyRequest(spec=study), timeout=10)
    with pytest.raises(StudyError, match="there is a study map already"):
        parties.researcher.create("map")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "Not A Name"}, "name: "),
        ({"rounds": 0}, "rounds: "),
        ({"strategy": "magic"}, "strategy: "),
        ({"strategy": "fedprox", "strategy_options": {"eta": 1.0}}, "fedprox has no option 'eta'"),
        ({"settings_json": "[1]"}, "settings: "),
        ({"settings_json": '{"gamma": NaN}'}, "settings: a number in them is not finite"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_meant_is_refused_with_one_sentence(parties: Parties, changes, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence) as raised:
        parties.researcher.create(**changes)
    assert "\n" not in str(raised.value)


def test_an_aggregator_without_a_trainer_takes_no_run(running: Running) -> None:
    from cairn.profile import operator_channel

    researcher = Researcher(lambda: operator_channel(running.profile))
    with pytest.raises(TrainingError, match=r"\[training\] in aggregator.toml"):
        researcher.create()


def test_the_log_is_read_from_a_line_on(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    for text in ("round 1 begins", "with\ntwo lines\x1b[31m and colour", "", "x" * 5000):
        parties.trainer.report(log=text)
    log = parties.researcher.log()
    assert log[:2] == [(1, "round 1 begins"), (2, "with two lines [31m and colour")]
    assert [line for line, _ in log] == [1, 2, 3], "an empty line is none"
    assert len(log[2][1]) == 2000
    assert parties.researcher.log(after=2) == log[2:]


def test_a_log_that_is_followed_brings_lines_as_they_come_and_ends_with_the_run(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    parties.trainer.report(log="one")
    found: list[tuple[int, str]] = []
    follower = threading.Thread(target=lambda: found.extend(parties.researcher.log(follow=True)))
    follower.start()
    parties.trainer.report(log="two")
    parties.trainer.report(log="three", ended="done")
    follower.join(20)
    assert not follower.is_alive()
    assert found == [(1, "one"), (2, "two"), (3, "three")]


def test_an_aggregator_that_stops_ends_the_logs_that_are_followed(parties: Parties) -> None:
    parties.researcher.create()
    follower = threading.Thread(target=parties.researcher.log, kwargs={"follow": True}, daemon=True)
    follower.start()
    bell = parties.running.aggregator._bell
    wait_until(lambda: len(bell._rung._waiters) > 0, "the follower's wait")
    bell.stop()
    follower.join(10)
    assert not follower.is_alive()


def test_lines_of_a_run_that_has_ended_are_kept_and_change_nothing_else(parties: Parties) -> None:
    parties.researcher.create()
    parties.trainer.claim()
    parties.trainer.report(ended="done")
    parties.trainer.report(log="good bye", ended="failed")
    assert parties.researcher.state() == "done"
    with reading(parties.running.aggregator.engine) as session:
        assert session.scalars(select(RunLog.text)).all() == ["good bye"]


def checkpoint(parties: Parties, run: str, number: int, best: int = 0) -> bytes:
    folder = parties.checkpoints / run / f"round-{number:06d}"
    folder.mkdir(parents=True)
    weights = f"weights of {number}".encode() * 200_000
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "state.json").write_text(json.dumps({"round": number, "best_round": best}))
    return weights


def test_the_weights_are_those_of_the_best_round_or_of_the_last_or_of_the_one_asked_for(parties: Parties) -> None:
    parties.researcher.create()
    with pytest.raises(StudyError, match="sella has no checkpoint yet"):
        parties.researcher.weights()
    second, third = checkpoint(parties, "sella", 2), checkpoint(parties, "sella", 3)
    assert parties.researcher.weights() == third
    fourth = checkpoint(parties, "sella", 4, best=2)
    (parties.checkpoints / "sella" / ".round-000005.part").mkdir()
    assert parties.researcher.weights() == second
    assert parties.researcher.weights(number=4) == fourth
    with pytest.raises(StudyError, match="keeps no checkpoint of round 1; it keeps those of 2, 3, 4"):
        parties.researcher.weights(number=1)


def test_a_best_round_that_is_gone_or_a_state_that_is_damaged_gives_the_last(parties: Parties) -> None:
    parties.researcher.create()
    last = checkpoint(parties, "sella", 7, best=3)
    assert parties.researcher.weights() == last
    (parties.checkpoints / "sella" / "round-000007" / "state.json").write_text("[")
    assert parties.researcher.weights() == last


def test_a_search_comes_out_of_the_queue_as_it_went_in_and_its_journal_is_fetched(parties: Parties) -> None:
    search = {"method": "ppo", "space": {"parameters": {"learning_rate": {"min": 1e-4, "max": 0.01}}}}
    parties.researcher.create(search_json=json.dumps(search), min_sites=1)
    assert json.loads(parties.trainer.claim().spec.search_json) == search
    with pytest.raises(StudyError, match="sella has no journal of a search; that of a search is there from its first"):
        parties.researcher.journal()
    (parties.checkpoints / "sella").mkdir(parents=True)
    lines = b'{"format": 2}\n' * 200_000
    (parties.checkpoints / "sella" / "search.jsonl").write_bytes(lines)
    assert parties.researcher.journal() == lines
    with pytest.raises(StudyError, match="there is no run"):
        parties.researcher.journal("../runs/sella")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search_json": "["}, "no JSON object"),
        ({"search_json": "[1]"}, "search: Input should be a valid dictionary"),
        ({"search_json": '{"rate": NaN}'}, "a number in them is not finite"),
        ({"search_json": "{}", "strategy": "fedadam"}, "leave both out"),
        ({"search_json": "{}", "patience": 3}, "leave both out"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(parties: Parties, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        parties.researcher.create(**changes)


def test_a_name_that_leads_out_of_the_folder_is_no_run(parties: Parties) -> None:
    checkpoint(parties, "secret", 1)
    for name in ("../runs/secret", "secret", "..", ""):
        with pytest.raises(StudyError, match="there is no run"):
            parties.researcher.weights(name)


def test_the_trainer_is_told_the_enrolled_sites_that_can_train(parties: Parties, clock: Clock) -> None:
    north = parties.site("north")
    parties.site("south")
    parties.running.join("east")  # has no SuperNode
    clock.advance(timedelta(minutes=1))
    north.offers()
    nodes = parties.trainer.nodes()
    assert {name: node.connected for name, node in nodes.items()} == {"north": True, "south": False}
    assert nodes["north"].supernode_key_pem.startswith(b"-----BEGIN PUBLIC KEY-----")
    parties.running.revoke("south")
    assert set(parties.trainer.nodes()) == {"north"}


def test_only_the_trainer_may_call_training_and_it_nothing_else(parties: Parties) -> None:
    site = parties.site("north")
    for stranger in (site.open_channel, parties.researcher.open_channel):
        trainer = type(parties.trainer)(stranger)
        with pytest.raises(WrongRole, match=r"may not call cairn.v1.Training"):
            trainer.claim()
    as_operator = Researcher(parties.trainer.open_channel)
    with pytest.raises(WrongRole, match=r"the role trainer may not call cairn.v1.Runs"):
        as_operator.create()
    with (
        pytest.raises(WrongRole, match=r"the role trainer may not call cairn.v1.Sites"),
        as_operator.stub(operations_pb2_grpc.SitesStub) as sites,
    ):
        sites.ListSites(operations_pb2.ListSitesRequest(), timeout=10)


def test_a_new_trainer_shuts_the_former_one_out(parties: Parties, clock: Clock, tmp_path: Path) -> None:
    newer = let_in(parties.running, tmp_path / "newer", clock)
    with pytest.raises((Revoked, NotEnrolled)):
        parties.trainer.claim()
    assert not newer.claim().HasField("spec")


def test_the_trainer_can_neither_be_revoked_nor_invited(parties: Parties) -> None:
    with pytest.raises(StudyError, match="the trainer is the aggregator's own"):
        parties.running.revoke("trainer")
    with pytest.raises(StudyError, match="kept for the aggregator's own trainer"):
        parties.running.invite("trainer", "operator")


def test_sites_learn_where_the_superlink_is(parties: Parties, running: Running) -> None:
    address = parties.running.aggregator.addresses.superlink
    assert address.startswith("127.0.0.1:")
    assert parties.site("north").offers().superlink_address == address
    assert running.aggregator.addresses.superlink == ""


def test_metrics_count_runs_by_state_and_rounds(parties: Parties) -> None:
    for name in ("one", "two"):
        parties.researcher.create(name)
    parties.trainer.claim()
    parties.trainer.report("one", round=a_round(1))
    parties.trainer.report("one", round=a_round(1))
    registry = parties.running.aggregator.metrics.registry

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert (value("cairn_runs", state="running"), value("cairn_runs", state="queued")) == (1, 1)
    assert (value("cairn_rounds_total"), value("cairn_round_seconds_sum")) == (1, 12.5)
    assert value("cairn_training_up", process="superlink") == 0
