"""What is dropped after its time, and what never is."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.retention import tidy
from aggregator.intake.store import BlobStore
from aggregator.settings import Retention
from tests.aggregator.conftest import Clock


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


def put(store: BlobStore, tmp_path: Path, number: int) -> str:
    digest = f"{number:064x}"
    (tmp_path / digest).write_bytes(b"tally")
    store.put(tmp_path / digest, digest)
    return digest


def plan(engine: Engine, clock: Clock, name: str, uploads: dict[str, str], merged: str | None) -> None:
    with database.writing(engine) as rows:
        rows.add(
            tables.Plan(
                fingerprint=name * 64, study="map", stage="counts", window=0, published=b"", deadline=clock(),
                opened_at=clock(), state="done" if merged else "open",
            )
        )  # fmt: skip
        for site, digest in uploads.items():
            if rows.get(tables.Member, site) is None:
                rows.add(tables.Member(name=site, role="site", state="enrolled", invited_at=clock(), problems=[]))
            rows.flush()
            rows.add(tables.Upload(plan=name * 64, site=site, digest=digest, size=5, committed_at=clock()))
        if merged:
            rows.flush()
            rows.add(tables.Merge(plan=name * 64, digest=merged, uploads=[], at=clock()))


def test_what_single_sites_sent_goes_after_its_days_and_sums_and_rows_stay(
    engine: Engine, store: BlobStore, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [put(store, tmp_path, number) for number in range(6)]
    plan(engine, clock, "a", {"north": sent[0], "south": sent[1]}, merged=sent[2])
    plan(engine, clock, "b", {"north": sent[3]}, merged=sent[3])  # of one site alone the sum is the same file
    plan(engine, clock, "c", {"north": sent[4]}, merged=None)
    settings = Retention(site_tallies_days=10)
    clock.advance(timedelta(days=9))
    assert tidy(engine, store, tmp_path, settings, clock()) == {}
    clock.advance(timedelta(days=2))
    assert tidy(engine, store, tmp_path, settings, clock()) == {"site_tallies": 2}
    assert [store.has(digest) for digest in sent] == [False, False, True, True, True, True]
    monkeypatch.setattr(store, "has", pytest.fail)  # the next hour does not ask for each blob that is gone
    assert tidy(engine, store, tmp_path, settings, clock()) == {}
    with database.reading(engine) as rows:
        assert len(rows.scalars(select(tables.Upload)).all()) == 4
        [noted] = rows.scalars(select(tables.Audit).filter_by(action="retention"))
        assert noted.detail == {"site_tallies": 2}


def test_of_a_run_that_is_done_the_best_and_the_last_checkpoint_stay(
    engine: Engine, store: BlobStore, tmp_path: Path, clock: Clock
) -> None:
    with database.writing(engine) as rows:
        for name, state in (("done", "done"), ("failed", "failed")):
            rows.add(
                tables.Run(
                    name=name, spec={}, state=state, round=4, created_at=clock(), queued_at=clock(), ended_at=clock()
                )
            )
            rows.flush()
            rows.add(tables.RunLog(run=name, line=1, at=clock(), text="round 1"))
    for name in ("done", "failed"):
        for number in range(1, 5):
            place = tmp_path / "runs" / name / f"round-{number:06d}"
            place.mkdir(parents=True)
            (place / "state.json").write_text('{"best_round": 2}')
    (tmp_path / "runs" / "done" / ".round-000001.77.part").mkdir()  # of a deletion that was cut off
    clock.advance(timedelta(days=31))
    settings = Retention(checkpoints_days=30, run_log_days=30)
    assert tidy(engine, store, tmp_path / "runs", settings, clock()) == {"checkpoints": 2, "run_log_lines": 1}
    left = {name: sorted(path.name[-1] for path in (tmp_path / "runs" / name).iterdir()) for name in ("done", "failed")}
    assert left == {"done": ["2", "4"], "failed": ["1", "2", "3", "4"]}  # a failed one may be resumed


def test_as_it_comes_nothing_is_dropped(engine: Engine, store: BlobStore, tmp_path: Path, clock: Clock) -> None:
    sent = put(store, tmp_path, 1)
    plan(engine, clock, "a", {"north": sent}, merged=put(store, tmp_path, 2))
    clock.advance(timedelta(days=4000))
    assert tidy(engine, store, tmp_path, Retention(), clock()) == {}
    assert store.has(sent)
