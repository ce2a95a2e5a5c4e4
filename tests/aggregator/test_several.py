"""Several processes of one aggregator, over one PostgreSQL and one store: what the one does, the others go by.

Here they are in one Python; tests/system/test_several_aggregators.py has them as processes that are killed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from sqlalchemy import select, text

from aggregator import audit_log, database, tables
from aggregator.members.initialise import initialise
from aggregator.server import Aggregator
from aggregator.settings import load_settings
from aggregator.study.messages import spec_message
from aggregator.telemetry import make_log
from cairn import codec
from cairn.errors import Revoked, StudyError, TrainingError, Unreachable
from cairn.profile import operator_channel
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel
from cairn.tally import Tally
from cairn.v1 import (
    operations_pb2,
    operations_pb2_grpc,
    plans_pb2,
    plans_pb2_grpc,
    tallies_pb2,
    tallies_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from tests.aggregator.conftest import Clock, Running
from tests.aggregator.simulated import count, spec, tissue, wait_until

MESSAGE = 1 << 16


@dataclass
class Several:
    """The processes, the first of which founded the federation."""

    running: list[Running]

    def address(self, number: int) -> str:
        return self.running[number].aggregator.addresses.address

    def plan(self, stage: str) -> tables.Plan | None:
        with database.reading(self.running[0].aggregator.engine) as session:
            return session.scalars(select(tables.Plan).filter_by(stage=stage)).one_or_none()


@pytest.fixture
def start_several(tmp_path: Path, clock: Clock, postgresql_url: str) -> Iterator[Callable[..., Several]]:
    """Return a function that starts some processes whose settings differ in their folder and in some lines."""
    with ExitStack() as stack:

        def start(*lines: str) -> Several:
            first, blobs = tmp_path / "a0", f"file://{tmp_path}/blobs"
            initialise(first, "tissue", ["127.0.0.1:0"], clock(), database=postgresql_url, blobs=blobs)
            settings = (first / "aggregator.toml").read_text()
            running = []
            for number, more in enumerate(lines):
                folder = tmp_path / f"a{number}"
                folder.mkdir(exist_ok=True)
                (folder / "aggregator.toml").write_text(settings.replace('"pki"', f'"{first}/pki"') + more)
                log = StringIO()
                aggregator = Aggregator(load_settings(folder / "aggregator.toml"), make_log(log), clock)
                aggregator.start()
                stack.callback(aggregator.stop)
                running.append(Running(folder, aggregator, log))
            return Several(running)

        yield start


@pytest.fixture
def two(start_several: Callable[..., Several]) -> Several:
    return start_several("", "")


def create(running: Running) -> None:
    with operator_channel(running.profile) as channel, errors_from_wire():
        request = operations_pb2.CreateStudyRequest(spec=spec_message(spec(masking="off")))
        operations_pb2_grpc.StudiesStub(channel).CreateStudy(request, timeout=30)


def tally_file(plan: tables.Plan, seed: int, folder: Path) -> tuple[bytes, bytes]:
    path = folder / f"tally-{seed}"
    stage = codec.decode_plan(plan.published).stage
    digest = codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), count(stage, tissue(seed))))
    return path.read_bytes(), digest


def messages(plan: tables.Plan, data: bytes, digest: bytes | None) -> Iterator[tallies_pb2.UploadRequest]:
    for at in range(0, len(data), MESSAGE):
        last = at + MESSAGE >= len(data)
        yield tallies_pb2.UploadRequest(
            fingerprint=bytes.fromhex(plan.fingerprint),
            offset=at,
            data=data[at : at + MESSAGE],
            digest=digest if last and digest else b"",
        )


def test_an_upload_that_goes_on_at_another_process_begins_anew_and_counts_once(two: Several, tmp_path: Path) -> None:
    files = {name: two.running[0].join(name) for name in ("north", "south")}
    create(two.running[0])
    plan = two.plan("moments")
    assert plan is not None
    data, digest = tally_file(plan, 1, tmp_path)
    fingerprint = bytes.fromhex(plan.fingerprint)
    ask = tallies_pb2.QueryUploadRequest(fingerprint=fingerprint, digest=digest)
    with mtls_channel(two.address(0), files["north"]) as one, mtls_channel(two.address(1), files["north"]) as other:
        here, there = tallies_pb2_grpc.TalliesStub(one), tallies_pb2_grpc.TalliesStub(other)
        here.QueryUpload(ask, timeout=30)
        half = messages(plan, data[: len(data) // 2], None)
        assert here.Upload(half, timeout=30).committed_size == len(data) // 2
        assert there.QueryUpload(ask, timeout=30).committed_size == 0
        assert there.Upload(messages(plan, data, digest), timeout=30).committed_size == len(data)
        assert here.QueryUpload(ask, timeout=30).complete
    halves = two.running[0].folder / "spool" / plan.fingerprint
    assert halves.exists()
    with mtls_channel(two.address(1), files["south"]) as channel:
        stub = tallies_pb2_grpc.TalliesStub(channel)
        stub.Upload(messages(plan, *tally_file(plan, 2, tmp_path)), timeout=30)
    wait_until(lambda: not halves.exists(), "the half is dropped when the other process has closed the plan")
    wait_until(lambda: two.plan("ranges") is not None, "the sum of moments is made")
    with database.reading(two.running[1].aggregator.engine) as session:
        actions = list(session.scalars(select(tables.Audit.action).filter_by(subject=plan.fingerprint)))
    assert sorted(actions) == ["close", "merge", "upload", "upload"]
    assert audit_log.verify(two.running[0].aggregator.engine).whole


def watching(address: str, files: TlsFiles) -> Iterator[plans_pb2.WatchResponse]:
    with mtls_channel(address, files) as channel, errors_from_wire():
        yield from plans_pb2_grpc.PlansStub(channel).Watch(plans_pb2.WatchRequest(version="0.1.0"), timeout=60)


def test_plans_and_revocations_of_one_process_reach_the_streams_of_another_within_seconds(two: Several) -> None:
    files = two.running[0].join("north")
    stream = watching(two.address(1), files)
    assert not next(stream).offers
    began = time.monotonic()
    create(two.running[0])
    assert len(next(stream).offers) == 1
    two.running[0].revoke("north")
    with pytest.raises((Revoked, Unreachable)):  # whoever looks first ends it; why, the next call says
        next(stream)
    assert time.monotonic() - began < 30
    with pytest.raises(Revoked):
        next(watching(two.address(1), files))


def test_two_housekeepers_do_not_drop_the_same_things_twice(two: Several, clock: Clock) -> None:
    engine = two.running[0].aggregator.engine
    with database.writing(engine) as session:
        at = clock()
        session.add(tables.Run(name="old", spec={}, state="done", created_at=at, queued_at=at, ended_at=at))
        session.flush()
        session.add(tables.RunLog(run="old", line=1, at=clock(), text="done"))
    clock.advance(timedelta(days=2))
    for one in two.running:
        one.aggregator._housekeeping._settings = one.aggregator._settings.model_copy(
            update={"retention": one.aggregator._settings.retention.model_copy(update={"run_log_days": 1})}
        )
        wait_until(one.aggregator._housekeeping.turn, "its turn, beside the one that it begins with")
    with database.reading(engine) as session:
        dropped = list(session.scalars(select(tables.Audit.detail).filter_by(action="retention")))
    assert dropped == [{"run_log_lines": 1}]


ELSEWHERE = '[training]\nhere = false\nsuperlink_address = "127.0.0.1:9446"\n'


def test_a_process_beside_the_one_that_trains_tells_sites_where_and_queues_runs_but_keeps_no_weights(
    start_several: Callable[..., Several],
) -> None:
    one = start_several(ELSEWHERE).running[0]
    assert next(watching(one.aggregator.addresses.address, one.join("north"))).superlink_address == "127.0.0.1:9446"
    with operator_channel(one.profile) as channel:
        stub = training_pb2_grpc.RunsStub(channel)
        with pytest.raises(StudyError, match="there is no run"), errors_from_wire():  # it would be taken
            stub.ResumeRun(training_pb2.ResumeRunRequest(name="lung"), timeout=30)
        with pytest.raises(TrainingError, match="the process of this aggregator that trains"), errors_from_wire():
            list(stub.FetchCheckpoint(training_pb2.FetchCheckpointRequest(name="lung"), timeout=30))


def test_a_writer_that_stands_still_keeps_nobody_from_writing_for_ever(
    two: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_MILLISECONDS", 200)
    mine, others = (one.aggregator.engine for one in two.running)
    with database.writing(mine) as holder:
        holder.execute(text("SELECT 1"))
        for engine in (mine, others):  # a thread of the same process, and another process
            with pytest.raises(Unreachable, match="other writers did not end"), database.writing(engine) as other:
                other.execute(text("SELECT 1"))
