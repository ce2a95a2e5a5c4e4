"""The bytes that all parties agree on."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import codec
from cairn.errors import CairnError, ChecksumMismatch, PlanError, PlanMismatch
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, Plan, RangesPlan, RecoveryPlan, Stage, fingerprint
from cairn.plan import prefix_levels as levels_of
from cairn.sketch import SketchSpec
from cairn.tally import Tally, zeros
from cairn.v1 import plan_pb2, tallies_pb2

from ..golden import make_plans

GOLDEN = Path(__file__).parents[1] / "golden"
FINGERPRINT = b"\x07" * 32


# Plans


@pytest.mark.parametrize("stage", make_plans.STAGES, ids=lambda stage: stage.stage)
def test_a_plan_s_published_bytes_are_the_golden_ones(stage: Stage) -> None:
    assert codec.encode_plan(make_plans.plan(stage)) == (GOLDEN / f"{stage.stage}.plan").read_bytes()


@pytest.mark.parametrize("stage", make_plans.STAGES, ids=lambda stage: stage.stage)
def test_a_golden_plan_reads_back_as_it_was_published(stage: Stage) -> None:
    published = (GOLDEN / f"{stage.stage}.plan").read_bytes()
    read = codec.decode_plan(published)
    assert (read.study, read.window, read.stage.stage) == ("breast", 2, stage.stage)
    assert dict(read.stage.shapes()) == dict(stage.shapes())
    assert codec.encode_plan(read) == published


@st.composite
def quantisers(draw: st.DrawFn) -> Quantiser:
    bands = draw(st.integers(1, 12))
    components = draw(st.integers(1, min(6, bands)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1, 0, components)
    return Quantiser(
        PixelLevels(tuple(f"b{i}" for i in range(bands)), draw(st.floats(-1e6, 1e6)), draw(st.floats(1e-6, 1e6))),
        rng.integers(-(2**14), 2**14 + 1, (components, bands), np.int32),
        draw(st.floats(0, 1e12)),
        low,
        low + rng.uniform(0.01, 1, components),
        draw(st.integers(2, 256)),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    q = draw(quantisers())
    size = min(q.keyspace.size, 2**32)
    keys = np.array(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))), np.uint64)
    clusters = draw(st.integers(1, 5))
    dense, sketches = levels_of(q.keyspace)
    stage: Stage = draw(
        st.sampled_from(
            [
                MomentsPlan(q.pixels),
                RangesPlan(q.pixels, q.projection),
                CountsPlan(q, SketchSpec(3, 50, b"s" * 32), dense, sketches),
                RecoveryPlan(q, keys),
                CodebookPlan(q, keys, (keys % np.uint64(clusters)).astype(np.uint8), (0,) * clusters, ("ö",)),
            ]
        )
    )
    return Plan(draw(st.sampled_from(["a", "breast-7"])), draw(st.integers(0, 2**32 - 1)), stage)


@given(plans())
@settings(deadline=None)
def test_any_plan_reads_back_to_the_same_bytes(plan: Plan) -> None:
    published = codec.encode_plan(plan)
    assert codec.encode_plan(codec.decode_plan(published)) == published


@given(plans(), st.data())
@settings(deadline=None)
def test_altered_plan_bytes_are_another_plan_or_a_plan_error(plan: Plan, data: st.DataObject) -> None:
    published = bytearray(codec.encode_plan(plan))
    at = data.draw(st.integers(0, len(published) - 1))
    published[at] ^= data.draw(st.integers(1, 255))
    try:
        codec.decode_plan(bytes(published))
    except PlanError:
        return
    assert fingerprint(bytes(published)) != fingerprint(codec.encode_plan(plan))


def test_a_plan_of_an_unknown_stage_asks_for_an_update() -> None:
    with pytest.raises(PlanError, match="no stage that this version knows; update Cairn"):
        codec.decode_plan(plan_pb2.Plan(study="a").SerializeToString())


def test_a_codebook_with_a_cluster_over_a_byte_is_a_plan_error() -> None:
    message = plan_pb2.Plan.FromString((GOLDEN / "codebook.plan").read_bytes())
    message.codebook.clusters[0] = 300
    with pytest.raises(PlanError):
        codec.decode_plan(message.SerializeToString())


# Tally files


def write(folder: Path, tally: Tally) -> Path:
    codec.write_tally(folder / "t.tally", tally)
    return folder / "t.tally"


def narrow_and_wide() -> Tally:
    rng = np.random.default_rng(0)
    return Tally(
        FINGERPRINT,
        {
            "narrow": rng.integers(-(2**31), 2**31, (3, 7)),
            "wide": rng.integers(-(2**62), 2**62, (2, 2, 2)),
            "empty": np.zeros((0,), np.int64),
            "one": np.array([2**31], np.int64),
        },
    )


def test_the_golden_tally_reads_as_the_tables_that_it_was_made_of() -> None:
    read = codec.read_tally(GOLDEN / "counts.tally")
    expected = make_plans.tally()
    assert read.fingerprint == expected.fingerprint
    assert list(read.tables) == sorted(expected.tables)
    for name, table in expected.tables.items():
        np.testing.assert_array_equal(read.tables[name], table)


def test_a_tally_written_today_has_the_golden_header(tmp_path: Path) -> None:
    # All but the stored sizes, which are the compressor's business.
    headers = []
    for path in (GOLDEN / "counts.tally", write(tmp_path, make_plans.tally())):
        with path.open("rb") as file:
            header = codec.read_header(file)
        for table in header.tables:
            table.ClearField("stored_size")
        headers.append(header)
    assert headers[0] == headers[1]
    assert [table.dtype for table in headers[0].tables] == ["<i4", "<i4", "<i8", "<i4", "<i4"]


def test_a_tally_reads_back_with_narrow_tables_stored_in_half_the_bytes(tmp_path: Path) -> None:
    tally = narrow_and_wide()
    path = write(tmp_path, tally)
    read = codec.read_tally(path)
    for name, table in tally.tables.items():
        assert read.tables[name].dtype == np.int64
        np.testing.assert_array_equal(read.tables[name], table)
    with path.open("rb") as file:
        stored = {table.name: table.dtype for table in codec.read_header(file).tables}
    assert stored == {"narrow": "<i4", "wide": "<i8", "empty": "<i4", "one": "<i8"}


def test_the_digest_is_that_of_the_file_and_the_same_for_the_same_tables(tmp_path: Path) -> None:
    digests = {codec.write_tally(tmp_path / name, narrow_and_wide()) for name in ("a", "b")}
    assert digests == {hashlib.sha256((tmp_path / "a").read_bytes()).digest()}


def test_tables_in_borrowed_buffers_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, narrow_and_wide())
    buffers = [np.full(1000, 255, np.uint8), np.full(1000, 255, np.uint8)]
    with path.open("rb") as file:
        header = codec.read_header(file)
        found = {
            name: table.copy() for name, table in codec.read_tables(file, header.tables, hashed=False, buffers=buffers)
        }
    for name, table in narrow_and_wide().tables.items():
        np.testing.assert_array_equal(found[name], table)


@pytest.mark.parametrize("hashed", [True, False])
def test_every_altered_bit_behind_the_header_is_noticed(tmp_path: Path, *, hashed: bool) -> None:
    whole = write(tmp_path, Tally(FINGERPRINT, {"a": np.arange(50), "b": np.arange(2**40, 2**40 + 20)})).read_bytes()
    start = 12 + int.from_bytes(whole[8:12], "little")
    for at in range(start, len(whole)):
        file = io.BytesIO(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        header = codec.read_header(file)
        with pytest.raises(ChecksumMismatch, match="is not what its checksum says; send it again"):
            list(codec.read_tables(file, header.tables, hashed=hashed))


def test_every_altered_byte_of_the_header_is_noticed(tmp_path: Path) -> None:
    stage = make_plans.STAGES[2]
    tally = make_plans.tally()
    whole = write(tmp_path, tally).read_bytes()
    for at in range(12 + int.from_bytes(whole[8:12], "little")):
        file = io.BytesIO(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((ChecksumMismatch, PlanMismatch)):
            read_whole(file, tally.fingerprint, stage)


def read_whole(file: io.BytesIO, expected: bytes, stage: Stage) -> None:
    header = codec.read_header(file)
    codec.check_header(header, expected, stage)
    list(codec.read_tables(file, header.tables))
    if file.read(1):
        raise ChecksumMismatch("bytes behind the last table")


def test_a_truncated_file_is_noticed_at_every_length(tmp_path: Path) -> None:
    whole = write(tmp_path, narrow_and_wide()).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "short").write_bytes(whole[:size])
        with pytest.raises(CairnError):
            codec.read_tally(tmp_path / "short")


def test_a_table_that_unpacks_to_more_than_its_shape_says_is_refused_without_unpacking_it_all(tmp_path: Path) -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    header = tallies_pb2.TableHeader(
        name="a", dtype="<i8", shape=[2], sha256=bytes(32), stored_size=len(bomb), compression="planes+zstd"
    )
    with pytest.raises(ChecksumMismatch):
        list(codec.read_tables(io.BytesIO(bomb), [header]))


@pytest.mark.parametrize(("dtype", "compression"), [("<f4", "planes+zstd"), ("|O", "none"), ("<i8", "zstd")])
def test_a_table_of_an_unknown_kind_is_refused(dtype: str, compression: str) -> None:
    header = tallies_pb2.TableHeader(name="a", dtype=dtype, shape=[1], stored_size=8, compression=compression)
    with pytest.raises(ChecksumMismatch, match="unknown"):
        list(codec.read_tables(io.BytesIO(bytes(8)), [header]))


def test_an_uncompressed_table_is_read_too() -> None:
    table = np.arange(6, dtype="<i4")
    header = tallies_pb2.TableHeader(
        name="a",
        dtype="<i4",
        shape=[2, 3],
        sha256=hashlib.sha256(table.tobytes()).digest(),
        stored_size=24,
        compression="none",
    )
    [(name, read)] = codec.read_tables(io.BytesIO(table.tobytes()), [header])
    assert name == "a"
    np.testing.assert_array_equal(read, table.reshape(2, 3))


def test_a_later_version_of_the_file_asks_for_an_update() -> None:
    head = tallies_pb2.TallyHeader(version=2).SerializeToString()
    file = io.BytesIO(b"CAIRNTLY" + len(head).to_bytes(4, "little") + head)
    with pytest.raises(PlanMismatch, match="has version 2, this program reads 1; update Cairn"):
        codec.read_header(file)


def test_a_file_that_is_no_tally_is_refused() -> None:
    with pytest.raises(ChecksumMismatch, match="does not begin with CAIRNTLY"):
        codec.read_header(io.BytesIO(b"II*\0 this is a TIFF"))


def test_a_header_that_claims_to_be_huge_is_not_read_into_memory() -> None:
    with pytest.raises(ChecksumMismatch):
        codec.read_header(io.BytesIO(b"CAIRNTLY\xff\xff\xff\xff" + os.urandom(64)))


def test_a_tally_of_other_tables_than_the_plan_s_is_refused(tmp_path: Path) -> None:
    stage = make_plans.STAGES[3]
    made = zeros(stage)
    del made["foreground"]
    with write(tmp_path, Tally(FINGERPRINT, made)).open("rb") as file:
        header = codec.read_header(file)
    with pytest.raises(PlanMismatch, match="the plan's recovery stage has"):
        codec.check_header(header, FINGERPRINT, stage)


def test_a_table_named_twice_is_refused(tmp_path: Path) -> None:
    stage = make_plans.STAGES[3]
    with write(tmp_path, Tally(FINGERPRINT, zeros(stage))).open("rb") as file:
        header = codec.read_header(file)
    header.tables.append(header.tables[0])
    with pytest.raises(PlanMismatch):
        codec.check_header(header, FINGERPRINT, stage)


def test_a_tally_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path, narrow_and_wide())
    before = path.read_bytes()
    tmp_path.joinpath(f".{path.name}.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        codec.write_tally(path, Tally(FINGERPRINT, {"a": np.random.default_rng(0).integers(0, 2**62, 100_000)}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
