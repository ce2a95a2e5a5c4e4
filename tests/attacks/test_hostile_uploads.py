"""What a hostile or broken site, or somebody on its line, can try with an upload."""

import hashlib
import struct
import tracemalloc
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import zstandard

from aggregator import tables
from aggregator.intake.uploads import MESSAGE
from cairn import codec
from cairn.errors import CairnError, ChecksumMismatch, OffsetMismatch, PlanMismatch, TooLarge, WindowClosed
from cairn.tally import Tally
from cairn.v1 import tallies_pb2
from tests.aggregator.conftest import Clock, clock
from tests.aggregator.simulated import Federation, count, spec, tissue
from tests.faults.ground import Ground

__all__ = ["clock"]


@pytest.fixture
def federation(tmp_path: Path, clock: Clock) -> Federation:
    ground = Ground(tmp_path)
    made = Federation(ground.engine, ground.cleared(), clock)
    made.enrol("north", "south", "west")
    made.create(spec(min_sites=2, masking="off"))
    return made


@pytest.fixture
def plan(federation: Federation) -> tables.Plan:
    found = federation.open_plan()
    assert found is not None
    return found


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(federation: Federation, plan: tables.Plan, data: bytes) -> CairnError:
    """Upload a file with its own digest; return the refusal."""
    with pytest.raises(CairnError) as caught:
        federation.send(plan, "north", data, sha(data))
    assert not federation.uploads.query(plan.fingerprint, "north", sha(data)).complete
    return caught.value


def parts_of(data: bytes) -> tuple[tallies_pb2.TallyHeader, bytes]:
    (size,) = struct.unpack_from("<I", data, 8)
    return tallies_pb2.TallyHeader.FromString(data[12 : 12 + size]), data[12 + size :]


def file_of(header: tallies_pb2.TallyHeader, body: bytes) -> bytes:
    head = header.SerializeToString(deterministic=True)
    return codec.MAGIC + struct.pack("<I", len(head)) + head + body


def test_a_truncated_upload_is_refused_at_every_length(federation: Federation, plan: tables.Plan) -> None:
    data, digest = federation.tally(plan, tissue(1, 200))
    for kept in sorted({0, 1, 7, 8, 11, 12, 13, *range(20, len(data), max(1, len(data) // 25)), len(data) - 1}):
        with pytest.raises(ChecksumMismatch):
            federation.uploads.finish(plan.fingerprint, "north", 0, data[:kept], digest)
        assert isinstance(refused(federation, plan, data[:kept]), (ChecksumMismatch, PlanMismatch))
    federation.send(plan, "north", data, digest)


def test_messages_in_another_order_or_twice_are_refused_and_the_upload_goes_on(
    federation: Federation, plan: tables.Plan
) -> None:
    data, digest = federation.tally(plan, tissue(1, 200))
    a, b = data[:40], data[40:80]
    federation.uploads.query(plan.fingerprint, "north", digest)
    with pytest.raises(OffsetMismatch):
        federation.uploads.append(plan.fingerprint, "north", 40, b)
    federation.uploads.append(plan.fingerprint, "north", 0, a)
    for _ in range(2):
        with pytest.raises(OffsetMismatch) as caught:
            federation.uploads.append(plan.fingerprint, "north", 0, a)
        assert caught.value.committed_size == 40
    federation.uploads.append(plan.fingerprint, "north", 40, b)
    federation.uploads.finish(plan.fingerprint, "north", 80, data[80:], digest)
    assert federation.uploads.query(plan.fingerprint, "north", digest).complete


def test_a_bomb_is_refused_in_little_memory(federation: Federation, plan: tables.Plan) -> None:
    header, _ = parts_of(federation.tally_of_zeros(plan)[0])
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 28))  # 256 MiB of zeros in some kilobytes
    for table in header.tables:
        table.stored_size = len(bomb)
    tracemalloc.start()
    try:
        error = refused(federation, plan, file_of(header, bomb * len(header.tables)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, ChecksumMismatch)
    assert peak < 32 << 20


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 63, 1 << 63), (0,), ()])
def test_a_header_that_claims_other_tables_is_refused_before_any_room_is_made(
    federation: Federation, plan: tables.Plan, shape: tuple[int, ...]
) -> None:
    header, body = parts_of(federation.tally_of_zeros(plan)[0])
    del header.tables[0].shape[:]
    header.tables[0].shape.extend(shape)
    assert isinstance(refused(federation, plan, file_of(header, body)), PlanMismatch)


def test_many_tables_of_one_name_and_none_at_all_are_refused(federation: Federation, plan: tables.Plan) -> None:
    header, body = parts_of(federation.tally_of_zeros(plan)[0])
    first = header.tables[0]
    many = tallies_pb2.TallyHeader(version=header.version, fingerprint=header.fingerprint, tables=[first] * 5000)
    none = tallies_pb2.TallyHeader(version=header.version, fingerprint=header.fingerprint)
    for one in (many, none):
        assert isinstance(refused(federation, plan, file_of(one, body)), (PlanMismatch, ChecksumMismatch))


@pytest.mark.parametrize("cell", [2**62, -1, 2**53 + 1, -(2**63)])
def test_counters_that_no_pixels_can_make_are_refused(federation: Federation, plan: tables.Plan, cell: int) -> None:
    stage = codec.decode_plan(plan.published).stage
    tally = count(stage, tissue(1, 200))
    next(iter(tally.values())).reshape(-1)[0] = cell
    path = federation.folder / "hostile"
    codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), tally))
    assert isinstance(refused(federation, plan, path.read_bytes()), PlanMismatch)


def test_a_site_that_never_finishes_neither_fills_the_disk_nor_holds_the_stage(
    federation: Federation, plan: tables.Plan, clock: Clock
) -> None:
    for number in range(2):  # as much as a tally of this plan can have, and then some
        with pytest.raises(TooLarge) if number else nullcontext():
            federation.uploads.append(plan.fingerprint, "west", number * MESSAGE, bytes(MESSAGE))
    federation.uploads.append(plan.fingerprint, "west", 0, b"and again")
    for site, seed in (("north", 1), ("south", 2)):
        federation.send(plan, site, *federation.tally(plan, tissue(seed, 200)))
    clock.advance(spec().stage_deadline + timedelta(minutes=1))
    federation.coordinator.turn()
    with pytest.raises(WindowClosed):
        federation.uploads.append(plan.fingerprint, "west", 9, b"more")
    assert not list((federation.folder / "spool").glob(f"{plan.fingerprint}/*/*"))


def test_the_tally_of_another_site_counts_for_the_sender_and_once(federation: Federation, plan: tables.Plan) -> None:
    """A copy of another site's plain tally is a false tally of the copier's own; masks make such copies useless."""
    data, digest = federation.tally(plan, tissue(1, 200))
    federation.send(plan, "north", data, digest)
    federation.send(plan, "south", data, digest)
    federation.send(plan, "south", data, digest)
    assert federation.counted == 2


def test_one_file_is_no_other_plans(federation: Federation, plan: tables.Plan) -> None:
    data, _ = federation.tally(plan, tissue(1, 200))
    header, body = parts_of(data)
    header.fingerprint = bytes(32)
    assert isinstance(refused(federation, plan, file_of(header, body)), PlanMismatch)
