"""A thousand uploads that never end and, at once, 500 connections that never begin, and one honest site among them.

A real aggregator process with mutual TLS on the loopback. 63 sites keep 16 upload streams open each, one a study, and
send a kilobyte every few seconds; 500 TCP connections send a byte of a TLS hello now and then, and come back when the
server hangs up. Meanwhile an honest site asks and sends 64 KiB, again and again; its calls are timed, and after each
is counted what is open. Resident memory is the aggregator's.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator import database, tables
from aggregator.members import enrolment_service, pki
from aggregator.members.initialise import initialise
from aggregator.settings import load_settings
from aggregator.study.messages import spec_message
from cairn.profile import operator_channel
from cairn.rpc import CLIENT_OPTIONS
from cairn.study import StudySpec
from cairn.v1 import operations_pb2, operations_pb2_grpc, tallies_pb2, tallies_pb2_grpc

SITES, STUDIES, SLOW, HONEST = 63, 16, 500, 100
MESSAGE, PART = b"\xff" * 1024, b"\x01" * (64 << 10)
PAUSE_S = 5.0
HUNG_UP = "slow connections on which the server hung up"
RANGE: dict[str, Callable[[Iterable[int]], int]] = {"least": min, "most": max}
OPEN_S = 240.0  # for everything to be open


def run() -> Iterator[dict[str, Any]]:
    """Measure the honest site alone, then among the others; and the aggregator's memory."""
    with tempfile.TemporaryDirectory() as folder:
        yield from asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> list[dict[str, Any]]:
    initialise(folder / "a", "streams", ["127.0.0.1:0"], datetime.now(UTC))
    log = folder / "aggregator.log"
    members = _members(folder / "a", [f"site-{n}" for n in range(SITES)] + ["honest"])
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "cairn", "aggregator", "serve", "--dir", str(folder / "a")], stderr=said
        )
    try:
        address = _address(folder / "a", process)
        plans = _studies(folder / "a")
        memory = psutil.Process(process.pid)
        honest = grpc.aio.secure_channel(address, members.pop("honest"), options=CLIENT_OPTIONS)
        alone = await _honest(honest, plans[0])
        before = memory.memory_info().rss
        channels = {
            name: grpc.aio.secure_channel(address, key, options=CLIENT_OPTIONS) for name, key in members.items()
        }
        counted = {"open": 0, "slow": 0, HUNG_UP: 0}
        tasks = [
            asyncio.create_task(_endless(channel, plan, counted)) for channel in channels.values() for plan in plans
        ]
        await _until(lambda: counted["open"] >= SITES * STUDIES)
        host, _, port = address.rpartition(":")
        tasks += [asyncio.create_task(_slow(host, int(port), counted)) for _ in range(SLOW)]
        await _until(lambda: counted["open"] >= SITES * STUDIES and counted["slow"] >= SLOW)
        looks: list[tuple[int, int, int]] = []
        among = await _honest(
            honest, plans[0], lambda: looks.append((counted["open"], counted["slow"], memory.memory_info().rss))
        )
        streams, slow, rss = zip(*looks, strict=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in [honest, *channels.values()]:
            await channel.close(None)
        refused = {why: number for why, number in counted.items() if why not in {"open", "slow"}}
        found = [
            *(_line(f"open/{name}", value(streams), "upload streams") for name, value in RANGE.items()),
            *(_line(f"slow/{name}", value(slow), "connections without a handshake") for name, value in RANGE.items()),
            *(_line(f"refused/{why}", number, "times") for why, number in refused.items()),
            *(_line(f"log/{what}", number, "times") for what, number in _problems(log).items()),
            *(_line(f"alone/{name}", value, "ms") for name, value in alone.items()),
            *(_line(f"among/{name}", value, "ms") for name, value in among.items()),
            _line("memory/before", before / 1e6, "MB"),
            _line("memory/most", max(rss) / 1e6, "MB"),
        ]
        return [{**line, "name": f"streams/{line['name']}"} for line in found]
    finally:
        process.terminate()
        process.wait(60)


async def _until(there: Callable[[], bool]) -> None:
    """Wait until all is open, or for as long as that may take: how much was open is part of what is told."""
    deadline = time.monotonic() + OPEN_S
    while not there() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def _problems(log: Path) -> Counter[str]:
    """Count what the aggregator wrote of calls that it refused or failed at, by why."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return Counter(
        str(line.get("because") or line.get("exception", "")).strip().rpartition("\n")[2][:80]
        for line in lines
        if line.get("event") in {"refused", "failed"}
    )


def _line(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": round(value, 1), "unit": unit, "ratio": None, "against": None}


def _members(folder: Path, names: list[str]) -> dict[str, grpc.ChannelCredentials]:
    """Make sites members past the enrolment, which is not what is measured."""
    settings = load_settings(folder / "aggregator.toml")
    authority = pki.load_authority(settings.federation, settings.pki_dir)
    engine, now, made = database.open_database(settings.database_url), datetime.now(UTC), {}
    with database.writing(engine) as rows:
        for name in names:
            key = ec.generate_private_key(ec.SECP256R1())
            member = tables.Member(name=name, role="site", state="enrolled", invited_at=now, problems=[])
            rows.add(member)
            rows.flush()
            chain = enrolment_service.certify(rows, authority, member, key.public_key(), now)
            made[name] = grpc.ssl_channel_credentials(authority.certificate_pem, pki.private_pem(key), chain)
    engine.dispose()
    return made


def _address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    tick = threading.Event()
    while not (folder / "addresses.json").exists():
        assert process.poll() is None
        tick.wait(0.1)
    return str(json.loads((folder / "addresses.json").read_text())["address"])


def _studies(folder: Path) -> list[bytes]:
    """Open studies; returns the fingerprints of their first plans."""
    bands = tuple(f"band{number}" for number in range(128))
    with operator_channel(folder / "operator") as channel:
        stub = operations_pb2_grpc.StudiesStub(channel)
        for number in range(STUDIES):
            spec = StudySpec(name=f"study-{number}", bands=bands, min_sites=SITES, masking="off")
            stub.CreateStudy(operations_pb2.CreateStudyRequest(spec=spec_message(spec)), timeout=60)
    engine = database.open_database(load_settings(folder / "aggregator.toml").database_url)
    with database.reading(engine) as rows:
        found = [bytes.fromhex(plan.fingerprint) for plan in rows.query(tables.Plan)]
    engine.dispose()
    return found


async def _endless(channel: grpc.aio.Channel, plan: bytes, counted: dict[str, int]) -> None:
    """Upload and never end."""
    stub: Any = tallies_pb2_grpc.TalliesStub(channel)
    digest, begun = np.random.default_rng().bytes(32), 0

    async def messages() -> AsyncIterator[tallies_pb2.UploadRequest]:
        nonlocal begun
        for number in range(150):
            yield tallies_pb2.UploadRequest(fingerprint=plan, offset=number * len(MESSAGE), data=MESSAGE)
            if number == 0:
                begun, counted["open"] = 1, counted["open"] + 1
            await asyncio.sleep(PAUSE_S)

    while True:
        begun = 0
        try:
            await stub.QueryUpload(tallies_pb2.QueryUploadRequest(fingerprint=plan, digest=digest), timeout=120)
            await stub.Upload(messages())
        except grpc.aio.AioRpcError as error:
            counted["open"] -= begun > 0
            counted[str(error.details())[:40]] = counted.get(str(error.details())[:40], 0) + 1
            await asyncio.sleep(PAUSE_S)


async def _slow(host: str, port: int, counted: dict[str, int]) -> None:
    """Begin a TLS handshake and never come to its end; again and again."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(PAUSE_S)
            continue
        counted["slow"] += 1
        try:
            for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), PAUSE_S)
                    break  # the server answered, and closes
        except OSError:
            pass
        finally:
            counted["slow"] -= 1
            writer.close()
        counted[HUNG_UP] += 1


async def _honest(channel: grpc.aio.Channel, plan: bytes, look: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Time an honest site's uploads of 64 KiB; milliseconds."""
    stub: Any = tallies_pb2_grpc.TalliesStub(channel)
    took = []
    for number in range(HONEST):
        digest = number.to_bytes(32, "big")

        async def messages() -> AsyncIterator[tallies_pb2.UploadRequest]:
            yield tallies_pb2.UploadRequest(fingerprint=plan, data=PART)

        began = time.perf_counter()
        await stub.QueryUpload(tallies_pb2.QueryUploadRequest(fingerprint=plan, digest=digest), timeout=60)
        answer = await stub.Upload(messages(), timeout=60)
        assert answer.committed_size == len(PART)
        took.append(1000 * (time.perf_counter() - began))
        look()
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 99)}
