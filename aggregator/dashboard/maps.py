"""A study's results as the pages need them: key numbers, and figures from the heavy hitters' Parquet file."""

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from sqlalchemy import Engine, select

from aggregator.dashboard import plots, words
from aggregator.dashboard.views import StageView
from aggregator.database import reading
from aggregator.intake.store import BlobStore
from aggregator.tables import Plan, Study
from cairn.codec import decode_plan
from cairn.palette import cluster_colour
from cairn.pixels import Quantiser
from cairn.plan import CodebookPlan, CountsPlan, RecoveryPlan

_KEPT = 4  # studies' tables kept in memory; 20,000 heavy hitters are 2 MB


@dataclass(frozen=True)
class ClusterView:
    """One cluster as the legend shows it."""

    number: int
    state: str
    colour: str
    count: int
    bands: tuple[str, ...]  # that stand out most


@dataclass(frozen=True)
class Results:
    """What a study's results say, so far as they are there."""

    digest: str  # of the Parquet file
    bands: tuple[str, ...]
    clusters: tuple[ClusterView, ...]
    profiles: npt.NDArray[np.float64]  # [clusters, bands]; NaN for a cluster without pixels
    exact: bool  # profiles are mean levels of all pixels, else directions estimated from the heavy hitters
    heavy_hitters: int | None
    mass: float | None  # share of the foreground pixels that the heavy hitters hold
    foreground: int | None
    pixels: int | None
    error_bound: float | None


@dataclass(frozen=True)
class KeyFigure:
    """One number at the top of a study's page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class HeavyHitters:
    """The columns of the Parquet file; n rows."""

    count: npt.NDArray[np.int64]
    digits: npt.NDArray[np.uint8]  # [n, D]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int16]


def read_results(results: dict[str, Any]) -> Results | None:
    """Read a study's results; None before there is a map."""
    digest = results.get("heavy_hitters_digest")
    if not digest:
        return None
    bands = tuple(results["bands"])
    rows = results["clusters"]
    profiles = np.array([[np.nan if v is None else v for v in row["profile"]] for row in rows], np.float64)
    profiles = profiles.reshape(len(rows), len(bands))
    spread = _scores(profiles)
    clusters = tuple(
        ClusterView(
            number,
            "" if row["state"] == f"cluster-{number}" else row["state"],
            cluster_colour(number),
            int(row.get("pixels", row["size"])),
            tuple(bands[i] for i in np.argsort(-spread[number])[:3] if spread[number, i] > 0.5),
        )
        for number, row in enumerate(rows)
    )
    return Results(
        digest=str(digest),
        bands=bands,
        clusters=clusters,
        profiles=profiles,
        exact=bool(rows) and all(row.get("profile_is") == "levels" for row in rows),
        heavy_hitters=results.get("heavy_hitters"),
        mass=results.get("mass"),
        foreground=results.get("foreground"),
        pixels=results.get("pixels"),
        error_bound=results.get("error_bound"),
    )


def key_figures(stages: Sequence[StageView], results: Results | None) -> list[KeyFigure]:
    """Choose the numbers that are shown first: what left the sites, and what is known from it."""
    found = []
    sent = sum(stage.bytes for stage in stages)
    if sent:
        held = max(stage.raw_bytes for stage in stages)
        found.append(
            KeyFigure("Left the sites", words.bytes_(sent), f"from {words.bytes_(held)} of images" if held else "")
        )
    if results is None:
        return found
    if results.pixels is not None and results.foreground is not None:
        share = f"{100 * results.foreground / max(1, results.pixels):.0f} % of {words.count(results.pixels)}"
        found.append(KeyFigure("Foreground pixels", words.count(results.foreground), share))
    if results.heavy_hitters is not None:
        found.append(KeyFigure("Heavy hitters", words.count(results.heavy_hitters)))
    if results.mass is not None:
        found.append(KeyFigure("Mass they hold", f"{100 * results.mass:.1f} %", "of the foreground"))
    if results.error_bound is not None:
        bound = words.count(round(results.error_bound))
        found.append(KeyFigure("Error bound", f"± {bound}", "pixels, before verification"))
    return found


def remarks(results: dict[str, Any]) -> list[str]:
    """Say how the projection and the foreground were chosen, as soon as they are."""
    found = []
    if "explained_share" in results:
        found.append(f"The projection keeps {results['explained_share']:.1%} of the bands' second moment")
    if "cut_off" in results:
        said = str(results["cut_off"]["said"])
        found.append(said[:1].upper() + said[1:])
    if "privacy" in results:
        said = str(results["privacy"]["said"])
        found.append(said[:1].upper() + said[1:])
    return found


class Maps:
    """Makes the figures of a study, and keeps the tables read last: a blob never changes under its digest."""

    def __init__(self, engine: Engine, store: BlobStore) -> None:
        self._engine = engine
        self._store = store
        self._tables: OrderedDict[str, HeavyHitters] = OrderedDict()
        self._lock = threading.Lock()

    def figure(self, study: str, figure: str, band: int | None) -> bytes | None:
        """Make one figure as JSON: embedding, band (of a number), ranks or markers; None when there is none."""
        with reading(self._engine) as session:
            row = session.get(Study, study)
            results = read_results(row.results) if row else None
            quantiser = _quantiser(session, study) if figure == "band" and results else None
        if results is None:
            return None
        made: plots.Json
        if figure == "markers":
            names = [f"{c.number} · {c.state}" if c.state else f"{c.number}" for c in results.clusters]
            made = plots.markers(results.profiles, names, results.bands, exact=results.exact)
            return _json(made)
        table = self._table(results.digest)
        match figure:
            case "embedding":
                made = plots.embedding(
                    table.x, table.y, table.count, table.digits, table.cluster, len(results.clusters), results.bands
                )
            case "ranks":
                made = plots.rank_count(table.count, results.error_bound)
            case "band" if band is not None and band < len(results.bands):
                made = plots.band(_band_values(table, results, quantiser, band), table.count)
            case _:
                return None
        return _json(made)

    def _table(self, digest: str) -> HeavyHitters:
        with self._lock:
            if digest in self._tables:
                self._tables.move_to_end(digest)
                return self._tables[digest]
        with self._store.open(digest) as file:
            table = read_heavy_hitters(file.read())
        with self._lock:
            self._tables[digest] = table
            while len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        return table


def read_heavy_hitters(parquet: bytes) -> HeavyHitters:
    """Read the columns that the figures need from the heavy hitters' Parquet file."""
    table = pq.read_table(io.BytesIO(parquet))
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name not in {"key", "state"}}
    digits = sorted(
        (name for name in columns if name[0] == "d" and name[1:].isdecimal()), key=lambda name: int(name[1:])
    )
    return HeavyHitters(
        count=columns["count"].astype(np.int64),
        digits=np.stack([columns[name] for name in digits], axis=1).astype(np.uint8),
        x=columns["x"].astype(np.float64),
        y=columns["y"].astype(np.float64),
        cluster=columns["cluster"].astype(np.int16),
    )


def _band_values(
    table: HeavyHitters, results: Results, quantiser: Quantiser | None, band: int
) -> npt.NDArray[np.float64]:
    if quantiser is not None:
        return plots.band_values(table.digits, quantiser)[:, band]
    # Without the plan there is still the mean level of each cluster.
    of_cluster = np.append(np.nan_to_num(results.profiles[:, band]), 0.0)  # the last one is that of cluster -1
    values: npt.NDArray[np.float64] = of_cluster[table.cluster]
    return values


def _quantiser(session: Any, study: str) -> Quantiser | None:
    query = (
        select(Plan.published)
        .where(Plan.study == study, Plan.stage.in_(("counts", "recovery")))
        .order_by(Plan.opened_at.desc())
        .limit(1)
    )
    published = session.scalar(query)
    stage = decode_plan(published).stage if published else None
    return stage.quantiser if isinstance(stage, CountsPlan | RecoveryPlan | CodebookPlan) else None


def _scores(profiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    filled = np.nan_to_num(profiles)
    spread = filled.std(axis=0) if len(filled) else np.ones(profiles.shape[1])
    return (filled - filled.mean(axis=0)) / np.where(spread == 0, 1, spread) if len(filled) else filled


def _json(made: plots.Json) -> bytes:
    return json.dumps(made, separators=(",", ":"), allow_nan=False).encode()
