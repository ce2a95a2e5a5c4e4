"""A thousand sites against one aggregator: real gRPC over mutual TLS with a thousand identities, the database SQLite.

The aggregator is the real program in a process of its own; the sites are connections of another, with one channel, one
certificate and one open stream of plans each. They answer a study's first stages with tallies made beforehand: a small
one (moments), then ones of up to a megabyte that nothing makes smaller. Meanwhile an operator asks for the state of
things and a browser for pages. What is merged is compared with the sum. The CA signed their certificates beforehand:
enrolment is not measured.

    BENCH_SITES=100 python -m benchmarks sites      fewer of them; CAIRN_DATABASE names another database
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from aggregator import database, tables
from aggregator.intake.merging import load_merged
from aggregator.intake.store import BlobStore
from aggregator.members import pki
from aggregator.members.enrolment_service import certify
from aggregator.members.initialise import initialise
from aggregator.settings import AggregatorSettings, load_settings
from aggregator.study.messages import spec_message
from cairn import __version__, codec
from cairn.enrolment import tls_files
from cairn.moments import exact
from cairn.rpc import CLIENT_OPTIONS
from cairn.study import StudySpec
from cairn.tally import Tables, Tally, zeros
from cairn.v1 import (
    operations_pb2,
    operations_pb2_grpc,
    plans_pb2,
    plans_pb2_grpc,
    tallies_pb2,
    tallies_pb2_grpc,
)
from edge_node.connection import REPORT_S, report_pause

SITES = int(os.environ.get("BENCH_SITES", "1000"))
AT_ONCE = 64  # uploads on their way
STEADY_S, LOOKED_AT_S = 120.0, 60.0  # for which sites report their progress, and of it the last part that counts
MESSAGE = 1 << 20
CELL = 2**30  # of the random tables; under 2^31, so that a tally stores four bytes a cell
PATIENCE_S = 240.0
BANDS = ("a", "b", "c", "d", "e", "f", "g", "h")


@dataclass
class Latencies:
    """Seconds that calls took, by kind."""

    found: dict[str, list[float]] = field(default_factory=dict)

    async def of(self, kind: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Wait for a call and note how long it took."""
        begin = time.perf_counter()
        answer = await call()
        self.found.setdefault(kind, []).append(time.perf_counter() - begin)
        return answer

    def line(self, name: str, kind: str) -> dict[str, Any]:
        """Say the 99th percentile and the median."""
        seconds = np.array(self.found.pop(kind))
        middle, high = np.percentile(seconds, (50, 99)) * 1e3
        return {
            "name": name,
            "value": round(high, 1),
            "unit": "ms, p99",
            "median": round(middle, 1),
            "calls": len(seconds),
        }


@dataclass
class Site:
    """One site: its channel, whether it was told anything yet, and the plans that it was told of, as they came."""

    name: str
    channel: grpc.aio.Channel
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    plans: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    known: set[bytes] = field(default_factory=set)

    async def watch(self) -> None:
        """Follow the list of open plans until cancelled."""
        stub = plans_pb2_grpc.PlansStub(self.channel)
        async for response in stub.Watch(plans_pb2.WatchRequest(version=__version__)):
            self.connected.set()
            for offer in response.offers:
                if offer.plan not in self.known:
                    self.known.add(offer.plan)
                    self.plans.put_nowait(offer.plan)

    async def report(self, took: Latencies, kind: str, fingerprint: bytes, done: int) -> None:
        """Say how far the site is."""
        stub = plans_pb2_grpc.PlansStub(self.channel)
        request = plans_pb2.ReportRequest(fingerprint=fingerprint, pixels_done=done, pixels_total=100)
        await took.of(kind, lambda: stub.Report(request, timeout=60))

    async def send(self, took: Latencies, fingerprint: bytes, data: bytes, digest: bytes) -> None:
        """Accept a plan and upload a tally for it, as an edge node does."""
        plans, uploads = plans_pb2_grpc.PlansStub(self.channel), tallies_pb2_grpc.TalliesStub(self.channel)
        answer = plans_pb2.AnswerRequest(fingerprint=fingerprint, accepted=True)
        await took.of("answer", lambda: plans.Answer(answer, timeout=120))
        ask = tallies_pb2.QueryUploadRequest(fingerprint=fingerprint, digest=digest)
        await took.of("query", lambda: uploads.QueryUpload(ask, timeout=120))

        async def messages() -> Any:
            for at in range(0, len(data), MESSAGE):
                last = at + MESSAGE >= len(data)
                yield tallies_pb2.UploadRequest(
                    fingerprint=fingerprint, offset=at, data=data[at : at + MESSAGE], digest=digest if last else b""
                )

        await took.of("upload", lambda: uploads.Upload(messages(), timeout=120))


def run() -> Iterator[dict[str, Any]]:
    """Measure all of it, in one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings, credentials = found(folder)
        command = [sys.executable, "-m", "cairn", "aggregator", "serve", "--dir", str(folder)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield from asyncio.run(Measurement(folder, settings, credentials, server).run())
        finally:
            server.terminate()
            server.wait(60)


def found(folder: Path) -> tuple[AggregatorSettings, dict[str, tuple[bytes, bytes]]]:
    """Found a federation whose sites are enrolled; returns its settings, and key and certificate of each site."""
    wanted = os.environ.get("CAIRN_DATABASE")
    settings = initialise(folder, "scale", ["127.0.0.1:0"], datetime.now(UTC), database=wanted)
    path = folder / "aggregator.toml"
    path.write_text(re.sub(r"# threads = \d+", f"threads = {2 * SITES + 200}", path.read_text()))
    settings, now = load_settings(path), datetime.now(UTC)
    assert settings.limits.threads == 2 * SITES + 200
    authority = pki.load_authority("scale", settings.pki_dir)
    engine = database.open_database(settings.database_url)
    credentials = {}
    with database.writing(engine) as session:
        for number in range(SITES):
            key = ec.generate_private_key(ec.SECP256R1())
            member = tables.Member(
                name=f"site-{number:04}", role="site", state="enrolled", invited_at=now, enrolled_at=now, problems=[]
            )
            session.add(member)
            session.flush()
            chain = certify(session, authority, member, key.public_key(), now)
            credentials[member.name] = pki.private_pem(key), chain
    engine.dispose()
    return settings, credentials


class Measurement:
    """The sites, the operator and the browser, in one event loop."""

    def __init__(
        self,
        folder: Path,
        settings: AggregatorSettings,
        credentials: dict[str, tuple[bytes, bytes]],
        server: subprocess.Popen[bytes],
    ) -> None:
        self.folder, self.settings, self.server = folder, settings, server
        self.credentials = credentials
        self.took = Latencies()
        self.engine = database.open_database(settings.database_url)
        self.sites: list[Site] = []

    async def run(self) -> list[dict[str, Any]]:
        """Measure, and return the lines."""
        lines: list[dict[str, Any]] = []
        addresses = await self._addresses()
        idle = self._memory("VmRSS")
        self._open_channels(addresses["address"])
        watching, seconds = await self._connect()
        lines.append(_line("sites/connect", SITES / seconds, "sites/s", sites=SITES))
        lines.append(_line("sites/memory/streams", self._memory("VmRSS"), "MB", before=idle))
        meanwhile = asyncio.create_task(self._look(addresses))
        begin, cpu = time.perf_counter(), self._cpu()
        lines += await self._steady()
        busy = (self._cpu() - cpu) / (time.perf_counter() - begin)
        lines.append(_line("sites/steady/processor", busy, "cores"))
        await self._create()
        for stage, seed in (("moments", 0), ("ranges", 1), ("counts", 2)):
            lines += await self._stage(stage, seed)
        meanwhile.cancel()
        lines += [self.took.line(f"sites/calls/{kind}", kind) for kind in sorted(self.took.found)]
        lines.append(_line("sites/memory/peak", self._memory("VmHWM"), "MB"))
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, meanwhile, return_exceptions=True)
        self.engine.dispose()
        return lines

    async def _addresses(self) -> dict[str, str]:
        path = self.folder / "addresses.json"
        await _until(path.exists, "the aggregator serves")
        return dict(json.loads(path.read_text()))

    def _open_channels(self, address: str) -> None:
        ca = tls_files(self.folder / "operator").ca.read_bytes()
        for name, (key, chain) in self.credentials.items():
            credentials = grpc.ssl_channel_credentials(ca, key, chain)
            self.sites.append(Site(name, grpc.aio.secure_channel(address, credentials, options=CLIENT_OPTIONS)))
        files = tls_files(self.folder / "operator")
        own = grpc.ssl_channel_credentials(ca, files.key.read_bytes(), files.certificate.read_bytes())
        self.operator = grpc.aio.secure_channel(address, own, options=CLIENT_OPTIONS)

    async def _connect(self) -> tuple[list[asyncio.Task[None]], float]:
        begin = time.perf_counter()
        watching = [asyncio.create_task(site.watch()) for site in self.sites]
        await asyncio.wait_for(asyncio.gather(*(site.connected.wait() for site in self.sites)), PATIENCE_S)
        return watching, time.perf_counter() - begin

    async def _look(self, addresses: dict[str, str]) -> None:
        """Ask as an operator's terminal and an operator's browser do, every second each."""
        sites, studies = (
            operations_pb2_grpc.SitesStub(self.operator),
            operations_pb2_grpc.StudiesStub(self.operator),
        )
        token = (self.folder / "operator" / "dashboard-token").read_text().strip()
        browser, pages = build_opener(HTTPCookieProcessor()), addresses["dashboard"]

        def page(path: str, form: dict[str, str] | None = None) -> bytes:
            data = urlencode(form).encode() if form else None
            with browser.open(f"http://{pages}{path}", data, timeout=60) as answer:
                return bytes(answer.read())

        await asyncio.to_thread(page, "/login", {"token": token})
        request = operations_pb2.ShowStudyRequest(name="scale")
        while True:
            await self.took.of("sites list", lambda: sites.ListSites(operations_pb2.ListSitesRequest(), timeout=60))
            if self.sites[0].known:
                await self.took.of("study show", lambda: studies.ShowStudy(request, timeout=60))
            await self.took.of("page sites", lambda: asyncio.to_thread(page, "/sites"))
            await asyncio.sleep(1)

    async def _steady(self) -> list[dict[str, Any]]:
        """Let every site report as one that counts does, with no stage open."""
        end = time.perf_counter() + STEADY_S

        async def reporting(site: Site, first: float) -> None:
            pause = first
            while time.perf_counter() + pause < end:
                await asyncio.sleep(pause)
                begin = time.perf_counter()
                kind = "report, steady" if begin > end - LOOKED_AT_S else "report, begins"
                await site.report(self.took, kind, b"", 0)
                pause = report_pause(time.perf_counter() - begin)

        await asyncio.gather(*(reporting(site, REPORT_S * i / SITES) for i, site in enumerate(self.sites)))
        line = self.took.line("sites/steady/report", "report, steady")
        self.took.found.pop("report, begins", None)
        return [line, _line("sites/steady/reports", line["calls"] / LOOKED_AT_S, "reports/s", wanted=SITES / REPORT_S)]

    async def _create(self) -> None:
        spec = StudySpec(
            name="scale", bands=BANDS, min_sites=SITES, dimensions=4, radix=22, top_k=100, masking="off",
            stage_deadline=timedelta(hours=1),
        )  # fmt: skip
        stub = operations_pb2_grpc.StudiesStub(self.operator)
        await stub.CreateStudy(operations_pb2.CreateStudyRequest(spec=spec_message(spec)), timeout=60)
        self.created = time.perf_counter()

    async def _stage(self, stage: str, seed: int) -> list[dict[str, Any]]:
        """Let all sites answer a stage, and wait for the sum."""
        published = (await asyncio.wait_for(asyncio.gather(*(site.plans.get() for site in self.sites)), PATIENCE_S))[0]
        of, row = codec.decode_plan(published), self._plan(stage)
        fingerprint = bytes.fromhex(row.fingerprint)
        files, expected = await asyncio.to_thread(tallies, fingerprint, zeros(of.stage), seed, self.folder)
        size = sum(len(data) for data, _ in files)
        room = asyncio.Semaphore(AT_ONCE)

        async def send(site: Site, file: tuple[bytes, bytes]) -> None:
            async with room:
                await site.report(self.took, "report, uploading", fingerprint, 100)
                await site.send(self.took, fingerprint, *file)

        begin, cpu = time.perf_counter(), self._cpu()
        await asyncio.gather(*(send(site, file) for site, file in zip(self.sites, files, strict=True)))
        seconds, cpu = time.perf_counter() - begin, self._cpu() - cpu
        await _until(lambda: self._plan(stage).state == "done", "the stage is merged")
        assert_same(self._merged(row), expected)
        closed, merged = self._at("close", row), self._at("merge", row)
        raw = SITES * sum(table.nbytes for table in expected.values())
        return [
            _line(f"sites/{stage}/uploads", SITES / seconds, "uploads/s", kilobytes=round(size / SITES / 1e3)),
            _line(f"sites/{stage}/bytes", size / seconds / 1e6, "MB/s", processor_ms=round(cpu / SITES * 1e3, 1)),
            _line(f"sites/{stage}/merge", raw / (merged - closed) / 1e9, "GB/s of tables", s=round(merged - closed, 2)),
        ]

    def _plan(self, stage: str) -> tables.Plan:
        with database.reading(self.engine) as session:
            return session.scalars(select(tables.Plan).filter_by(study="scale", stage=stage)).one()

    def _at(self, action: str, plan: tables.Plan) -> float:
        with database.reading(self.engine) as session:
            query = select(tables.Audit.at).filter_by(action=action, subject=plan.fingerprint)
            return session.scalars(query).one().timestamp()

    def _merged(self, plan: tables.Plan) -> Tables:
        with database.reading(self.engine) as session:
            digest = session.get_one(tables.Merge, plan.fingerprint).digest
        stage = codec.decode_plan(plan.published).stage
        return load_merged(BlobStore(self.settings.blobs_url), digest, plan.fingerprint, stage).tables

    def _memory(self, what: str) -> int:
        text = Path(f"/proc/{self.server.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith(what))
        return round(int(line.split()[1]) * 1024 / 1e6)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tallies(of: bytes, empty: Tables, seed: int, folder: Path) -> tuple[list[tuple[bytes, bytes]], Tables]:
    """Make a tally file for every site, no two alike, and their sum; each file with its SHA-256."""
    rng = np.random.default_rng(seed)
    base = {name: rng.integers(0, CELL, table.shape) for name, table in empty.items()}
    if "second" in base:  # of a positive matrix, as the next step expects
        base = moments_of(rng, base)
    files = []
    for number in range(SITES):
        base["pixels"][0] = 10**6 + number
        path = folder / "tally"
        digest = codec.write_tally(path, Tally(of, base))
        files.append((path.read_bytes(), digest))
        path.unlink()
    expected = {name: table * SITES for name, table in base.items()}
    expected["pixels"] = np.array([SITES * 10**6 + SITES * (SITES - 1) // 2])
    return files, expected


def moments_of(rng: np.random.Generator, base: Tables) -> Tables:
    """Count a few random pixels."""
    from cairn import kernels  # noqa: PLC0415 - compiled code is loaded for this alone
    from cairn.moments import split  # noqa: PLC0415

    total, second = kernels.load("numpy").moments(rng.integers(1, 4000, (len(BANDS), 2000)).astype(np.uint16))
    return base | {"sum": split(total), "second": split(second)}


def assert_same(found: Tables, expected: Tables) -> None:
    """Compare sums. Raises AssertionError."""
    for name, table in expected.items():
        # Two words to a sum: which part is carried into the higher word depends on how the sum was made.
        whole = exact if name in {"sum", "second"} else np.asarray
        assert np.array_equal(whole(found[name]), whole(table)), name


async def _until(so: Callable[[], bool], what: str) -> None:
    end = time.perf_counter() + PATIENCE_S
    while not so():
        if time.perf_counter() > end:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
        await asyncio.sleep(0.05)


def _line(name: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": round(value, 2), "unit": unit, **more}
