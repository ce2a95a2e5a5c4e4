"""Researchers, sites and a trainer of a real aggregator, each over mutual TLS with certificates of its own."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from aggregator.members import pki
from aggregator.members.trainer import admit_trainer
from cairn import codec, enrolment
from cairn.plan import Plan, ReplayPlan, ReplayRangesPlan, Stage
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel
from cairn.sketch import SketchSpec
from cairn.tally import Tables, Tally, zeros
from cairn.transitions import TransitionCoder
from cairn.v1 import plans_pb2, plans_pb2_grpc, tallies_pb2, tallies_pb2_grpc, training_pb2, training_pb2_grpc

GRID = (3, 3)


def ranges_plan(run: str, number: int = 1) -> Plan:
    return Plan(run, number, ReplayRangesPlan(GRID))


def replay_plan(run: str, number: int = 2) -> Plan:
    thresholds = np.tile(np.array([64, 128, 192], np.uint8), (9, 1))
    coder = TransitionCoder(GRID, thresholds, 1, 4, (-0.5, 0.5))
    return Plan(run, number, ReplayPlan(coder, SketchSpec(5, 1024, bytes(32))))


def counted(stage: Stage, transitions: int) -> Tables:
    """Make the tables of a site that saw so many transitions."""
    made = zeros(stage)
    made["transitions"][0] = transitions
    table = next(name for name in made if name != "transitions")
    made[table][0, :7] = transitions
    return made


@dataclass
class Party:
    """Somebody's way to the aggregator."""

    open_channel: Callable[[], Any]

    @contextmanager
    def stub(self, make: Callable[[grpc.Channel], Any]) -> Iterator[Any]:
        with self.open_channel() as channel, errors_from_wire():
            yield make(channel)


class Researcher(Party):
    """An operator at `cairn runs`."""

    def create(self, name: str = "sella", **changes: Any) -> None:
        values = {"algorithm": "dqn", "rounds": 5, "min_sites": 2, "strategy": "fedavg"} | changes
        spec = training_pb2.RunSpec(name=name, **values)
        with self.stub(training_pb2_grpc.RunsStub) as runs:
            runs.CreateRun(training_pb2.CreateRunRequest(spec=spec), timeout=10)

    def call(self, method: str, name: str, **more: Any) -> Any:
        with self.stub(training_pb2_grpc.RunsStub) as runs:
            request = getattr(training_pb2, f"{method}Request")(name=name, **more)
            return getattr(runs, method)(request, timeout=10)

    def show(self, name: str = "sella", after: int = 0) -> training_pb2.ShowRunResponse:
        return self.call("ShowRun", name, after=after)

    def state(self, name: str = "sella") -> str:
        return self.show(name).summary.state

    def log(self, name: str = "sella", after: int = 0, *, follow: bool = False) -> list[tuple[int, str]]:
        with self.stub(training_pb2_grpc.RunsStub) as runs:
            request = training_pb2.ReadLogRequest(name=name, after=after, follow=follow)
            return [(line.line, line.text) for line in runs.ReadLog(request, timeout=30)]

    def weights(self, name: str = "sella", number: int = 0) -> bytes:
        with self.stub(training_pb2_grpc.RunsStub) as runs:
            request = training_pb2.FetchCheckpointRequest(name=name, round=number)
            return b"".join(part.data for part in runs.FetchCheckpoint(request, timeout=10))

    def journal(self, name: str = "sella") -> bytes:
        with self.stub(training_pb2_grpc.RunsStub) as runs:
            request = training_pb2.FetchJournalRequest(name=name)
            return b"".join(part.data for part in runs.FetchJournal(request, timeout=10))


class Trainer(Party):
    """What the trainer's process asks of the aggregator."""

    def claim(self) -> training_pb2.ClaimRunResponse:
        with self.stub(training_pb2_grpc.TrainingStub) as training:
            return training.ClaimRun(training_pb2.ClaimRunRequest(), timeout=10)

    def nodes(self) -> dict[str, training_pb2.TrainingNode]:
        with self.stub(training_pb2_grpc.TrainingStub) as training:
            found = training.ListNodes(training_pb2.ListNodesRequest(), timeout=10).nodes
        return {node.site: node for node in found}

    def publish(self, plan: Plan | bytes, open_for: timedelta = timedelta(hours=1)) -> bytes:
        published = plan if isinstance(plan, bytes) else codec.encode_plan(plan)
        request = training_pb2.PublishReplayRequest(plan=published)
        request.open_for.FromTimedelta(open_for)
        with self.stub(training_pb2_grpc.TrainingStub) as training:
            training.PublishReplay(request, timeout=10)
        return hashlib.sha256(published).digest()

    def merge(self, fingerprint: bytes, sites: Iterable[str] = (), patience: timedelta = timedelta(0)) -> bytes:
        request = training_pb2.MergeReplayRequest(fingerprint=fingerprint, sites=sites)
        request.patience.FromTimedelta(patience)
        with self.stub(training_pb2_grpc.TrainingStub) as training:
            return b"".join(part.data for part in training.MergeReplay(request, timeout=60))

    def report(self, name: str = "sella", **what: Any) -> bool:
        with self.stub(training_pb2_grpc.TrainingStub) as training:
            stop: bool = training.ReportRun(training_pb2.ReportRunRequest(name=name, **what), timeout=10).stop
            return stop


@dataclass
class Site(Party):
    """A site's uplink."""

    files: TlsFiles

    def offers(self) -> plans_pb2.WatchResponse:
        """Read the first message of the stream of plans."""
        with self.stub(plans_pb2_grpc.PlansStub) as plans:
            stream = plans.Watch(plans_pb2.WatchRequest(version="0.1.0"), timeout=30)
            found: plans_pb2.WatchResponse = next(stream)
            stream.cancel()
            return found

    def refuse(self, fingerprint: bytes) -> None:
        with self.stub(plans_pb2_grpc.PlansStub) as plans:
            plans.Answer(plans_pb2.AnswerRequest(fingerprint=fingerprint, reason="policy"), timeout=10)

    def upload(self, folder: Path, fingerprint: bytes, tables: Tables) -> None:
        """Send a tally through the one door."""
        path = folder / "tally"
        digest = codec.write_tally(path, Tally(fingerprint, tables))
        request = tallies_pb2.UploadRequest(fingerprint=fingerprint, data=path.read_bytes(), digest=digest)
        with self.stub(tallies_pb2_grpc.TalliesStub) as tallies:
            query = tallies_pb2.QueryUploadRequest(fingerprint=fingerprint, digest=digest)
            if not tallies.QueryUpload(query, timeout=10).complete:
                tallies.Upload(iter([request]), timeout=10)


@dataclass
class Parties:
    """An aggregator that trains, and all who talk to it."""

    running: Any
    researcher: Researcher
    trainer: Trainer
    checkpoints: Path

    def site(self, name: str) -> Site:
        """Invite and enrol a site that trains."""
        files = enrolment.enrol(self.running.invite(name), self.running.folder / "members" / name, trains=True)
        return Site(lambda: mtls_channel(self.running.aggregator.addresses.address, files), files)


def read_tally(folder: Path, data: bytes, stage: Stage) -> Tally:
    path = folder / "merged"
    path.write_bytes(data)
    with path.open("rb") as file:
        header = codec.read_header(file)
        tables = {name: table.astype(np.int64) for name, table in codec.read_tables(file, header.tables)}
    assert set(tables) == set(stage.shapes())
    return Tally(header.fingerprint, tables)


def let_in(running: Any, folder: Path, now: Callable[[], Any]) -> Trainer:
    """Give somebody the trainer's credentials, as a start of the aggregator does."""
    authority = pki.load_authority("tissue", running.folder / "pki")
    admit_trainer(running.aggregator.engine, authority, folder, now())
    files = enrolment.tls_files(folder)
    return Trainer(lambda: mtls_channel(running.aggregator.addresses.address, files))
