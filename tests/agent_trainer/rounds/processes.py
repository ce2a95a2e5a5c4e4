"""A federation of real processes on loopback: SuperLink, SuperNodes, trainers, and the middle's trainer.

The aggregator is a small service here: a queue of runs and what was reported of them. The edge is this process at the
other end of the trainers' pipes: it gives leave to every update.
"""

import hashlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.members import pki
from cairn import codec
from cairn.kernels import load
from cairn.plan import ReplayPlan, ReplayRangesPlan
from cairn.rpc import Admission, Identity, ServerTls, server, server_credentials
from cairn.run import RunSpec, run_message
from cairn.sketch import Sketch
from cairn.tally import Tally, zeros
from cairn.transitions import cell_histogram
from cairn.v1 import training_pb2, training_pb2_grpc

PATIENCE_S = 300.0  # the machine may be shared by ten others
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
}


def until(what: str, true: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_s:.0f} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Aggregator(training_pb2_grpc.TrainingServicer):
    """The service Training: one queue of runs; tallies are made on the spot of what the trainers handed over."""

    def __init__(self, spools: dict[str, Path]) -> None:
        self.keys: dict[str, bytes] = {}
        self._spools = spools
        self._queue: list[RunSpec] = []
        self.plans: dict[bytes, bytes] = {}
        self.rounds: dict[str, dict[int, training_pb2.Round]] = {}
        self.reported: list[tuple[str, int]] = []
        self.logs: dict[str, list[str]] = {}
        self.ended: dict[str, tuple[str, str]] = {}
        self.stopping: set[str] = set()

    def submit(self, spec: RunSpec) -> str:
        self.ended.pop(spec.name, None)
        self._queue.append(spec)
        return spec.name

    def ClaimRun(self, request, context):
        if not self._queue:
            return training_pb2.ClaimRunResponse()
        spec = self._queue[0]
        return training_pb2.ClaimRunResponse(spec=run_message(spec), round=len(self.rounds.get(spec.name, {})))

    def ListNodes(self, request, context):
        nodes = [training_pb2.TrainingNode(site=name, supernode_key_pem=key) for name, key in self.keys.items()]
        return training_pb2.ListNodesResponse(nodes=nodes)

    def PublishReplay(self, request, context):
        self.plans[hashlib.sha256(request.plan).digest()] = request.plan
        return training_pb2.PublishReplayResponse()

    def MergeReplay(self, request, context):
        stage = codec.decode_plan(self.plans[request.fingerprint]).stage
        tables = zeros(stage)
        for site in request.sites:
            rows = np.load(self._spools[site] / f"{request.fingerprint.hex()}.npy")
            tables["transitions"] += len(rows)
            if isinstance(stage, ReplayRangesPlan):
                tables["cells"] += cell_histogram(rows)
            elif isinstance(stage, ReplayPlan):
                sketch = Sketch(stage.sketch, load("numpy"))
                sketch.update(rows)
                tables[stage.table] += sketch.table
        path = self._spools[request.sites[0]] / "merged.tally"
        codec.write_tally(path, Tally(request.fingerprint, tables))
        yield training_pb2.MergeReplayResponse(data=path.read_bytes())

    def ReportRun(self, request, context):
        if request.HasField("round"):
            self.rounds.setdefault(request.name, {})[request.round.round] = request.round
            self.reported.append((request.name, request.round.round))
        if request.log:
            self.logs.setdefault(request.name, []).append(request.log)
        if request.ended:
            self.ended[request.name] = (request.ended, request.message)
            self._queue = [spec for spec in self._queue if spec.name != request.name]
        return training_pb2.ReportRunResponse(stop=request.name in self.stopping)


class Federation:
    """Starts, kills and starts again. `close` ends all."""

    def __init__(self, folder: Path, sites: tuple[str, ...] = ("north", "south")) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen] = {}
        self.closing = False
        self._authority = pki.make_authority("demo", datetime.now(UTC))
        pki.save_authority(self._authority, folder)
        self.secret = folder / "secret"
        self.secret.write_text(secrets.token_hex(32))
        self._issue("link", "aggregator", "superlink")
        self._issue("trainer", "trainer", "trainer")
        self.sites = {name: Site(self, name) for name in sites}
        self.aggregator = Aggregator({name: site.spool for name, site in self.sites.items()})
        self.aggregator.keys = {name: site.public for name, site in self.sites.items()}
        self.link_port = free_port()
        self._serve()

    def _issue(self, folder: str, role: str, name: str) -> ServerTls:
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity("demo", role, name)
        leaf = pki.issue(self._authority, identity, key.public_key(), datetime.now(UTC), hosts=["127.0.0.1"])
        tls = ServerTls(self._authority.certificate_pem, pki.chain_pem(leaf, self._authority), pki.private_pem(key))
        place = self.folder / folder
        place.mkdir()
        for file, content in (("ca.pem", tls.ca), ("certificate.pem", tls.chain), ("key.pem", tls.key)):
            (place / file).write_bytes(content)
        return tls

    def _serve(self) -> None:
        tls = self._issue("aggregator", "aggregator", "aggregator")
        roles = {"cairn.v1.Training": frozenset({"trainer"})}
        self._server = server([Admission(roles, lambda _: None, lambda *_: None)], 8)
        training_pb2_grpc.add_TrainingServicer_to_server(self.aggregator, self._server)
        credentials = server_credentials(lambda: tls, ask_client=True)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def start(self) -> "Federation":
        self.start_link()
        self.start_middle()
        for site in self.sites.values():
            site.start()
        for name in self.sites:  # a run that begins with one site alone does not ask a second that comes later
            until(f"SuperLink knows {name}", lambda name=name: "SuperNode ID:" in self.said(f"{name}-node"))
        return self

    def start_link(self) -> None:
        link = self.folder / "link"
        self._spawn(
            "superlink",
            *("agent_trainer.rounds.daemons", "superlink", "--host", "127.0.0.1", "--port", str(self.link_port)),
            *("--ssl-ca-certfile", link / "ca.pem", "--ssl-certfile", link / "certificate.pem"),
            *("--ssl-keyfile", link / "key.pem", "--isolation", "process"),
            *("--superexec-auth-secret-file", self.secret, "--enable-supernode-auth"),
            *("--database", self.folder / "flower.sqlite", "--disable-runtime-dependency-installation"),
        )
        until("SuperLink answers", lambda: self.get("/health") == 200)

    def start_middle(self) -> None:
        self._spawn(
            "middle",
            *("agent_trainer.rounds.middle", "--superlink", f"127.0.0.1:{self.link_port}"),
            *("--ca", self.folder / "ca.pem", "--secret", self.secret, "--aggregator", f"127.0.0.1:{self.port}"),
            *("--identity", self.folder / "trainer", "--checkpoints", self.folder / "runs"),
        )

    def get(self, path: str) -> int:
        """GET a path of SuperLink; returns the status, 0 when nobody answers."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{self.link_port}{path}", context=context, timeout=5) as got:
                return got.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def kill(self, name: str) -> None:
        """Kill a process at once, as a power cut would."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        process.stdin.close()

    def alive(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def finish(self, spec: RunSpec, patience_s: float = PATIENCE_S) -> tuple[str, str]:
        """Submit a run and wait for its end; returns its state and sentence."""
        self.aggregator.submit(spec)
        return self.wait_for(spec.name, patience_s)

    def wait_for(self, run: str, patience_s: float = PATIENCE_S) -> tuple[str, str]:
        try:
            until(f"the run {run} ends", lambda: run in self.aggregator.ended, patience_s)
        except AssertionError as error:
            logs = {name: self.said(name)[-1500:] for name in self._processes}
            raise AssertionError(f"{error}\n{self.aggregator.logs.get(run)}\n" + json.dumps(logs, indent=1)) from error
        return self.aggregator.ended[run]

    def _spawn(self, name: str, *arguments: object, out: int | None = None) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("a")
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(self.folder / "flower")}
        process = subprocess.Popen(
            [sys.executable, *(() if str(arguments[0]).endswith(".py") else ("-m",)), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=out or log,
            stderr=log,
            env=environment,
            text=True,
        )
        log.close()
        self._processes[name] = process
        return process

    def close(self) -> None:
        """Close all standard inputs, and see that every process ends of that."""
        self.closing = True
        for process in self._processes.values():
            with suppress(OSError):
                process.stdin.close()
        for name, process in self._processes.items():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"{name} did not end with its standard input") from None
        self._server.stop(0).wait()


class Site:
    """One site's SuperNode and trainer, and this process as its edge node."""

    def __init__(self, federation: Federation, name: str) -> None:
        self._federation, self.name = federation, name
        self.folder = federation.folder / name
        self.spool = self.folder / "spool"
        self.spool.mkdir(parents=True)
        self.halts.mkdir()
        key = ec.generate_private_key(ec.SECP384R1())
        (self.folder / "node.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
        (self.folder / "secret").write_text(secrets.token_hex(32))
        self.runs = ["*"]
        self.scenes = [{"kind": "generated", "tasks": ["liver"], "images": 6, "size": 40, "seed": len(name)}]
        self.news: list[dict] = []
        self.answer_to_updates = "send"

    def start(self) -> None:
        self.port = free_port()
        self.start_node()
        self.start_trainer()

    def start_node(self) -> None:
        node = self.spawn_node()
        threading.Thread(target=self._keep_node, args=(node,)).start()

    def spawn_node(self) -> subprocess.Popen:
        """Start a SuperNode that nobody starts again."""
        return self._federation._spawn(
            f"{self.name}-node",
            *("agent_trainer.rounds.daemons", "supernode"),
            *("--superlink", f"127.0.0.1:{self._federation.link_port}"),
            *("--root-certificates", self._federation.folder / "ca.pem"),
            *("--auth-supernode-private-key", self.folder / "node.key", "--isolation", "process"),
            *("--superexec-auth-secret-file", self.folder / "secret", "--host", "127.0.0.1", "--port", self.port),
        )

    def _keep_node(self, process: subprocess.Popen) -> None:
        # As the edge does: a SuperNode whose key is not registered yet ends, and is started again.
        code = process.wait()
        process.stdin.close()
        kept = self._federation._processes.get(f"{self.name}-node") is process
        if code not in {0, -9} and kept and not self._federation.closing:
            self.start_node()

    @property
    def halts(self) -> Path:
        """Where a test says at what place the trainer is to stand still, see halting_site.py."""
        return self.folder / "halts"

    def start_trainer(self) -> None:
        told = {"runs": self.runs, "scenes": self.scenes, "device": "cpu", "threads": 1}
        settings = self.folder / "site.json"
        settings.write_text(json.dumps({**told, "folder": str(self.folder / "trainer")}))
        process = self._federation._spawn(
            f"{self.name}-trainer",
            *("tests.agent_trainer.rounds.halting_site", self.halts, "--supernode", f"127.0.0.1:{self.port}"),
            *("--secret", self.folder / "secret", "--settings", settings, "--spool", self.spool),
            out=subprocess.PIPE,
        )
        self._ears = threading.Thread(target=self._hear, args=(process,))
        self._ears.start()

    def start_script(self, script: Path) -> None:
        """Run an executor of a test's own in place of the trainer."""
        self._federation._spawn(f"{self.name}-trainer", script, f"127.0.0.1:{self.port}", self.folder / "secret")

    def _hear(self, process: subprocess.Popen) -> None:
        with process.stdout:
            for line in process.stdout:
                news = json.loads(line)
                self.news.append(news)
                if news["event"] == "update":
                    self.ask(process, do=self.answer_to_updates, id=news["id"], sentence="the disk is full")

    def ask(self, process: subprocess.Popen, **question: object) -> None:
        with suppress(OSError, ValueError):
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()

    def answer(self, **question: object) -> dict:
        """Ask the trainer and wait for its answer."""
        self.ask(self._federation._processes[f"{self.name}-trainer"], **question)
        until(f"an answer to {question}", lambda: any(news.get("id") == question["id"] for news in list(self.news)))
        return next(news for news in self.news if news.get("id") == question["id"])

    def phases(self, run: str) -> list[tuple[int, str]]:
        return [(n["round"], n["phase"]) for n in list(self.news) if n["event"] == "round" and n["run"] == run]
