"""Replay plans: published to the sites, closed when the trainer asks, merged exactly and once."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from aggregator.database import reading
from aggregator.tables import Audit, Merge, Plan
from cairn import codec
from cairn.errors import PlanError, UnknownPlan, Unreachable, WindowClosed
from cairn.pixels import PixelLevels
from cairn.plan import MomentsPlan
from cairn.plan import Plan as PlanValue
from cairn.tally import add, zeros
from cairn.v1 import operations_pb2, operations_pb2_grpc
from tests.aggregator.runs.parties import Parties, Site, counted, ranges_plan, read_tally, replay_plan
from tests.aggregator.simulated import wait_until


@pytest.fixture
def sites(parties: Parties) -> dict[str, Site]:
    """Return three sites of an aggregator in which the run `sella` is running."""
    parties.researcher.create()
    parties.trainer.claim()
    return {name: parties.site(name) for name in ("north", "south", "west")}


def plan_row(parties: Parties, fingerprint: bytes) -> Plan:
    with reading(parties.running.aggregator.engine) as session:
        return session.get_one(Plan, fingerprint.hex())


@pytest.mark.parametrize("make", [ranges_plan, replay_plan])
def test_a_merged_replay_tally_is_the_sum_of_the_uploads_and_the_same_when_asked_again(
    parties: Parties, sites: dict[str, Site], tmp_path: Path, make
) -> None:
    plan = make("sella")
    fingerprint = parties.trainer.publish(plan)
    assert [offer.plan for offer in sites["north"].offers().offers] == [codec.encode_plan(plan)]
    expected = zeros(plan.stage)
    for number, site in enumerate(sites.values()):
        tables = counted(plan.stage, 1000 * (number + 1))
        site.upload(tmp_path, fingerprint, tables)
        add(expected, tables)
    merged = parties.trainer.merge(fingerprint, sites, timedelta(seconds=30))
    tally = read_tally(tmp_path, merged, plan.stage)
    assert tally.fingerprint == fingerprint
    assert all(np.array_equal(tally.tables[name], expected[name]) for name in expected)
    assert parties.trainer.merge(fingerprint) == merged
    assert list(sites["north"].offers().offers) == []
    with reading(parties.running.aggregator.engine) as session:
        assert len(session.scalars(select(Merge)).one().uploads) == 3
        rows = session.scalars(select(Audit).filter_by(subject=fingerprint.hex()).order_by(Audit.id)).all()
    assert [row.action for row in rows] == ["upload"] * 3 + ["close", "merge"]
    assert (rows[3].actor, rows[3].detail["study"], rows[3].detail["sites"]) == (
        "trainer/trainer", "sella", ["north", "south", "west"],
    )  # fmt: skip


def test_a_merge_without_uploads_is_all_zero(parties: Parties, sites: dict[str, Site], tmp_path: Path) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    merged = read_tally(tmp_path, parties.trainer.merge(fingerprint, sites, timedelta(0)), plan.stage)
    assert all(not table.any() for table in merged.tables.values())


def test_a_merge_waits_for_the_named_sites_and_goes_on_with_the_last_of_them(
    parties: Parties, sites: dict[str, Site], tmp_path: Path
) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    merged: list[bytes] = []
    call = threading.Thread(
        target=lambda: merged.append(parties.trainer.merge(fingerprint, ["north", "south"], timedelta(seconds=50)))
    )
    call.start()
    bell = parties.running.aggregator._bell
    wait_until(lambda: len(bell._rung._waiters) > 0, "the wait for south")
    assert plan_row(parties, fingerprint).state == "open"
    began = time.monotonic()
    sites["south"].upload(tmp_path, fingerprint, counted(plan.stage, 7))
    call.join(40)
    assert time.monotonic() - began < 20, "the upload ends the wait, not the patience"
    assert read_tally(tmp_path, merged[0], plan.stage).tables["transitions"][0] == 12
    with pytest.raises(WindowClosed):
        sites["west"].upload(tmp_path, fingerprint, counted(plan.stage, 1))


def test_a_merge_does_not_wait_for_who_cannot_come(parties: Parties, sites: dict[str, Site], tmp_path: Path) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    sites["south"].refuse(fingerprint)
    parties.running.revoke("west")
    began = time.monotonic()
    parties.trainer.merge(fingerprint, [*sites, "nobody"], timedelta(seconds=50))
    assert time.monotonic() - began < 20


def test_what_a_revoked_site_has_sent_is_left_out(parties: Parties, sites: dict[str, Site], tmp_path: Path) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    for name in ("north", "south"):
        sites[name].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    parties.running.revoke("north")
    merged = read_tally(tmp_path, parties.trainer.merge(fingerprint), plan.stage)
    assert merged.tables["transitions"][0] == 5


def test_a_trainer_that_hangs_up_closes_nothing(parties: Parties, sites: dict[str, Site], tmp_path: Path) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    bell = parties.running.aggregator._bell
    with parties.trainer.open_channel() as channel:
        from cairn.v1 import training_pb2, training_pb2_grpc

        request = training_pb2.MergeReplayRequest(fingerprint=fingerprint, sites=["north"])
        request.patience.FromTimedelta(timedelta(seconds=50))
        call = training_pb2_grpc.TrainingStub(channel).MergeReplay(request, timeout=60)
        wait_until(lambda: len(bell._rung._waiters) > 0, "the wait for north")
        call.cancel()
        wait_until(lambda: len(bell._rung._waiters) == 0, "the end of the wait")
    assert plan_row(parties, fingerprint).state == "open"
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    assert read_tally(tmp_path, parties.trainer.merge(fingerprint), plan.stage).tables["transitions"][0] == 5


def test_an_aggregator_that_stops_ends_the_wait_and_closes_nothing(parties: Parties, sites: dict[str, Site]) -> None:
    fingerprint = parties.trainer.publish(replay_plan("sella"))
    bell = parties.running.aggregator._bell
    raised: list[BaseException] = []

    def merge() -> None:
        try:
            parties.trainer.merge(fingerprint, ["north"], timedelta(seconds=50))
        except Unreachable as error:
            raised.append(error)

    call = threading.Thread(target=merge)
    call.start()
    wait_until(lambda: len(bell._rung._waiters) > 0, "the wait for north")
    bell.stop()
    call.join(10)
    assert [type(error) for error in raised] == [Unreachable]
    assert plan_row(parties, fingerprint).state == "open"


def test_publishing_again_changes_nothing_but_how_long_the_plan_is_open(
    parties: Parties, sites: dict[str, Site], clock
) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    first = plan_row(parties, fingerprint).deadline
    clock.advance(timedelta(minutes=10))
    parties.trainer.publish(plan)
    assert plan_row(parties, fingerprint).deadline == first + timedelta(minutes=10)
    merged = parties.trainer.merge(fingerprint)
    parties.trainer.publish(plan)
    assert plan_row(parties, fingerprint).state == "done"
    assert parties.trainer.merge(fingerprint) == merged


def test_the_end_of_a_run_closes_its_plans_and_its_resumption_opens_them_again(
    parties: Parties, sites: dict[str, Site], tmp_path: Path
) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    parties.trainer.report(ended="failed", message="too few sites")
    assert plan_row(parties, fingerprint).state == "closed"
    wait_until(lambda: not sites["south"].offers().offers, "the plan's leaving the board")
    with pytest.raises(WindowClosed):
        sites["south"].upload(tmp_path, fingerprint, counted(plan.stage, 7))
    parties.researcher.call("ResumeRun", "sella")
    parties.trainer.claim()
    parties.trainer.publish(plan)
    sites["south"].upload(tmp_path, fingerprint, counted(plan.stage, 7))
    merged = read_tally(tmp_path, parties.trainer.merge(fingerprint), plan.stage)
    assert merged.tables["transitions"][0] == 12


def test_a_plan_that_was_closed_with_its_run_can_still_be_merged(
    parties: Parties, sites: dict[str, Site], tmp_path: Path
) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    parties.trainer.report(ended="done")
    merged = read_tally(tmp_path, parties.trainer.merge(fingerprint, ["south"], timedelta(seconds=50)), plan.stage)
    assert merged.tables["transitions"][0] == 5


def test_two_calls_for_one_merge_give_one_merge(parties: Parties, sites: dict[str, Site], tmp_path: Path) -> None:
    plan = replay_plan("sella")
    fingerprint = parties.trainer.publish(plan)
    sites["north"].upload(tmp_path, fingerprint, counted(plan.stage, 5))
    found: list[bytes] = []
    calls = [threading.Thread(target=lambda: found.append(parties.trainer.merge(fingerprint))) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    with reading(parties.running.aggregator.engine) as session:
        assert len(session.scalars(select(Audit).filter_by(action="merge")).all()) == 1


def test_only_a_replay_plan_of_a_run_that_is_running_is_published(parties: Parties, sites: dict[str, Site]) -> None:
    for plan, sentence in (
        (replay_plan("nowhere"), "'nowhere', which is no run that is running"),
        (PlanValue("sella", 0, MomentsPlan(PixelLevels(("a", "b")))), "a plan of the stage moments"),
        (b"\xff\xff", "cannot be read"),
        (codec.encode_plan(replay_plan("sella")) + b"\xba\x3e\x01x", "in other bytes"),
    ):
        with pytest.raises(PlanError, match=sentence):
            parties.trainer.publish(plan)
    with pytest.raises(PlanError, match="up to 30 days"):
        parties.trainer.publish(replay_plan("sella"), timedelta(0))
    parties.trainer.report(ended="done")
    with pytest.raises(PlanError, match="no run that is running"):
        parties.trainer.publish(replay_plan("sella"))
    assert list(sites["north"].offers().offers) == []


def test_a_plan_that_is_not_there_or_of_a_study_is_not_merged(parties: Parties, sites: dict[str, Site]) -> None:
    with pytest.raises(UnknownPlan):
        parties.trainer.merge(bytes(32))
    study = operations_pb2.StudySpec(name="map", bands=["a", "b"], min_sites=1)
    with parties.researcher.stub(operations_pb2_grpc.StudiesStub) as studies:
        studies.CreateStudy(operations_pb2.CreateStudyRequest(spec=study), timeout=10)
        stages = studies.ShowStudy(operations_pb2.ShowStudyRequest(name="map"), timeout=10).stages
    with pytest.raises(UnknownPlan, match="no replay plan"):
        parties.trainer.merge(stages[0].fingerprint)


def test_a_study_goes_its_way_beside_the_plans_of_a_run(
    parties: Parties, sites: dict[str, Site], tmp_path: Path
) -> None:
    parties.trainer.publish(replay_plan("sella"))
    study = operations_pb2.StudySpec(name="map", bands=["a", "b"], min_sites=1)
    with parties.researcher.stub(operations_pb2_grpc.StudiesStub) as studies:
        studies.CreateStudy(operations_pb2.CreateStudyRequest(spec=study), timeout=10)
        offers = sites["north"].offers().offers
        moments = next(o.plan for o in offers if codec.decode_plan(o.plan).study == "map")
        stage = codec.decode_plan(moments).stage
        import hashlib

        for site in sites.values():
            tables = zeros(stage)
            tables["pixels"][0] = 100
            tables["second"][0] += np.diag([50, 60])
            tables["sum"][0] += 10
            site.upload(tmp_path, hashlib.sha256(moments).digest(), tables)

        def state() -> str:
            return studies.ShowStudy(operations_pb2.ShowStudyRequest(name="map"), timeout=10).summary.state

        wait_until(lambda: state() == "ranges", "the study's next stage")
    assert len(sites["north"].offers().offers) == 2
