"""What a study found, as people and pages read it: the heavy hitters' table, and the clusters of the results object.

The results object is described in docs/DATA_MODEL.md.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from aggregator.study.embedding import Map
from aggregator.study.recovery import Verified
from cairn.keyspace import KeySpace
from cairn.moments import exact
from cairn.tally import Tables


@dataclass(frozen=True)
class Codes:
    """What a codebook is made of.

    keys      uint64[k]
    clusters  uint8[k]
    """

    keys: npt.NDArray[np.uint64]
    clusters: npt.NDArray[np.uint8]


def heavy_hitters(found: Verified, made: Map, keyspace: KeySpace) -> bytes:
    """Write the heavy hitters as a Parquet file: key, d0 …, count, x, y, cluster, state; by falling count."""
    digits = keyspace.decode(found.keys)
    columns: dict[str, Any] = {"key": found.keys}
    columns.update({f"d{i}": digits[:, i] for i in range(digits.shape[1])})
    columns.update(
        count=found.counts,
        x=made.points[:, 0],
        y=made.points[:, 1],
        cluster=made.clusters.astype(np.int16),
        state=[made.states[c] for c in made.clusters],
    )
    return _parquet(pa.table(columns))


def with_states(parquet: bytes, states: Sequence[str]) -> bytes:
    """Write the table anew with other states of the clusters."""
    table = pq.read_table(io.BytesIO(parquet))
    clusters = table.column("cluster").to_numpy()
    column = pa.array([states[c] for c in clusters])
    return _parquet(table.set_column(table.column_names.index("state"), "state", column))


def codes(parquet: bytes) -> Codes:
    """Read keys and clusters of the table."""
    table = pq.read_table(io.BytesIO(parquet), columns=["key", "cluster"])
    return Codes(table.column("key").to_numpy(), table.column("cluster").to_numpy().astype(np.uint8))


def as_csv(parquet: bytes) -> bytes:
    """Write the table as CSV with a head line."""
    into = io.BytesIO()
    pa_csv.write_csv(pq.read_table(io.BytesIO(parquet)), into)
    return into.getvalue()


def cluster_rows(made: Map) -> list[dict[str, Any]]:
    """Describe the clusters: state, size in heavy hitters' pixels, and the estimated profile's direction."""
    return [
        {"state": state, "size": int(size), "profile": [float(value) for value in profile], "profile_is": "direction"}
        for state, size, profile in zip(made.states, made.sizes, made.profiles, strict=True)
    ]


def exact_rows(rows: Sequence[dict[str, Any]], tables: Tables, least: int = 1) -> list[dict[str, Any]]:
    """Put the codebook stage's exact numbers into the clusters: all pixels, and each band's mean level.

        profile_cb = Σ level_b over the cluster's pixels / number of its pixels

    tables  of a codebook tally, merged
    least   a cluster with fewer pixels is shown as one without any: it has no profile
    """
    pixels, sums = tables["clusters"], exact(tables["profile"])
    return [
        {
            **row,
            "pixels": int(n) if n >= least else 0,
            "profile": [float(total / int(n)) if n >= least else None for total in levels],
            "profile_is": "levels",
        }
        for row, n, levels in zip(rows, pixels, sums, strict=True)
    ]


def _parquet(table: pa.Table) -> bytes:
    into = io.BytesIO()
    pq.write_table(table, into, compression="zstd")
    return into.getvalue()
