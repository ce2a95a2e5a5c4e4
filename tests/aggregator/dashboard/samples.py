"""Rows and a map as a federation of four clinics leaves them, written through the aggregator's own tables and store."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from aggregator.database import audit, writing
from aggregator.intake.store import BlobStore
from aggregator.tables import (
    Answer,
    Certificate,
    Member,
    Merge,
    Plan,
    Progress,
    Run,
    RunLog,
    RunRound,
    Study,
    Upload,
)
from cairn.codec import encode_plan
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser
from cairn.plan import CountsPlan, MomentsPlan, RangesPlan, RecoveryPlan, StageName, prefix_levels
from cairn.plan import Plan as PlanValue
from cairn.run import parse_run
from cairn.sketch import SketchSpec
from cairn.study import parse_spec

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
SITES = ("bern-insel", "goettingen", "leiden-lumc", "trondheim")
BANDS = (
    "DAPI", "CD3", "CD4", "CD8", "CD20", "CD68", "CD163", "PanCK", "Vimentin", "SMA", "CD31", "Ki67", "FoxP3", "PD-1",
    "PD-L1", "HLA-DR", "CD11c", "CD56", "Beta-catenin", "E-cadherin", "p53", "CD45", "CD45RO", "MPO", "IDO", "Lag3",
    "EGFR", "Keratin 6", "Keratin 17", "H3K27me3", "H3K9ac", "Autofluorescence", "CD138", "CD16", "CD209",
)  # fmt: skip
STATES = ("tumour", "tumour", "immune", "immune", "immune", "other", "other", "tumour", "immune", "other")
HOSTILE = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


def hexes(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def quantiser(dimensions: int = 8, radix: int = 22) -> Quantiser:
    rng = np.random.default_rng(7)
    basis, _ = np.linalg.qr(rng.normal(size=(len(BANDS), dimensions)))
    weights = np.rint(basis.T * WEIGHT_ONE).astype(np.int32)
    ends = np.full(dimensions, 0.8)
    return Quantiser(PixelLevels(BANDS), weights, 100.0, -ends, ends, radix)


def add_member(session: Session, name: str, now: datetime = NOW, **values: object) -> Member:
    given = {"role": "site", "state": "enrolled", "invited_at": now - timedelta(days=90), "problems": []} | values
    if given["state"] == "enrolled":
        given = {"enrolled_at": now - timedelta(days=88), "last_seen": now - timedelta(seconds=2)} | given
    member = Member(name=name, **given)
    session.add(member)
    session.flush()
    if member.state == "enrolled":
        session.add(
            Certificate(
                serial=hexes("serial", name)[:32],
                member=name,
                public_key=hexes("key", name),
                chain_pem="",
                issued_at=now - timedelta(days=2),
                not_after=now + timedelta(days=88),
            )
        )
    return member


def add_study(session: Session, name: str, state: str, now: datetime = NOW, **values: object) -> Study:
    spec = parse_spec(
        {
            "name": name,
            "bands": BANDS,
            "min_sites": 3,
            "states": {"tumour": ["PanCK", "E-cadherin"], "immune": ["CD45", "CD3"]},
        }
    )
    given = {"window": 0, "created_at": now - timedelta(days=3), "message": "", "results": {}} | values
    study = Study(name=name, spec=spec.model_dump(mode="json"), state=state, **given)
    session.add(study)
    session.flush()
    return study


def add_plan(session: Session, study: str, stage: StageName, state: str, opened: datetime, window: int = 0) -> Plan:
    q = quantiser()
    dense, levels = prefix_levels(q.keyspace)
    value = {
        "moments": MomentsPlan(q.pixels),
        "ranges": RangesPlan(q.pixels, q.projection),
        "counts": CountsPlan(q, SketchSpec(16, 200_000, bytes(32)), dense, levels),
        "recovery": RecoveryPlan(q, np.arange(10, dtype=np.uint64)),
    }[stage]
    published = encode_plan(PlanValue(study, window, value))
    plan = Plan(
        fingerprint=hashlib.sha256(published).hexdigest(),
        study=study,
        stage=stage,
        window=window,
        published=published,
        deadline=opened + timedelta(hours=24),
        opened_at=opened,
        closed_at=None if state == "open" else opened + timedelta(minutes=42),
        state=state,
        sites_expected=None if state == "open" else list(SITES),
    )
    session.add(plan)
    session.flush()
    return plan


def add_upload(session: Session, plan: Plan, site: str, size: int) -> Upload:
    upload = Upload(
        plan=plan.fingerprint,
        site=site,
        digest=hexes("upload", plan.fingerprint, site),
        size=size,
        raw_bytes=480_000_000_000,
        committed_at=plan.opened_at + timedelta(minutes=20),
    )
    session.add(upload)
    session.flush()
    return upload


def add_done_stage(
    session: Session, study: str, stage: StageName, opened: datetime, size: int, window: int = 0
) -> None:
    plan = add_plan(session, study, stage, "done", opened, window)
    uploads = []
    for n, site in enumerate(SITES):
        session.add(Answer(plan=plan.fingerprint, site=site, accepted=True, reason="", at=opened))
        uploads.append(add_upload(session, plan, site, size + 31_337 * n))
        audit(session, opened, f"site/{site}", "upload", plan.fingerprint, bytes=size, study=study, stage=stage)
    at = opened + timedelta(minutes=43)
    digest = hexes("merge", plan.fingerprint)
    session.add(Merge(plan=plan.fingerprint, digest=digest, uploads=[upload.id for upload in uploads], at=at))
    audit(session, at, "aggregator", "merge", plan.fingerprint, uploads=len(uploads), digest=digest)


def add_run(session: Session, name: str, state: str, rounds: int, now: datetime = NOW, **values: object) -> Run:
    """Add a run with so many rounds of three sites, of which one was late in round 3 and one failed in the last."""
    spec = parse_run(
        {
            "name": name,
            "algorithm": "dqn",
            "rounds": 30,
            "min_sites": 2,
            "strategy": "fedprox",
            "settings": {"tasks": ["sella", "nasion"], "replay": "sketched"},
        }
    )
    start = now - timedelta(hours=2)
    given = {"created_at": start, "queued_at": start, "message": ""} | values
    if rounds:
        given = {"started_at": start + timedelta(minutes=1)} | given
    run = Run(name=name, spec=spec.model_dump(mode="json"), state=state, round=rounds, **given)
    session.add(run)
    session.flush()
    for number in range(1, rounds + 1):
        session.add(a_round(name, number, rounds, start + timedelta(minutes=3 * number)))
        session.add(RunLog(run=name, line=number, at=start, text=f"round {number} counts: 3 of 3 sites"))
    return run


def a_round(name: str, number: int, rounds: int, ended: datetime) -> RunRound:
    sites = []
    for place, site in enumerate(SITES[:3]):
        state = "late" if (number, place) == (3, 2) else "failed" if (number, place) == (rounds, 1) else "trained"
        loss = 2.0 / number + 0.2 * place
        metrics = {
            "examples": 48_000.0 + place,
            "loss": loss,
            "reward": 0.1 * number + 0.05 * place,
            "seconds": 100.0 + place,
            "replay/unique_share": 0.9 - (0.01 + 0.002 * place) * number,
            "replay/effective": (1000.0 - 100 * place) * number,
            "replay/fill": min(1.0, (0.05 - 0.01 * place) * number),
            "validation/sella/n": 10.0,
            "validation/sella/mean_mm": 9.0 / number + place,
            "validation/nasion/n": 30.0,
            "validation/nasion/mean_mm": 5.0 / number + place,
        }
        reason = {"late": "no answer within 1 h", "failed": "Diverged: the loss of update 17 is not a number"}
        sites.append(
            {
                "site": site,
                "state": state,
                "reason": reason.get(state, ""),
                "metrics": metrics if state == "trained" else {},
                "bytes": 4_200_000,
            }
        )
    over_all = {
        "loss": 2.0 / number + 0.1,
        "reward": 0.1 * number,
        "replay/unique_share": 0.9 - 0.01 * number,
        "validation/sella/mean_mm": 9.0 / number + 1,
        "validation/nasion/mean_mm": 5.0 / number + 1,
        "validation/mean_mm": 6.0 / number + 1,
    }
    return RunRound(run=name, round=number, ended_at=ended, seconds=104.5, metrics=over_all, sites=sites)


def heavy_hitters(rows: int = 20_000, seed: int = 0) -> pa.Table:
    """Make a map that looks like one: ten tissue states as curved drifts in the plane, Zipf-like counts."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(STATES), 3.0))
    cluster = rng.choice(len(STATES), size=rows, p=shares)
    angle = np.linspace(0, 2 * np.pi, len(STATES), endpoint=False)
    centre = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 8 + rng.normal(size=(len(STATES), 2)) * 1.6
    bend, along = rng.uniform(0, 2 * np.pi, len(STATES))[cluster], rng.normal(size=rows)
    drift = np.stack([along * 2.1, 0.5 * along**2 - 0.5 + rng.normal(size=rows) * 0.55], axis=1)
    turned = np.stack(
        [
            drift[:, 0] * np.cos(bend) - drift[:, 1] * np.sin(bend),
            drift[:, 0] * np.sin(bend) + drift[:, 1] * np.cos(bend),
        ],
        axis=1,
    )
    places = centre[cluster] + turned
    middle = rng.integers(4, 18, size=(len(STATES), 8))
    digits = np.clip(middle[cluster] + rng.integers(-2, 3, size=(rows, 8)), 0, 21).astype(np.uint8)
    count = np.sort((4e7 / (np.arange(rows) + 9) ** 0.95).astype(np.int64))[::-1]
    columns = {
        "key": quantiser().keyspace.encode(digits),
        **{f"d{i}": digits[:, i] for i in range(8)},
        "count": count,
        "x": places[:, 0].astype(np.float32),
        "y": places[:, 1].astype(np.float32),
        "cluster": cluster.astype(np.int16),
        "state": pa.array([STATES[c] for c in cluster]),
    }
    return pa.table(columns)


def put_table(store: BlobStore, table: pa.Table, folder: Path) -> str:
    source = folder / "heavy.parquet"
    pq.write_table(table, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.put(source, digest)
    return digest


def results(store: BlobStore, folder: Path, rows: int = 20_000) -> dict[str, object]:
    rng = np.random.default_rng(3)
    table = heavy_hitters(rows)
    cluster, count = table.column("cluster").to_numpy(), table.column("count").to_numpy()
    profiles = rng.gamma(2.0, 400.0, size=(len(STATES), len(BANDS)))
    return {
        "heavy_hitters_digest": put_table(store, table, folder),
        "heavy_hitters": rows,
        "pixels": 4_812_337_152,
        "foreground": 3_101_448_220,
        "mass": 0.8104,
        "error_bound": 2215.4,
        "explained_share": 0.9631,
        "cut_off": {"said": "the cut-off by the glass peak keeps 64.4% of the pixels that are not zero"},
        "bands": list(BANDS),
        "clusters": [
            {
                "size": int(count[cluster == n].sum()),
                "state": STATES[n],
                "profile": [round(float(v), 2) for v in profiles[n]],
                "profile_is": "levels",
            }
            for n in range(len(STATES))
        ],
    }


def fill(engine: Engine, store: BlobStore, folder: Path, now: datetime = NOW, rows: int = 20_000) -> None:
    """Fill an empty database: one study with its map, one in its counts stage, one that failed."""
    start = now - timedelta(days=2)
    with writing(engine) as session:
        add_member(session, "anna-lindqvist", now, role="operator")
        add_member(session, SITES[0], now, version="0.1.0")
        add_member(
            session,
            SITES[1],
            now,
            version="0.1.0",
            problems=["1 file could not be read (truncated TIFF)", "the disk has 2.1 GB free; 8 GB are needed"],
        )
        add_member(session, SITES[2], now, version="0.1.0")
        add_member(session, SITES[3], now, version="0.0.9", last_seen=now - timedelta(hours=7))
        add_member(session, "warszawa", now, state="invited", invited_at=now - timedelta(days=1))
        add_member(session, "old-clinic", now, state="revoked", revoke_reason="left the federation")
        for name in (*SITES, "warszawa"):
            audit(session, now - timedelta(days=90), "operator/anna-lindqvist", "invite", name, role="site")
        for name in SITES:
            audit(session, now - timedelta(days=88), f"site/{name}", "enrol", name)

        add_study(
            session,
            "melanoma-states",
            "awaiting_approval",
            now,
            results=results(store, folder, rows),
            message="The map is ready: name the clusters' states with cairn study approve melanoma-states",
        )
        for n, (stage, size) in enumerate(
            [("moments", 14_200), ("ranges", 310_000), ("counts", 18_400_000), ("recovery", 96_000)]
        ):
            add_done_stage(session, "melanoma-states", stage, start + timedelta(hours=n), size)

        add_study(session, "lung-map", "counts", now, created_at=now - timedelta(hours=5))
        add_done_stage(session, "lung-map", "moments", now - timedelta(hours=5), 14_100)
        add_done_stage(session, "lung-map", "ranges", now - timedelta(hours=4), 298_000)
        counts = add_plan(session, "lung-map", "counts", "open", now - timedelta(minutes=50))
        for site in SITES[:2]:
            session.add(Answer(plan=counts.fingerprint, site=site, accepted=True, reason="", at=now))
        session.add(
            Answer(
                plan=counts.fingerprint,
                site=SITES[2],
                accepted=False,
                reason="rule 'no sketches without a quorum of 5' refuses min_sites 3",
                at=now - timedelta(minutes=44),
            )
        )
        add_upload(session, counts, SITES[0], 18_100_000)
        session.add(
            Progress(
                plan=counts.fingerprint,
                site=SITES[1],
                pixels_done=611_000_000,
                pixels_total=980_000_000,
                files_done=31,
                files_total=52,
                raw_bytes=68_000_000_000,
                at=now,
            )
        )
        session.get(Member, SITES[1]).working_fingerprint = counts.fingerprint

        add_study(
            session,
            "colon-pilot",
            "failed",
            now,
            created_at=now - timedelta(days=20),
            message="The merged moments are singular: fewer than 8 bands differ; check the bands and create it anew",
        )

        add_run(session, "sella-run", "running", 25, now)
        add_run(session, "knee-pilot", "failed", 4, now, message="Diverged: every site's update holds NaN",
                created_at=now - timedelta(days=9), ended_at=now - timedelta(days=8))  # fmt: skip
        add_run(session, "next-run", "queued", 0, now - timedelta(minutes=1))
