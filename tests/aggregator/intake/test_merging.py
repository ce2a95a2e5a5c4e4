"""The merged tally is the exact sum of its uploads, in flat memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aggregator.intake import merging
from aggregator.intake.store import BlobStore
from cairn import codec
from cairn.errors import CairnError, ChecksumMismatch, PlanMismatch
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser
from cairn.plan import CountsPlan, Plan, fingerprint, prefix_levels
from cairn.sketch import SketchSpec
from cairn.tally import Tables, Tally, zeros


def counts_plan(width: int, depth: int = 4) -> Plan:
    pixels = PixelLevels(("a", "b", "c", "d", "e", "f", "g", "h"))
    q = Quantiser(pixels, np.eye(8, dtype=np.int32) * WEIGHT_ONE, 0.0, -np.ones(8), np.ones(8), 22)
    dense, sketches = prefix_levels(q.keyspace, dense_bits=10, step=13)
    return Plan("merge", 0, CountsPlan(q, SketchSpec(depth, width, bytes(32)), dense, sketches))


PLAN = counts_plan(500)
NAME = fingerprint(codec.encode_plan(PLAN))


def random_tables(seed: int, *, wide: bool = False) -> Tables:
    rng = np.random.default_rng(seed)
    top = 2**50 if wide else 1000
    return {name: rng.integers(-top, top, table.shape) for name, table in zeros(PLAN.stage).items()}


def put(store: BlobStore, folder: Path, tables: Tables, plan: bytes = NAME) -> str:
    digest = codec.write_tally(folder / "t", Tally(plan, tables)).hex()
    store.put(folder / "t", digest)
    return digest


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs")


def test_the_merge_is_the_exact_sum_whatever_the_width_of_the_stored_cells(store: BlobStore, tmp_path: Path) -> None:
    made = [random_tables(seed, wide=seed % 2 == 0) for seed in range(5)]
    merged = merging.merge(store, [put(store, tmp_path, tables) for tables in made], NAME.hex(), PLAN.stage)
    for name, table in merged.tables.items():
        np.testing.assert_array_equal(table, sum(tables[name] for tables in made))


def test_the_merge_and_its_file_do_not_depend_on_the_order_of_the_uploads(store: BlobStore, tmp_path: Path) -> None:
    digests = [put(store, tmp_path, random_tables(seed)) for seed in range(4)]
    files = {
        merging.store_merged(store, merging.merge(store, order, NAME.hex(), PLAN.stage), tmp_path)
        for order in (digests, digests[::-1])
    }
    assert len(files) == 1


def test_equal_tallies_of_two_sites_are_both_added(store: BlobStore, tmp_path: Path) -> None:
    tables = random_tables(0)
    digest = put(store, tmp_path, tables)
    merged = merging.merge(store, [digest, digest], NAME.hex(), PLAN.stage)
    np.testing.assert_array_equal(merged.tables["dense"], 2 * tables["dense"])


def test_the_merge_of_nothing_is_zero(store: BlobStore) -> None:
    assert not any(table.any() for table in merging.merge(store, [], NAME.hex(), PLAN.stage).tables.values())


def test_a_merged_tally_comes_back_from_the_store(store: BlobStore, tmp_path: Path) -> None:
    tally = Tally(NAME, random_tables(7))
    loaded = merging.load_merged(store, merging.store_merged(store, tally, tmp_path), NAME.hex(), PLAN.stage)
    for name, table in tally.tables.items():
        np.testing.assert_array_equal(loaded.tables[name], table)
        assert loaded.tables[name].dtype == np.int64


def test_an_upload_of_another_plan_stops_the_merge(store: BlobStore, tmp_path: Path) -> None:
    foreign = put(store, tmp_path, random_tables(0), plan=b"\1" * 32)
    with pytest.raises(PlanMismatch, match="the tally is of plan 0101"):
        merging.merge(store, [foreign], NAME.hex(), PLAN.stage)


def test_a_blob_damaged_on_the_disk_stops_the_merge(store: BlobStore, tmp_path: Path) -> None:
    digest = put(store, tmp_path, random_tables(0))
    path = tmp_path / "blobs" / digest[:2] / digest
    whole = path.read_bytes()
    start = 12 + int.from_bytes(whole[8:12], "little")
    for at in np.linspace(start, len(whole) - 1, 30).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ChecksumMismatch):
            merging.merge(store, [digest], NAME.hex(), PLAN.stage)


def test_a_blob_that_is_gone_stops_the_merge(store: BlobStore) -> None:
    with pytest.raises(CairnError, match="is missing from the aggregator's store"):
        merging.merge(store, ["ab" * 32], NAME.hex(), PLAN.stage)


PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from aggregator.intake import merging
from aggregator.intake.store import BlobStore
from cairn import codec
from cairn.plan import fingerprint
folder, digest, sites = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
published = (folder / "plan").read_bytes()
store, stage = BlobStore(f"file://{folder}/blobs"), codec.decode_plan(published).stage
tally = merging.merge(store, [digest] * sites, fingerprint(published).hex(), stage)
assert tally.tables["pixels"][0] == sites
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    plan = counts_plan(200_000)
    published = codec.encode_plan(plan)
    (tmp_path / "plan").write_bytes(published)
    tables = zeros(plan.stage)
    rng = np.random.default_rng(0)
    for table in tables.values():
        table += rng.integers(0, 100, table.shape)
    tables["pixels"][0] = 1
    digest = put(BlobStore(f"file://{tmp_path}/blobs"), tmp_path, tables, fingerprint(published))

    def peak_bytes(sites: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), digest, str(sites)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return int(done.stdout) * 1024

    one_table = 8 * 4 * 200_000
    assert peak_bytes(20) - peak_bytes(2) < one_table
