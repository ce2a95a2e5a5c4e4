"""Uploads: resumable, checked before they count, counted once; in this process and over gRPC with real certificates."""

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.uploads import MESSAGE, quota
from aggregator.study import records, studies
from aggregator.study.plans_service import plain_text
from cairn import codec
from cairn.errors import (
    CairnError,
    ChecksumMismatch,
    OffsetMismatch,
    PlanMismatch,
    Revoked,
    StorageFull,
    TooLarge,
    UnknownPlan,
    Unreachable,
    WindowClosed,
    WrongRole,
)
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel
from cairn.sealing import open_data_keys
from cairn.tally import Tally
from cairn.v1 import plans_pb2, plans_pb2_grpc, tallies_pb2, tallies_pb2_grpc
from tests.aggregator.conftest import Clock, Running
from tests.aggregator.simulated import Federation, count, spec, tissue, wait_until


@pytest.fixture(params=["plain", "sealed"])
def federation(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path, clock: Clock) -> Federation:
    keys = open_data_keys(tmp_path / "data-keys.json", [bytes(32)]) if request.param == "sealed" else None
    made = Federation(engine, tmp_path, clock, keys)
    made.enrol("north", "south", "west")
    made.create(spec(bands=tuple(f"band{i}" for i in range(128)), min_sites=3, masking="off"))
    return made


@pytest.fixture
def plan(federation: Federation) -> tables.Plan:
    found = federation.open_plan()
    assert found is not None
    return found


def big_tally(federation: Federation, plan: tables.Plan, seed: int) -> tuple[bytes, str]:
    """Make a tally whose file does not fit into one message."""
    rng = np.random.default_rng(seed)
    stage = codec.decode_plan(plan.published).stage
    random = {name: rng.integers(0, 2**50, shape).astype(np.int64) for name, shape in stage.shapes().items()}
    path = federation.folder / f"big{seed}"
    digest = codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), random)).hex()
    data = path.read_bytes()
    assert len(data) < quota(stage)
    return data, digest


def small_messages(data: bytes, size: int = 64 << 10) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def ledger(federation: Federation) -> list[tuple[str, str]]:
    with database.reading(federation.engine) as session:
        rows = session.scalars(select(tables.Upload).order_by(tables.Upload.id)).all()
        return [(row.site, row.digest) for row in rows]


def audited(federation: Federation, action: str) -> list[str]:
    with database.reading(federation.engine) as session:
        return list(session.scalars(select(tables.Audit.actor).filter_by(action=action)))


def test_an_upload_in_messages_is_counted_and_audited_together(federation: Federation, plan: tables.Plan) -> None:
    data, digest = big_tally(federation, plan, 1)
    *first, (offset, last) = small_messages(data)
    assert first
    assert federation.uploads.query(plan.fingerprint, "north", digest).size == 0
    for at, part in first:
        federation.uploads.append(plan.fingerprint, "north", at, part)
    assert ledger(federation) == []
    assert federation.uploads.finish(plan.fingerprint, "north", offset, last, digest) == len(data)
    assert ledger(federation) == [("north", digest)]
    assert audited(federation, "upload") == ["site/north"]
    assert federation.counted == 1
    with federation.store.open(digest) as blob:
        assert blob.read() == data


def test_after_every_crash_an_upload_resumes_at_the_committed_size(federation: Federation, plan: tables.Plan) -> None:
    data, digest = big_tally(federation, plan, 2)
    sent = 0
    for at, part in small_messages(data):
        federation.reopen()
        assert federation.uploads.query(plan.fingerprint, "north", digest).size == at
        if at + len(part) == len(data):
            federation.uploads.finish(plan.fingerprint, "north", at, part, digest)
        else:
            federation.uploads.append(plan.fingerprint, "north", at, part)
        sent += len(part)
    assert sent == len(data)
    federation.reopen()
    assert federation.uploads.query(plan.fingerprint, "north", digest).complete
    assert ledger(federation) == [("north", digest)]


def test_finishing_twice_counts_once(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally_of_zeros(plan)
    for _ in range(3):
        assert federation.uploads.finish(plan.fingerprint, "north", 0, data, digest) == len(data)
    assert ledger(federation) == [("north", digest)]
    assert audited(federation, "upload") == ["site/north"]


def test_a_crash_between_the_blob_and_the_ledger_counts_once_when_sent_again(
    federation: Federation, plan: tables.Plan
) -> None:
    data, digest = federation.tally_of_zeros(plan)
    path = federation.folder / "left-over"
    path.write_bytes(data)
    federation.store.put(path, digest)  # all that such a crash leaves
    federation.reopen()
    assert not federation.uploads.query(plan.fingerprint, "north", digest).complete
    federation.uploads.finish(plan.fingerprint, "north", 0, data, digest)
    assert ledger(federation) == [("north", digest)]


def test_a_replayed_upload_of_another_file_is_refused(federation: Federation, plan: tables.Plan) -> None:
    federation.uploads.finish(plan.fingerprint, "north", 0, *federation.tally_of_zeros(plan))
    data, digest = big_tally(federation, plan, 3)
    with pytest.raises(WindowClosed, match=r"another tally of this site .* is counted for this plan"):
        federation.uploads.query(plan.fingerprint, "north", digest)
    with pytest.raises(WindowClosed, match="a plan takes one a site"):
        federation.uploads.finish(plan.fingerprint, "north", 0, data[:MESSAGE], digest)
    assert len(ledger(federation)) == 1


def test_sites_with_equal_tallies_are_each_counted(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally_of_zeros(plan)
    for site in ("north", "south"):
        federation.uploads.finish(plan.fingerprint, site, 0, data, digest)
    assert ledger(federation) == [("north", digest), ("south", digest)]


def test_an_upload_that_goes_on_elsewhere_is_told_where_to_resume(federation: Federation, plan: tables.Plan) -> None:
    federation.uploads.append(plan.fingerprint, "north", 0, b"x" * 100)
    for offset in (0, 99, 101):
        with pytest.raises(OffsetMismatch, match="100 bytes are here; resume at 100") as caught:
            federation.uploads.append(plan.fingerprint, "north", offset, b"y")
        assert caught.value.committed_size == 100


def test_a_part_of_another_file_is_dropped(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally_of_zeros(plan)
    federation.uploads.query(plan.fingerprint, "north", "ab" * 32)
    federation.uploads.append(plan.fingerprint, "north", 0, b"of a file that was counted anew since")
    assert federation.uploads.query(plan.fingerprint, "north", "ab" * 32).size == 37
    assert federation.uploads.query(plan.fingerprint, "north", digest).size == 0
    federation.uploads.finish(plan.fingerprint, "north", 0, data, digest)
    assert ledger(federation) == [("north", digest)]


def altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, 9, 40, 300, -1])
def test_a_file_altered_on_the_way_is_refused_and_can_be_sent_again(
    federation: Federation, plan: tables.Plan, at: int
) -> None:
    data, digest = federation.tally_of_zeros(plan)
    with pytest.raises(ChecksumMismatch, match=r"announced was .*; send it again"):
        federation.uploads.finish(plan.fingerprint, "north", 0, altered(data, at % len(data)), digest)
    assert ledger(federation) == []
    assert federation.uploads.query(plan.fingerprint, "north", digest).size == 0
    federation.uploads.finish(plan.fingerprint, "north", 0, data, digest)
    assert ledger(federation) == [("north", digest)]


@pytest.mark.parametrize("twentieth", range(20))
def test_a_file_that_was_damaged_before_it_was_announced_is_refused(
    federation: Federation, plan: tables.Plan, twentieth: int
) -> None:
    data, _ = federation.tally_of_zeros(plan)
    bad = altered(data, len(data) * twentieth // 20)
    with pytest.raises(CairnError) as caught:
        federation.uploads.finish(plan.fingerprint, "north", 0, bad, hashlib.sha256(bad).hexdigest())
    assert isinstance(caught.value, ChecksumMismatch | PlanMismatch)
    assert ledger(federation) == []


def test_a_file_with_something_behind_it_is_refused(federation: Federation, plan: tables.Plan) -> None:
    data, _ = federation.tally_of_zeros(plan)
    bad = data + b"more"
    with pytest.raises(ChecksumMismatch, match="goes on after its last table"):
        federation.uploads.finish(plan.fingerprint, "north", 0, bad, hashlib.sha256(bad).hexdigest())


def test_a_tally_of_another_plan_is_refused(federation: Federation, plan: tables.Plan) -> None:
    federation.create(spec(name="other"))
    with database.reading(federation.engine) as session:
        other = records.find_plan(session, "other", "moments", 0)
    data, digest = federation.tally_of_zeros(other)
    with pytest.raises(PlanMismatch, match=f"the tally is of plan {other.fingerprint[:12]}"):
        federation.uploads.finish(plan.fingerprint, "north", 0, data, digest)
    assert ledger(federation) == []


@pytest.mark.parametrize(("table", "value"), [("pixels", -1), ("second", 2**54)])
def test_a_table_that_no_count_can_have_made_is_refused(
    federation: Federation, plan: tables.Plan, table: str, value: int
) -> None:
    stage = codec.decode_plan(plan.published).stage
    made = count(stage, np.zeros((128, 1), np.uint16))
    made[table].flat[0] = value
    path = federation.folder / "bad"
    digest = codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), made)).hex()
    with pytest.raises(PlanMismatch, match=f"table '{table}' holds cells"):
        federation.uploads.finish(plan.fingerprint, "north", 0, path.read_bytes(), digest)


def test_a_message_over_a_mebibyte_is_refused(federation: Federation, plan: tables.Plan) -> None:
    with pytest.raises(TooLarge, match="at most 1048576 are taken"):
        federation.uploads.append(plan.fingerprint, "north", 0, bytes(MESSAGE + 1))


def test_an_upload_larger_than_its_plan_allows_is_refused_and_dropped(
    federation: Federation, plan: tables.Plan
) -> None:
    limit = quota(codec.decode_plan(plan.published).stage)
    full = limit // MESSAGE * MESSAGE
    for at in range(0, full, MESSAGE):
        federation.uploads.append(plan.fingerprint, "north", at, bytes(MESSAGE))
    with pytest.raises(TooLarge, match=f"over the {limit} bytes that a tally of this plan can have"):
        federation.uploads.append(plan.fingerprint, "north", full, bytes(MESSAGE))
    assert federation.uploads.committed(plan.fingerprint, "north") == 0


def test_a_full_disk_keeps_no_half_message_and_the_upload_goes_on_when_there_is_room(
    federation: Federation, plan: tables.Plan
) -> None:
    data, digest = federation.tally_of_zeros(plan)
    federation.uploads.query(plan.fingerprint, "north", digest)
    [part] = (federation.folder / "spool" / plan.fingerprint / "north").iterdir()
    part.unlink()
    part.symlink_to("/dev/full")  # a real disk without room
    with pytest.raises(StorageFull, match="its disk is full; nothing was kept half, try again when there is room"):
        federation.uploads.append(plan.fingerprint, "north", 0, data)
    part.unlink()
    assert federation.uploads.query(plan.fingerprint, "north", digest).size == 0
    federation.uploads.finish(plan.fingerprint, "north", 0, data, digest)
    assert ledger(federation) == [("north", digest)]


def test_an_unknown_plan_is_refused(federation: Federation) -> None:
    with pytest.raises(UnknownPlan, match="no plan cdcdcdcdcdcd was published here"):
        federation.uploads.query("cd" * 32, "north", "ab" * 32)
    with pytest.raises(UnknownPlan):
        federation.uploads.append("cd" * 32, "north", 0, b"x")


def test_a_closed_stage_takes_no_upload_and_confirms_those_it_has(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally_of_zeros(plan)
    for site in ("north", "south", "west"):
        federation.uploads.finish(plan.fingerprint, site, 0, data, digest)
    federation.enrol("late")
    federation.coordinator.turn()
    with database.writing(federation.engine) as session:
        session.get_one(tables.Plan, plan.fingerprint).state = "closed"
    for attempt in (
        lambda: federation.uploads.query(plan.fingerprint, "late", digest),
        lambda: federation.uploads.finish(plan.fingerprint, "late", 0, data, digest),
    ):
        with pytest.raises(WindowClosed, match="the stage moments of breast, window 0, is closed"):
            attempt()
    assert federation.uploads.query(plan.fingerprint, "north", digest).complete
    assert federation.uploads.finish(plan.fingerprint, "north", 0, data, digest) == len(data)
    assert len(ledger(federation)) == 3


def test_closing_drops_the_parts_that_nobody_will_finish(federation: Federation, plan: tables.Plan) -> None:
    federation.uploads.append(plan.fingerprint, "north", 0, b"a beginning")
    federation.uploads.forget(plan.fingerprint)
    assert not (federation.folder / "spool" / plan.fingerprint).exists()


def test_a_restart_drops_the_parts_of_plans_that_were_closed_before_the_crash(
    federation: Federation, plan: tables.Plan
) -> None:
    federation.create(spec(name="other"))
    with database.reading(federation.engine) as session:
        other = records.find_plan(session, "other", "moments", 0)
    for one in (plan, other):
        federation.uploads.append(one.fingerprint, "north", 0, b"a beginning")
    with database.writing(federation.engine) as session:
        session.get_one(tables.Plan, plan.fingerprint).state = "closed"
    federation.reopen()
    federation.uploads.tidy()
    assert [folder.name for folder in (federation.folder / "spool").iterdir()] == [other.fingerprint]


def test_a_site_revoked_before_its_last_message_is_not_counted(federation: Federation, plan: tables.Plan) -> None:
    federation.revoke("north")
    with pytest.raises(Revoked, match="north was revoked while it sent its tally"):
        federation.uploads.finish(plan.fingerprint, "north", 0, *federation.tally_of_zeros(plan))
    assert ledger(federation) == []


def test_uploads_of_one_site_that_race_leave_one_row_and_a_whole_blob(
    federation: Federation, plan: tables.Plan
) -> None:
    data, digest = big_tally(federation, plan, 4)
    ready = threading.Barrier(4)
    failures: list[Exception] = []

    def send() -> None:
        ready.wait(10)
        try:
            for _ in range(1000):
                committed = federation.uploads.query(plan.fingerprint, "north", digest)
                if committed.complete:
                    return
                part = data[committed.size : committed.size + (64 << 10)]
                try:
                    if committed.size + len(part) == len(data):
                        federation.uploads.finish(plan.fingerprint, "north", committed.size, part, digest)
                    else:
                        federation.uploads.append(plan.fingerprint, "north", committed.size, part)
                except OffsetMismatch:
                    continue  # another one was faster
        except Exception as error:  # noqa: BLE001 - to be seen by the test
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert ledger(federation) == [("north", digest)]
    with federation.store.open(digest) as blob:
        assert blob.read() == data


def test_two_processes_that_finish_the_same_upload_count_it_once(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally_of_zeros(plan)
    others = [Federation(federation.engine, federation.folder / name, federation.clock) for name in ("a", "b")]
    ready = threading.Barrier(2)
    sizes: list[int] = []

    def finish(one: Federation) -> None:
        ready.wait(10)
        sizes.append(one.uploads.finish(plan.fingerprint, "north", 0, data, digest))

    threads = [threading.Thread(target=finish, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sizes == [len(data)] * 2
    assert ledger(federation) == [("north", digest)]


# Over the wire


@pytest.fixture
def site(running: Running, clock: Clock) -> tuple[Running, tables.Plan, TlsFiles]:
    """Return an aggregator with an open plan, and the credentials of the site north."""
    files = running.join("north")
    made = spec(min_sites=2)
    engine, now = running.aggregator.engine, clock()
    with database.writing(engine) as session:
        session.add(
            tables.Study(name=made.name, spec=made.model_dump(mode="json"), state="moments", window=0, created_at=now)
        )
        session.flush()
        records.publish(session, studies.moments_plan(made), now + timedelta(hours=1), now)
    with database.reading(engine) as session:
        plan = records.find_plan(session, "breast", "moments", 0)
    return running, plan, files


def wire_tally(plan: tables.Plan, folder: Path) -> tuple[bytes, bytes]:
    stage = codec.decode_plan(plan.published).stage
    fingerprint = bytes.fromhex(plan.fingerprint)
    digest = codec.write_tally(folder / "t", Tally(fingerprint, count(stage, tissue(1, 100))))
    return (folder / "t").read_bytes(), digest


def messages(plan: tables.Plan, data: bytes, digest: bytes, start: int = 0) -> Iterator[tallies_pb2.UploadRequest]:
    parts = [(at, part) for at, part in small_messages(data, 100) if at >= start]
    for number, (at, part) in enumerate(parts):
        yield tallies_pb2.UploadRequest(
            fingerprint=bytes.fromhex(plan.fingerprint) if not number else b"",
            offset=at,
            data=part,
            digest=digest if number == len(parts) - 1 else b"",
        )


def test_a_site_uploads_under_the_name_in_its_certificate(
    site: tuple[Running, tables.Plan, TlsFiles], tmp_path: Path
) -> None:
    running, plan, files = site
    data, digest = wire_tally(plan, tmp_path)
    with mtls_channel(running.aggregator.addresses.address, files) as channel, errors_from_wire():
        stub = tallies_pb2_grpc.TalliesStub(channel)
        query = tallies_pb2.QueryUploadRequest(fingerprint=bytes.fromhex(plan.fingerprint), digest=digest)
        assert not stub.QueryUpload(query, timeout=10).complete
        assert stub.Upload(messages(plan, data, digest), timeout=10).committed_size == len(data)
        assert stub.QueryUpload(query, timeout=10).complete
    with database.reading(running.aggregator.engine) as session:
        assert session.scalars(select(tables.Upload.site)).all() == ["north"]


def test_a_stream_that_breaks_keeps_what_arrived_whole(
    site: tuple[Running, tables.Plan, TlsFiles], tmp_path: Path
) -> None:
    running, plan, files = site
    data, digest = wire_tally(plan, tmp_path)
    query = tallies_pb2.QueryUploadRequest(fingerprint=bytes.fromhex(plan.fingerprint), digest=digest)
    hold = threading.Event()

    def broken() -> Iterator[tallies_pb2.UploadRequest]:
        for number, message in enumerate(messages(plan, data, digest)):
            if number == 1:
                hold.wait(30)
                return
            yield message

    with mtls_channel(running.aggregator.addresses.address, files) as channel:
        stub = tallies_pb2_grpc.TalliesStub(channel)
        with errors_from_wire():
            stub.QueryUpload(query, timeout=10)
        call = stub.Upload.future(broken(), timeout=30)
        wait_until(lambda: stub.QueryUpload(query, timeout=10).committed_size == 100, "the first message")
        call.cancel()
        hold.set()
        with errors_from_wire():
            assert stub.QueryUpload(query, timeout=10).committed_size == 100
            with pytest.raises(OffsetMismatch) as caught, errors_from_wire():
                stub.Upload(messages(plan, data, digest, 200), timeout=10)
            assert caught.value.committed_size == 100
            assert stub.Upload(messages(plan, data, digest, 100), timeout=10).committed_size == len(data)


def test_an_operator_cannot_upload(site: tuple[Running, tables.Plan, TlsFiles], tmp_path: Path) -> None:
    running, plan, _ = site
    data, digest = wire_tally(plan, tmp_path)
    operator = running.join("ada", "operator")
    with (
        mtls_channel(running.aggregator.addresses.address, operator) as channel,
        pytest.raises(WrongRole),
        errors_from_wire(),
    ):
        tallies_pb2_grpc.TalliesStub(channel).Upload(messages(plan, data, digest), timeout=10)


def test_the_merged_tally_of_a_stage_can_be_fetched_once_it_is_closed(
    site: tuple[Running, tables.Plan, TlsFiles], tmp_path: Path
) -> None:
    running, plan, north = site
    south = running.join("south")
    data, digest = wire_tally(plan, tmp_path)
    address = running.aggregator.addresses.address
    for files in (north, south):
        with mtls_channel(address, files) as channel, errors_from_wire():
            tallies_pb2_grpc.TalliesStub(channel).Upload(messages(plan, data, digest), timeout=10)

    def merged() -> bool:
        with database.reading(running.aggregator.engine) as session:
            return session.get(tables.Merge, plan.fingerprint) is not None

    wait_until(merged, "the merge")
    with mtls_channel(address, north) as channel, errors_from_wire():
        request = tallies_pb2.FetchMergedRequest(fingerprint=bytes.fromhex(plan.fingerprint))
        parts = tallies_pb2_grpc.TalliesStub(channel).FetchMerged(request, timeout=10)
        (tmp_path / "merged").write_bytes(b"".join(part.data for part in parts))
    found = codec.read_tally(tmp_path / "merged").tables
    single = count(codec.decode_plan(plan.published).stage, tissue(1, 100))
    for name, table in single.items():
        np.testing.assert_array_equal(found[name], 2 * table)


def test_a_watching_site_sees_plans_open_and_close_and_is_told_when_it_is_revoked(
    site: tuple[Running, tables.Plan, TlsFiles], tmp_path: Path
) -> None:
    running, plan, north = site
    with mtls_channel(running.aggregator.addresses.address, north) as channel:
        stub, request = plans_pb2_grpc.PlansStub(channel), plans_pb2.WatchRequest(version="1.2.3")
        stream = stub.Watch(request, timeout=60)
        first = next(stream)
        assert [hashlib.sha256(offer.plan).hexdigest() for offer in first.offers] == [plan.fingerprint]
        with database.writing(running.aggregator.engine) as session:
            session.get_one(tables.Plan, plan.fingerprint).state = "done"
        assert not next(stream).offers
        running.revoke("north")
        with pytest.raises((Revoked, Unreachable)), errors_from_wire():  # as it is hung up on, or looks by itself
            next(stream)
        with pytest.raises(Revoked, match="north was revoked by the operator: a test"), errors_from_wire():
            next(stub.Watch(request, timeout=60))
    with database.reading(running.aggregator.engine) as session:
        assert session.get_one(tables.Member, "north").version == "1.2.3"


def test_an_answer_and_a_report_are_kept_and_cleaned(site: tuple[Running, tables.Plan, TlsFiles]) -> None:
    running, plan, north = site
    fingerprint = bytes.fromhex(plan.fingerprint)
    with mtls_channel(running.aggregator.addresses.address, north) as channel, errors_from_wire():
        stub = plans_pb2_grpc.PlansStub(channel)
        stub.Answer(plans_pb2.AnswerRequest(fingerprint=fingerprint, accepted=False, reason="hours"), timeout=10)
        stub.Report(
            plans_pb2.ReportRequest(
                fingerprint=fingerprint,
                pixels_done=5,
                pixels_total=9,
                raw_bytes=77,
                problems=["a\nb\x1b[31m\u202ec", "", "x" * 1000, *[str(i) for i in range(30)]],
            ),
            timeout=10,
        )
        with pytest.raises(UnknownPlan), errors_from_wire():
            stub.Answer(plans_pb2.AnswerRequest(fingerprint=b"\x01" * 32, accepted=True), timeout=10)
    with database.reading(running.aggregator.engine) as session:
        answer = session.get_one(tables.Answer, (plan.fingerprint, "north"))
        assert (answer.accepted, answer.reason) == (False, "hours")
        progress = session.get_one(tables.Progress, (plan.fingerprint, "north"))
        assert (progress.pixels_done, progress.pixels_total, progress.raw_bytes) == (5, 9, 77)
        member = session.get_one(tables.Member, "north")
        assert member.working_fingerprint == plan.fingerprint
        assert member.problems == [str(i) for i in range(10, 30)]


def test_a_problem_is_one_short_line_without_control_characters() -> None:
    assert plain_text("a\nb\x1b[31m\u202ec", 300) == "a b [31m c"
    assert plain_text("x" * 1000, 300) == "x" * 300


def test_with_a_key_nothing_of_half_an_upload_is_on_the_disk_in_plain(
    engine: Engine, tmp_path: Path, clock: Clock
) -> None:
    made = Federation(engine, tmp_path, clock)
    made.enrol("north", "south", "west")
    made.create(spec(bands=tuple(f"band{i}" for i in range(128)), min_sites=3, masking="off"))
    plan = made.open_plan()
    assert plan is not None
    data, digest = big_tally(made, plan, 1)
    [first, second, *rest] = small_messages(data, 50_001)

    def disk() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file())

    made.uploads.query(plan.fingerprint, "north", digest)
    made.uploads.append(plan.fingerprint, "north", *first)
    assert first[1][1000:1100] in disk()
    made.sealer = open_data_keys(tmp_path / "data-keys.json", [bytes(32)])
    made.reopen()  # a key is set, and what lay there in plain goes
    assert made.uploads.query(plan.fingerprint, "north", digest).size == 0
    made.uploads.append(plan.fingerprint, "north", *first)
    made.reopen()
    assert made.uploads.query(plan.fingerprint, "north", digest).size == len(first[1])
    made.uploads.append(plan.fingerprint, "north", *second)
    assert len(disk()) > 100_000
    assert not any(data[at : at + 16] in disk() for at in range(0, 100_000, 1000))
    for offset, one in rest[:-1]:
        made.uploads.append(plan.fingerprint, "north", offset, one)
    made.uploads.finish(plan.fingerprint, "north", *rest[-1], digest)
    assert ledger(made) == [("north", digest)]
    with made.store.open(digest) as file:
        assert file.read() == data
