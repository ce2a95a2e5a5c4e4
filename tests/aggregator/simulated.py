"""Sites without processes: they count pixels by the defining kernels and hand tally files to the real aggregator."""

import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.intake.uploads import MESSAGE, Entered, Uploads
from aggregator.masking.arrivals import Arrivals
from aggregator.masking.sums import Sums
from aggregator.study import records, studies
from aggregator.study.board import Board
from aggregator.study.coordinator import Coordinator
from aggregator.study.layout import lay_out
from aggregator.telemetry import make_log, make_metrics
from cairn import codec, kernels
from cairn.heavy import KeyCounter
from cairn.moments import split
from cairn.pixels import BACKGROUND
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, RangesPlan, RecoveryPlan, Stage
from cairn.sealing import Sealer
from cairn.study import StudySpec
from cairn.tally import Tables, Tally, zeros

NUMPY = kernels.load("numpy")
BANDS = ("dapi", "keratin", "cd45", "cd8", "sma")

Levels = NDArray[np.uint16]


def tissue(seed: int, pixels: int = 4000) -> Levels:
    """Make pixels of glass and three kinds of cells; uint16[bands, pixels]."""
    rng = np.random.default_rng(seed)
    kinds = np.array([[2, 2, 2, 2, 2], [900, 800, 20, 20, 20], [900, 20, 700, 400, 20], [700, 20, 20, 20, 800]])
    kind = rng.choice(4, pixels, p=[0.3, 0.4, 0.2, 0.1])
    return rng.poisson(kinds[kind]).T.astype(np.uint16)


def count(stage: Stage, levels: Levels) -> Tables:
    """Count pixels for a plan's stage, as a site does."""
    made = zeros(stage)
    pixels = levels.shape[1]
    match stage:
        case MomentsPlan():
            total, second = NUMPY.moments(levels)
            made |= {"sum": split(total), "second": split(second)}
        case RangesPlan(_, projection):
            NUMPY.unit_histogram(levels, projection, made["unit"])
        case CountsPlan():
            keys = keys_of(stage, levels)
            counter = KeyCounter(stage, NUMPY)
            counter.add(keys)
            made |= counter.tables()
            made["foreground"][0] = np.count_nonzero(keys != BACKGROUND)
        case RecoveryPlan(_, candidates):
            keys = keys_of(stage, levels)
            at = NUMPY.lookup(keys, candidates)
            made["count"] += np.bincount(at[at >= 0], minlength=len(candidates))
            made["foreground"][0] = np.count_nonzero(keys != BACKGROUND)
        case CodebookPlan(_, known, clusters):
            keys = keys_of(stage, levels)
            nearest = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            label = np.where(keys == BACKGROUND, 0, clusters[nearest].astype(np.int64) + 1).astype(np.uint8)
            sums = np.zeros(made["profile"].shape[1:], np.int64)
            NUMPY.profile(levels, label, made["clusters"], sums)
            made["profile"] = split(sums)
    if "pixels" in made:
        made["pixels"][0] = pixels
    return made


def keys_of(stage: CountsPlan | RecoveryPlan | CodebookPlan, levels: Levels) -> NDArray[np.uint64]:
    """Quantise pixels."""
    q = stage.quantiser
    return NUMPY.keys(levels, q.projection, q.min_norm, q.low, q.gain, q.radix)


def spec(**changes: object) -> StudySpec:
    """Make a small study."""
    values: dict[str, object] = {
        "name": "breast",
        "bands": BANDS,
        "min_sites": 2,
        "dimensions": 5,
        "radix": 22,
        "depth": 7,
        "width": 4096,
        "top_k": 40,
        "clusters": 3,
        "n_neighbors": 5,
    }
    return StudySpec.model_validate(values | changes)


class Federation:
    """The aggregator's parts over one database and one folder; `reopen` makes them anew, as a restart does."""

    def __init__(
        self, engine: Engine, folder: Path, clock: Callable[[], datetime], sealer: Sealer | None = None
    ) -> None:
        self.engine = engine
        self.sealer = sealer
        self.folder = folder
        self.clock = clock
        self.log = StringIO()
        self.reopen()

    def reopen(self) -> None:
        """Forget all that is in memory."""
        self.store = BlobStore(f"file://{self.folder}/blobs", sealer=self.sealer)
        self.board = Board(self.engine, self.clock)
        self.counted = 0
        self.arrivals = Arrivals(self.engine, self.clock, lambda: None)
        self.uploads = Uploads(
            self.engine,
            self.store,
            self.folder / "spool",
            largest=1 << 30,
            now=self.clock,
            counted=self._count,
            masked=self.arrivals,
            sealer=self.sealer,
        )
        self.coordinator = Coordinator(
            self.engine,
            self.store,
            self.board,
            self.uploads,
            folder=self.folder,
            now=self.clock,
            log=make_log(self.log),
            metrics=make_metrics(),
            sums=Sums(self.engine, self.store, self.folder / "spool", self.clock, lambda: None),
            lay_out=lay_out,  # seconds cheaper than a process for each map, and bit for bit the same
        )

    def _count(self, _entered: Entered) -> None:
        self.counted += 1

    def enrol(self, *names: str) -> None:
        """Make sites members."""
        with database.writing(self.engine) as session:
            for name in names:
                session.add(
                    tables.Member(name=name, role="site", state="enrolled", invited_at=self.clock(), problems=[])
                )

    def revoke(self, name: str) -> None:
        """Take a site out."""
        with database.writing(self.engine) as session:
            session.get_one(tables.Member, name).state = "revoked"

    def refuse(self, name: str) -> None:
        """Let a site refuse the open plan."""
        plan = self.open_plan()
        assert plan is not None
        with database.writing(self.engine) as session:
            session.add(
                tables.Answer(plan=plan.fingerprint, site=name, accepted=False, reason="policy", at=self.clock())
            )

    def create(self, made: StudySpec) -> None:
        """Create a study as the service does."""
        with database.writing(self.engine) as session:
            session.add(
                tables.Study(
                    name=made.name,
                    spec=made.model_dump(mode="json"),
                    state=studies.FIRST,
                    window=0,
                    created_at=self.clock(),
                )
            )
            session.flush()
            now = self.clock()
            plan = studies.as_published(made, studies.moments_plan(made))
            records.publish(session, plan, now + made.stage_deadline, now)

    def study(self, name: str = "breast") -> tables.Study:
        """Read a study."""
        with database.reading(self.engine) as session:
            return records.find_study(session, name)

    def open_plan(self) -> tables.Plan | None:
        """Read the plan that is open, if one is."""
        with database.reading(self.engine) as session:
            return session.scalars(select(tables.Plan).filter_by(state="open")).one_or_none()

    def tally(self, plan: tables.Plan, levels: Levels) -> tuple[bytes, str]:
        """Count for a plan; returns the tally file's bytes and its SHA-256."""
        path = self.folder / f"tally-{uuid.uuid4().hex}"
        stage = codec.decode_plan(plan.published).stage
        codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), count(stage, levels)))
        data = path.read_bytes()
        path.unlink()
        return data, hashlib.sha256(data).hexdigest()

    def tally_of_zeros(self, plan: tables.Plan) -> tuple[bytes, str]:
        """Make the tally of a site without pixels."""
        stage = codec.decode_plan(plan.published).stage
        path = self.folder / f"tally-{uuid.uuid4().hex}"
        digest = codec.write_tally(path, Tally(bytes.fromhex(plan.fingerprint), zeros(stage))).hex()
        data = path.read_bytes()
        path.unlink()
        return data, digest

    def send(self, plan: tables.Plan, site: str, data: bytes, digest: str) -> None:
        """Upload a file in messages, from where the aggregator says."""
        at = self.uploads.query(plan.fingerprint, site, digest)
        if at.complete:
            return
        parts = [data[i : i + MESSAGE] for i in range(at.size, len(data), MESSAGE)] or [b""]
        for part in parts[:-1]:
            self.uploads.append(plan.fingerprint, site, at.size, part)
        self.uploads.finish(plan.fingerprint, site, len(data) - len(parts[-1]), parts[-1], digest)

    def answer(self, sites: dict[str, Levels]) -> tables.Plan:
        """Let sites count and upload for the open plan."""
        plan = self.open_plan()
        assert plan is not None
        for site, levels in sites.items():
            self.send(plan, site, *self.tally(plan, levels))
        return plan

    def settle(self) -> None:
        """Do steps until there is nothing to do without the sites or a person."""
        for _ in range(50):
            if not self.coordinator.turn():
                return
        raise AssertionError(f"the coordinator does not come to rest: {self.log.getvalue()[-2000:]}")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        tick.wait(0.01)
