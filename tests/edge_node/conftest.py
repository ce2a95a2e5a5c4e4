"""A real gRPC server in the aggregator's place whose network fails on demand, and small tallies to send to it."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
import tifffile

from cairn import codec
from cairn.errors import ChecksumMismatch, OffsetMismatch, StorageFull, WindowClosed
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import (
    CodebookPlan,
    CountsPlan,
    MomentsPlan,
    Plan,
    RangesPlan,
    RecoveryPlan,
    ReplayPlan,
    ReplayRangesPlan,
    Stage,
    fingerprint,
    prefix_levels,
)
from cairn.rpc import Admission, server
from cairn.sketch import SketchSpec
from cairn.tally import Tally, zeros
from cairn.transitions import TransitionCoder
from cairn.v1 import tallies_pb2, tallies_pb2_grpc
from edge_node.audit import AuditLog
from edge_node.outbox import Outbox
from edge_node.settings import SiteSettings, load_settings

WAIT_S = 30.0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        tick.wait(0.01)


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one Upload call, after `after` bytes of it.

    cut: the connection breaks · flip: a bit is turned over on the way · stall: nothing more is taken until the caller
    gives up · restart: the server dies and comes back · lost-answer: all is taken, the answer is not heard ·
    full: no room on the disk · overtaken: another call of the site finishes it meanwhile, and the stage closes
    """

    kind: str
    after: int = 0


@dataclass
class FaultyTallies(tallies_pb2_grpc.TalliesServicer):
    """The Tallies service by its proto, in memory, with a list of faults to come."""

    faults: list[Fault] = field(default_factory=list)
    parts: dict[bytes, bytearray] = field(default_factory=dict)
    wanted: dict[bytes, bytes] = field(default_factory=dict)
    ledger: dict[bytes, bytes] = field(default_factory=dict)
    merges: int = 0
    closed: set[bytes] = field(default_factory=set)
    overtaking: bytes = b""
    refusal: Exception | None = None
    message_sizes: list[int] = field(default_factory=list)
    calls: int = 0
    port: int = 0
    _server: grpc.Server | None = None

    def start(self) -> None:
        roles = {"cairn.v1.Tallies": frozenset({"site"})}
        self._server = server([Admission(roles, None, lambda *_: None)], 8)
        tallies_pb2_grpc.add_TalliesServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(0).wait()

    def QueryUpload(self, request, context):
        if self.refusal:
            raise self.refusal
        if request.fingerprint in self.closed:
            raise WindowClosed("the stage is closed")
        if self.ledger.get(request.fingerprint) is not None:
            done = hashlib.sha256(self.ledger[request.fingerprint]).digest() == request.digest
            return tallies_pb2.QueryUploadResponse(committed_size=len(self.ledger[request.fingerprint]), complete=done)
        if self.wanted.get(request.fingerprint) != request.digest:
            self.wanted[request.fingerprint] = request.digest
            self.parts[request.fingerprint] = bytearray()
        return tallies_pb2.QueryUploadResponse(committed_size=len(self.parts[request.fingerprint]))

    def Upload(self, request_iterator, context):
        self.calls += 1
        fault = self.faults.pop(0) if self.faults else Fault("none")
        taken, name = 0, b""
        for message in request_iterator:
            name = name or message.fingerprint
            self.message_sizes.append(len(message.data))
            part = self.parts.setdefault(name, bytearray())
            if message.offset != len(part):
                raise OffsetMismatch(f"offset {message.offset}, committed {len(part)}", len(part))
            data = bytearray(message.data)
            if fault.kind == "flip" and taken <= fault.after < taken + len(data):
                data[fault.after - taken] ^= 4
            self._refuse(fault, name, taken + len(data))
            part += data
            taken += len(data)
            if taken >= fault.after:
                if fault.kind == "cut":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                if fault.kind == "restart":
                    threading.Thread(target=self._restart).start()
                    self._hang(context)
                if fault.kind == "stall":
                    self._hang(context)
            if message.digest:
                if hashlib.sha256(part).digest() != message.digest:
                    self.parts[name] = bytearray()
                    raise ChecksumMismatch("the bytes received are not those announced")
                if name not in self.ledger:
                    self.ledger[name] = bytes(part)
                    self.merges += 1
                if fault.kind == "lost-answer":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return tallies_pb2.UploadResponse(committed_size=len(self.parts.get(name, b"")))

    def _refuse(self, fault: Fault, name: bytes, taken: int) -> None:
        if fault.kind == "overtaken":
            self.ledger[name], self.merges = self.overtaking, self.merges + 1
            raise WindowClosed("the stage is closed")
        if fault.kind == "full" and taken > fault.after:
            raise StorageFull("the aggregator's disk is full")

    def _restart(self) -> None:
        self.stop()
        self.start()

    @staticmethod
    def _hang(context: grpc.ServicerContext) -> None:
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait(WAIT_S)
        context.abort(grpc.StatusCode.CANCELLED, "hung up")


@pytest.fixture
def faulty() -> Iterator[FaultyTallies]:
    tallies = FaultyTallies()
    tallies.start()
    yield tallies
    tallies.stop()


@pytest.fixture
def channel(faulty: FaultyTallies) -> Iterator[grpc.Channel]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
    with grpc.insecure_channel(f"127.0.0.1:{faulty.port}", options=options) as opened:
        yield opened


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


@pytest.fixture
def audit_log(tmp_path: Path) -> Iterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.jsonl", lambda: datetime.now(UTC))
    yield log
    log.close()


def make_plan(study: str = "tumour", window: int = 0, bands: int = 2) -> tuple[Plan, bytes]:
    plan = Plan(study, window, MomentsPlan(PixelLevels(tuple(f"b{i}" for i in range(bands)))))
    return plan, fingerprint(codec.encode_plan(plan))


def make_tally(plan: Plan, of: bytes, seed: int = 0) -> Tally:
    """Make a tally of incompressible counts: about bands² · 16 bytes in the file."""
    rng = np.random.default_rng(seed)
    tables = {name: rng.integers(0, 2**62, table.shape) for name, table in zeros(plan.stage).items()}
    return Tally(of, tables)


BANDS = ("a", "b", "c")
LEVELS = PixelLevels(BANDS)
AXES = np.rint(2**14 * np.array([[0.6, 0.6, 0.52], [0.7, -0.7, 0.1], [0.3, 0.3, -0.9]])).astype(np.int32)
QUANTISER = Quantiser(LEVELS, AXES, 2.0**18, np.array([0.2, -0.8, -0.9]), np.array([1.0, 0.8, 0.8]), 6)
KEYS = np.arange(0, 216, 3, dtype=np.uint64)
DENSE, SKETCHES = prefix_levels(QUANTISER.keyspace, dense_bits=4, step=3)
STAGES: dict[str, Stage] = {
    "moments": MomentsPlan(LEVELS),
    "ranges": RangesPlan(LEVELS, AXES),
    "counts": CountsPlan(QUANTISER, SketchSpec(3, 64, bytes(32)), DENSE, SKETCHES),
    "recovery": RecoveryPlan(QUANTISER, KEYS),
    "codebook": CodebookPlan(QUANTISER, KEYS, (KEYS % 3).astype(np.uint8), (0, 1, 1), ("tumour", "other")),
}

CODER = TransitionCoder((2, 2), np.array([[85, 170]] * 4, np.uint8), tasks=2, actions=4, reward_edges=(-0.25, 0.25))
REPLAY_STAGES: dict[str, Stage] = {
    "replay_ranges": ReplayRangesPlan((2, 2)),
    "replay": ReplayPlan(CODER, SketchSpec(3, 64, bytes(32))),
}


def write_image(path: Path, seed: int, names: Sequence[str] = BANDS, dtype: str = "<u2", side: int = 96) -> None:
    """Write an OME-TIFF in tiles of 32 pixels."""
    values = np.random.default_rng(seed).choice([0, 40, 300, 9000, 20000], (len(names), side, side)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"axes": "CYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(path, values, tile=(32, 32), metadata=about, ome=True)


def write_settings(folder: Path, extra: str = "") -> SiteSettings:
    """Write and read site.toml of a site whose images are in folder/images."""
    config = folder / "site.toml"
    text = 'state_dir = "state"\nrescan_seconds = 0.2\n[images]\nfolder = "images"\n[approval]\nstudies = ["*"]\n'
    config.write_text(text + extra, encoding="utf-8")
    return load_settings(config)


@pytest.fixture
def middle():
    """Run the aggregator's side of everything that a site calls."""
    from .federation import Middle

    middle = Middle()
    middle.start()
    yield middle
    middle.stop()
