"""A federation under test, and what may be asked of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator import tables
from aggregator.at_rest import open_sealer
from aggregator.database import open_database, reading
from aggregator.intake.merging import load_merged
from aggregator.intake.store import BlobStore
from aggregator.settings import load_settings
from aggregator.study.messages import spec_message
from cairn import codec, kernels
from cairn.images import ImageSource, find_images, open_image
from cairn.moments import exact
from cairn.plan import Plan
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.study import StudySpec
from cairn.tally import Tables
from cairn.v1 import operations_pb2, operations_pb2_grpc
from deploy.dealing import Hand, common_bands, deal
from deploy.federation import Federation, federation
from deploy.processes import wait_for
from edge_node.counting import Counter
from tests.invoking import invoke

SIDE = 128
PATIENCE_S = 300.0


def study_of(data: Path, name: str = "small", **changes: object) -> StudySpec:
    """A study that is fast: few heavy hitters, small tables."""
    values = {
        "name": name,
        "bands": common_bands(data),
        "min_sites": 3,
        "dimensions": 4,
        "radix": 12,
        "depth": 5,
        "width": 4096,
        "top_k": 300,
        "clusters": 3,
        "n_neighbors": 10,
        "auto_approve": True,
    }
    return StudySpec.model_validate(values | changes)


@dataclass
class Observed:
    """A running federation and its hands."""

    running: Federation
    hands: list[Hand]

    def create(self, spec: StudySpec) -> None:
        with operator_channel(self.running.profile) as channel, errors_from_wire():
            request = operations_pb2.CreateStudyRequest(spec=spec_message(spec))
            operations_pb2_grpc.StudiesStub(channel).CreateStudy(request, timeout=30)

    def extend(self, study: str) -> None:
        with operator_channel(self.running.profile) as channel, errors_from_wire():
            request = operations_pb2.ExtendStudyRequest(name=study)
            operations_pb2_grpc.StudiesStub(channel).ExtendStudy(request, timeout=30)

    def state(self, study: str) -> str:
        """The study's state, read from the database, which is there while the aggregator is not."""
        with self.session() as session:
            row = session.get(tables.Study, study)
            assert row is not None
            assert row.state != "failed", row.message
            return row.state

    def wait_until(self, study: str, wanted: Callable[[str], bool]) -> str:
        wait_for(f"study {study}", lambda: wanted(self.state(study)), self.running.programs, PATIENCE_S)
        return self.state(study)

    @contextmanager
    def session(self) -> Iterator[Session]:
        engine = open_database(load_settings(self.running.state / "aggregator.toml").database_url)
        with reading(engine) as session:
            yield session
        engine.dispose()

    def plans(self, study: str) -> dict[tuple[str, int], tuple[str, Plan]]:
        """(stage, window) → fingerprint and plan."""
        with self.session() as session:
            rows = session.scalars(select(tables.Plan).where(tables.Plan.study == study)).all()
            return {(row.stage, row.window): (row.fingerprint, codec.decode_plan(row.published)) for row in rows}

    def uploads(self, fingerprint: str) -> list[tables.Upload]:
        with self.session() as session:
            return list(session.scalars(select(tables.Upload).where(tables.Upload.plan == fingerprint)).all())

    def store(self) -> BlobStore:
        settings = load_settings(self.running.state / "aggregator.toml")
        return BlobStore(settings.blobs_url, sealer=open_sealer(settings))

    def merged(self, study: str, stage: str, window: int = 0) -> Tables:
        fingerprint, plan = self.plans(study)[stage, window]
        with self.session() as session:
            digest = session.get(tables.Merge, fingerprint).digest
        return load_merged(self.store(), digest, fingerprint, plan.stage).tables

    def sources(self) -> list[ImageSource]:
        return [s for hand in self.hands for s in find_images(self.running.site_folder(hand.site) / "images")]


def centrally(plan: Plan, sources: list[ImageSource]) -> Tables:
    """What one machine with all the images would count, by the kernels that define it."""
    counter = Counter(plan.stage, kernels.load("numpy"))
    quantised = getattr(plan.stage, "quantiser", plan.stage)
    for source in sources:
        with counter.image(), open_image(source) as image:
            counter.add(image.tiles(quantised.pixels.bands))
    return counter.tables()


def assert_same(found: Tables, expected: Tables) -> None:
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        # Two words to a sum: which part is carried into the higher word depends on how the sum was made.
        whole = exact if name in ("sum", "second", "profile") else np.asarray
        np.testing.assert_array_equal(whole(found[name]), whole(table), err_msg=name)


@contextmanager
def observed(folder: Path, data: Path, sites: int = 3) -> Iterator[Observed]:
    hands = deal(find_images(data), sites)
    with federation(folder, hands, command=invoke) as running:
        yield Observed(running, hands)
