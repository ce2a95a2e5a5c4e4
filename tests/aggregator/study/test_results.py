"""What people read of a study."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aggregator.study import results
from aggregator.study.embedding import Map
from aggregator.study.recovery import Verified
from cairn.keyspace import KeySpace
from cairn.moments import split

KEYSPACE = KeySpace((22, 22, 22))
FOUND = Verified(np.array([22 * 22 * 5 + 3, 7, 9000], np.uint64), np.array([30, 20, 1]), 60)
MAP = Map(
    np.array([[0, 1], [2, 3], [4, 5]], np.float32),
    np.array([0, 1, 1], np.uint8),
    np.array([30, 21]),
    np.array([[0.5, 0.25], [0.0, 1.0]]),
    ("tumour", "other"),
)


@pytest.fixture
def parquet() -> bytes:
    return results.heavy_hitters(FOUND, MAP, KEYSPACE)


def test_the_table_has_a_row_for_each_key_with_its_digits_count_place_cluster_and_state(parquet: bytes) -> None:
    table = pq.read_table(io.BytesIO(parquet))
    assert table.to_pydict() == {
        "key": [2423, 7, 9000],
        "d0": [5, 0, 18],
        "d1": [0, 0, 13],
        "d2": [3, 7, 2],
        "count": [30, 20, 1],
        "x": [0.0, 2.0, 4.0],
        "y": [1.0, 3.0, 5.0],
        "cluster": [0, 1, 1],
        "state": ["tumour", "other", "other"],
    }
    assert table.schema.field("key").type == pa.uint64()
    assert table.schema.field("count").type == pa.int64()


def test_renaming_states_changes_nothing_else(parquet: bytes) -> None:
    renamed = pq.read_table(io.BytesIO(results.with_states(parquet, ["stroma", "tumour"])))
    assert renamed.column("state").to_pylist() == ["stroma", "tumour", "tumour"]
    assert renamed.drop(["state"]) == pq.read_table(io.BytesIO(parquet)).drop(["state"])
    assert renamed.column_names == pq.read_table(io.BytesIO(parquet)).column_names


def test_the_same_map_is_the_same_file(parquet: bytes) -> None:
    assert results.heavy_hitters(FOUND, MAP, KEYSPACE) == parquet


def test_codes_are_the_keys_and_clusters_of_the_table(parquet: bytes) -> None:
    codes = results.codes(parquet)
    assert (codes.keys.dtype, codes.clusters.dtype) == (np.uint64, np.uint8)
    assert codes.keys.tolist() == [2423, 7, 9000]
    assert codes.clusters.tolist() == [0, 1, 1]


def test_csv_has_a_head_line_and_the_same_rows(parquet: bytes) -> None:
    head, first, *_ = results.as_csv(parquet).decode().splitlines()
    assert head.replace('"', "") == "key,d0,d1,d2,count,x,y,cluster,state"
    assert first.replace('"', "") == "2423,5,0,3,30,0,1,0,tumour"


def test_exact_profiles_are_mean_levels_and_a_cluster_without_pixels_has_none() -> None:
    sums = np.array([[2**40, 30], [0, 0]])
    tables = {"pixels": np.array([5]), "clusters": np.array([4, 0]), "profile": split(sums)}
    first, second = results.exact_rows(results.cluster_rows(MAP), tables)
    assert first == {"state": "tumour", "size": 30, "pixels": 4, "profile": [2**38, 7.5], "profile_is": "levels"}
    assert second["profile"] == [None, None]
    assert second["pixels"] == 0
