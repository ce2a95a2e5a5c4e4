"""What a federated round costs beside the training itself: our executors that stay, and Flower as it comes.

Two sites on this machine, TLS and node authentication on; the sites add 1 to every weight. `warm` goes the whole way of
a run (messages, aggregation, checkpoint); `bare` is Flower's own FedAvg loop with a process for every message
(`--isolation subprocess`), on the same weights in 16 arrays. CPU seconds are of all processes, those ended included.
"""

import logging
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from agent_trainer.config import DqnConfig
from agent_trainer.rounds.checkpoints import Checkpoints
from agent_trainer.rounds.executors import SiteExecutor
from agent_trainer.rounds.flower import Control, Link
from agent_trainer.rounds.grid import server_task
from agent_trainer.rounds.run import Run
from agent_trainer.rounds.wire import answer, read_order
from aggregator.members import pki
from cairn.rpc import Identity
from cairn.run import RunSpec
from cairn.tally import Tally

SITES = ("north", "south")
ARRAYS = 16
MEGABYTES = (10.0, 0.01)
ROUNDS, BARE_ROUNDS, SKIPPED = 8, 3, 1  # the first round of each also loads things
WAIT_S = 180.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(32 << 20),
}
BARE_APP = {
    "pyproject.toml": """
[project]
name = "bare"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "bare.server:app"
clientapp = "bare.client:app"
[tool.flwr.app.config]
megabytes = 1.0
rounds = 1
marks = ""
""",
    "bare/__init__.py": "",
    "bare/client.py": """
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    found = message.content["arrays"]
    made = ArrayRecord({name: Array(array.numpy() + 1) for name, array in found.items()})
    return Message(RecordDict({"arrays": made, "metrics": MetricRecord({"num-examples": 1.0})}), reply_to=message)
""",
    "bare/server.py": """
import time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

class Marked(FedAvg):
    marks = ""
    def aggregate_train(self, server_round, replies):
        made = super().aggregate_train(server_round, replies)
        with Path(self.marks).open("a") as file:
            file.write(f"{time.time()}\\n")
        return made

@app.main()
def main(grid, context):
    config = context.run_config
    size = int(config["megabytes"] * 1e6 / 4 / 16)
    rng = np.random.default_rng(0)
    arrays = ArrayRecord({f"w{i}": Array(rng.random(size, np.float32)) for i in range(16)})
    strategy = Marked(fraction_evaluate=0.0)
    strategy.marks = config["marks"]
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
""",
}


def run() -> Iterator[dict[str, Any]]:
    """Measure both ways with a model of 10 MB and with almost none."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    bare = {size: bare_rounds(size) for size in MEGABYTES}
    warm = {size: warm_rounds(size) for size in MEGABYTES}
    for size in MEGABYTES:
        for kind, found, other in (("warm", warm[size], bare[size]), ("bare", bare[size], None)):
            line = {"name": f"rounds/{kind}/{size:g}MB", "value": round(found["wall"], 2), "unit": "s"}
            if other:
                against = f"bare Flower {other['wall']:.1f} s, {sum(other['cpu'].values()):.1f} CPU s"
                line |= {"ratio": round(other["wall"] / found["wall"], 2), "against": against}
            cpu = {name: round(seconds, 2) for name, seconds in found["cpu"].items()}
            yield line | {"cpu_seconds": round(sum(cpu.values()), 2), "cpu_seconds_by_process": cpu}


class Daemons:
    """SuperLink and SuperNodes in a folder, ours or Flower's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.processes: dict[str, psutil.Popen] = {}
        authority = pki.make_authority("bench", datetime.now(UTC))
        pki.save_authority(authority, folder)
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity("bench", "aggregator", "superlink")
        leaf = pki.issue(authority, identity, key.public_key(), datetime.now(UTC), hosts=["127.0.0.1"])
        (folder / "link.pem").write_bytes(pki.chain_pem(leaf, authority))
        (folder / "link.key").write_bytes(pki.private_pem(key))
        (folder / "secret").write_bytes(os.urandom(32).hex().encode())
        self.ca = authority.certificate_pem
        self.keys = {name: self._node_key(name) for name in SITES}
        self.link = Link(f"127.0.0.1:{self.port}", (folder / "secret").read_bytes(), self.ca)

    def _node_key(self, name: str) -> bytes:
        key = ec.generate_private_key(ec.SECP384R1())
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(*form))
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def start(self, name: str, *arguments: object) -> None:
        """Start a process; what it prints goes to a file."""
        beside = str(Path(sys.executable).parent)
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(self.folder / "home")}
        environment["PATH"] = f"{beside}:{environment['PATH']}"
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = psutil.Popen(
                [str(argument) for argument in arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def start_link(self, *program: str, isolation: str) -> None:
        """Start SuperLink and wait until it answers."""
        secret = ("--superexec-auth-secret-file", self.folder / "secret") if isolation == "process" else ()
        self.start(
            "superlink",
            *program,
            *("--host", "127.0.0.1", "--port", self.port, "--isolation", isolation, *secret),
            *("--ssl-ca-certfile", self.folder / "ca.pem", "--ssl-certfile", self.folder / "link.pem"),
            *("--ssl-keyfile", self.folder / "link.key", "--enable-supernode-auth"),
            *("--database", self.folder / "flower.sqlite", "--disable-runtime-dependency-installation"),
        )
        context = ssl.create_default_context(cadata=self.ca.decode())
        wait_until(lambda: answers(f"https://127.0.0.1:{self.port}/health", context))

    def start_nodes(self, control: Control, *program: str, isolation: str) -> dict[str, str]:
        """Register and start the sites' SuperNodes; returns the address of each, once all are online."""
        control.register(self.keys)
        addresses = {}
        for name in SITES:
            addresses[name] = f"127.0.0.1:{(port := free_port())}"
            secret = ("--superexec-auth-secret-file", self.folder / "secret") if isolation == "process" else ()
            self.start(
                f"supernode {name}",
                *program,
                *("--superlink", f"127.0.0.1:{self.port}", "--root-certificates", self.folder / "ca.pem"),
                *("--auth-supernode-private-key", self.folder / f"{name}.key", "--isolation", isolation, *secret),
                *("--host", "127.0.0.1", "--port", port),
            )
        wait_until(lambda: sum(node.online for node in control.nodes()) == len(SITES))
        return addresses

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by process, each with all that it has started."""
        used = {name: cpu_of(process) for name, process in self.processes.items()}
        return used | {"server": sum(psutil.Process().cpu_times()[:2])}

    def stop(self) -> None:
        """End all."""
        for process in self.processes.values():
            for child in process.children(recursive=True):
                child.kill()
            process.stdin.close()
            process.kill()
            process.wait()


@contextmanager
def daemons() -> Iterator[Daemons]:
    """Give daemons in a folder of their own; end and delete them."""
    folder = Path(tempfile.mkdtemp())
    made = Daemons(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Nobody:
    """A desk that asks nothing and is told nothing."""

    def publish(self, plan: bytes, open_for: timedelta) -> None:
        """Never called: uniform replay publishes nothing."""

    def merge(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> Tally:
        """Never called: uniform replay merges nothing."""
        raise NotImplementedError

    def sum(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> tuple[Tally, list[str]]:
        """Never called: the run is not masked."""
        raise NotImplementedError

    def first_weights(self) -> bytes:
        """Never called: the run begins with weights of its own."""
        raise NotImplementedError

    def log(self, text: str) -> None:
        """Show what went wrong."""
        print(text, file=sys.stderr)

    def stopping(self) -> bool:
        """Never."""
        return False


def warm_rounds(megabytes: float) -> dict[str, Any]:
    """Play rounds of a run with executors that stay."""
    ours = (sys.executable, "-m", "agent_trainer.rounds.daemons")
    with daemons() as made:
        made.start_link(*ours, "superlink", isolation="process")
        with Control(made.link) as control:
            addresses = made.start_nodes(control, *ours, "supernode", isolation="process")
            for name, address in addresses.items():
                made.start(
                    f"executor {name}", sys.executable, "-m", "benchmarks.rounds", address, made.folder / "secret"
                )
            sites = {node.node_id: node.site for node in control.nodes()}
            size = int(megabytes * 1e6 / 4 / ARRAYS)
            weights = {f"w{i}": np.random.default_rng(i).random(size, np.float32) for i in range(ARRAYS)}
            spec = RunSpec(name="bench", algorithm="dqn", rounds=ROUNDS, min_sites=len(SITES), evaluate_every=0)
            played = Run(spec, DqnConfig(), weights, Checkpoints(made.folder / "runs", {}), Nobody())
            with server_task(made.link, control.start_run()) as grid:
                walls, cpus = [], [made.cpu()]
                while not played.finished:
                    walls += [report.seconds for report in played.play(grid, sites)]
                    cpus.append(made.cpu())
    return per_round(walls, cpus)


def bare_rounds(megabytes: float) -> dict[str, Any]:
    """Play rounds of Flower's own FedAvg, a process for every message."""
    beside = Path(sys.executable).parent
    with daemons() as made:
        made.start_link(str(beside / "flower-superlink"), isolation="subprocess")
        with Control(made.link) as control:
            made.start_nodes(control, str(beside / "flower-supernode"), isolation="subprocess")
            marks = made.folder / "marks"
            marks.touch()
            settings = {"megabytes": megabytes, "rounds": BARE_ROUNDS, "marks": str(marks)}
            start_bare(control, settings)
            times, cpus = [time.time()], [made.cpu()]
            for number in range(1, BARE_ROUNDS + 1):
                wait_until(lambda: len(marks.read_text().split()) >= number)  # noqa: B023 - called at once
                cpus.append(made.cpu())
            times += [float(mark) for mark in marks.read_text().split()]
    return per_round([b - a for a, b in pairwise(times)], cpus)


def start_bare(control: Control, settings: Mapping[str, Any]) -> None:
    """Send the bare app to SuperLink and start it."""
    config = BARE_APP["pyproject.toml"]
    for name, value in settings.items():
        before = next(line for line in config.splitlines() if line.startswith(f"{name} ="))
        config = config.replace(before, f"{name} = {value!r}".replace("'", '"'))
    files = {**{name: text.encode() for name, text in BARE_APP.items()}, "pyproject.toml": config.encode()}
    content, _ = build_fab_from_files(files)
    control._client.StartRun(StartRunRequest(fab=fab_to_proto(Fab("", content, {}))))


def per_round(walls: Sequence[float], cpus: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the median seconds, and the mean CPU seconds by process, of the rounds after the first."""
    first, last = cpus[SKIPPED], cpus[-1]
    counted = len(cpus) - 1 - SKIPPED
    cpu = {name: (last[name] - first.get(name, 0.0)) / counted for name in last}
    return {"wall": statistics.median(walls[SKIPPED:]), "cpu": cpu}


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and of all that it has started, those that have ended included."""
    try:
        times = process.cpu_times()
        living = sum(cpu_of(child) for child in process.children())
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system + living


def free_port() -> int:
    """Find a free port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def answers(url: str, context: ssl.SSLContext) -> bool:
    """Tell whether a URL answers."""
    try:
        with urllib.request.urlopen(url, context=context, timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for a condition. Raises TimeoutError."""
    end = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {WAIT_S:.0f} s; are the daemons up?")
        time.sleep(0.1)


def serve_site(address: str, secret: Path) -> None:
    """Be a site whose training is to add 1."""

    def app(message: Message, _: Context) -> Message:
        weights = read_order(message)[1]
        return answer({"examples": 1.0}, weights + np.float32(1), message)

    executor = SiteExecutor(Link(address, secret.read_bytes()), app, print)
    executor.serve(threading.Event())


if __name__ == "__main__":
    serve_site(sys.argv[1], Path(sys.argv[2]))
