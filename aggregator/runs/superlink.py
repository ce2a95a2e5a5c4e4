"""Flower's SuperLink and our trainer beside it: what they are started with, and that they stay.

sites' SuperNodes ──TLS, signed──► SuperLink ◄──TLS, token── trainer ──mutual TLS, role trainer──► this aggregator

Neither is imported: both run as `python -m agent_trainer.rounds.…`.
"""

import json
import os
import re
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2
from sqlalchemy import Engine

from aggregator.at_rest import data_keys, encryption_keys
from aggregator.members import pki
from aggregator.members.server_certificate import LOOPBACK, RENEW_BEFORE
from aggregator.members.trainer import admit_trainer
from aggregator.settings import AggregatorSettings, join_address, split_address
from aggregator.telemetry import Metrics
from cairn import flower
from cairn.children import GRACE_S, Child, Command, Transcript, uncoloured
from cairn.enrolment import tls_files
from cairn.errors import ConfigError
from cairn.files import write_atomically
from cairn.rpc import Identity, TlsFiles
from cairn.sealing import VARIABLE

PACKAGES: Final = (*flower.PACKAGES, "agent_trainer")
SUPERLINK: Final = "cairn.superlink"  # names in gRPC health and, without "cairn.", in logs and metrics
TRAINER: Final = "cairn.trainer"
PROBE_EVERY_S = 5.0
PROBE_PATIENCE_S = 3.0
ORPHAN_S = 15.0
LINE = 2000  # characters of a child's line in the log
_QUIET: Final = re.compile(r"\b(DEBUG|INFO)\b")


@dataclass(frozen=True)
class Programs:
    """How the two are called, before their own arguments."""

    superlink: tuple[str, ...] = (sys.executable, "-m", "agent_trainer.rounds.daemons", "superlink")
    trainer: tuple[str, ...] = (sys.executable, "-m", "agent_trainer.rounds.middle")


@dataclass(frozen=True)
class Places:
    """Where things are.

    folder      the aggregator's state folder; below it superlink/ and trainer/
    runs        folder of the checkpoints
    listen      host and port of the SuperLink
    hosts       names and IP addresses under which sites reach it
    aggregator  host and port where the aggregator serves
    data_keys   file of the wrapped data keys that seal the checkpoints; None: they lie in plain
    key_file    of the key-encryption keys; None: they are in the environment
    """

    folder: Path
    runs: Path
    listen: tuple[str, int]
    hosts: tuple[str, ...]
    aggregator: tuple[str, int]
    data_keys: Path | None = None
    key_file: Path | None = None

    @property
    def superlink(self) -> Path:
        """The SuperLink's folder: key, certificate, secret, database."""
        return self.folder / "superlink"

    @property
    def trainer(self) -> Path:
        """The trainer's credentials."""
        return self.folder / "trainer"

    @property
    def secret(self) -> Path:
        """What opens the SuperLink's own APIs to the trainer."""
        return self.superlink / "secret"


def places(settings: AggregatorSettings, listen: int, superlink: int, address: str) -> Places:
    """Say where things are.

    listen, superlink  ports of the aggregator and of the SuperLink
    address            of the SuperLink as the sites reach it
    """
    link = settings.training.superlink_listen if settings.training else settings.listen
    public = (*settings.addresses, address)
    return Places(
        folder=settings.state_dir,
        runs=settings.runs,
        listen=(split_address(link)[0], superlink),
        hosts=tuple(split_address(one)[0] for one in public),
        aggregator=(split_address(settings.listen)[0], listen),
        data_keys=data_keys(settings) if encryption_keys(settings) else None,
        key_file=settings.at_rest.key_file,
    )


def check_installed(packages: Iterable[str] = PACKAGES) -> None:
    """Raise ConfigError when what training needs is not there; nothing is imported."""
    missing = flower.missing_packages(packages)
    if missing:
        raise ConfigError(
            f"aggregator.toml has a section [training], but {' and '.join(missing)} cannot be imported; install "
            "cairn-federation[train], or take the section out"
        )


def near(host: str) -> str:
    """Return the host under which a process of this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not listened on


def choose_port(host: str, before: int | None) -> int:
    """Find a free port, the one of the last run if that can be: sites find the SuperLink again.

    A SuperLink that a killed aggregator has left ends within seconds; so long it is waited for.
    """
    end = time.monotonic() + ORPHAN_S
    while before:
        try:
            return _try_port(host, before)
        except OSError:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    return _try_port(host, 0)


class Superlink:
    """SuperLink and trainer, kept running from `start` to `stop`; the trainer starts when SuperLink first answers.

    tell_health  is told the health of both
    """

    def __init__(
        self,
        engine: Engine,
        authority: pki.Authority,
        places: Places,
        *,
        now: Callable[[], datetime],
        log: structlog.typing.FilteringBoundLogger,
        metrics: Metrics,
        tell_health: health.HealthServicer,
        programs: Programs | None = None,
    ) -> None:
        self._engine = engine
        self._authority = authority
        self._places = places
        self._now = now
        self._log = log
        self._metrics = metrics
        self._health = tell_health
        self._programs = programs or Programs()
        self.up = {"superlink": False, "trainer": False}  # whether each answers
        self._stopped = threading.Event()
        self._link = Child(
            "superlink", self._superlink_command, self._said("superlink", places.superlink), log, now=now
        )
        self._trainer = Child("trainer", self._trainer_command, self._said("trainer", places.trainer), log, now=now)
        self._watcher = threading.Thread(target=self._watch, name="superlink health", daemon=True)
        for folder in (places.superlink, places.trainer, places.runs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flower.keep_secret(places.secret)
        self._admitted_until = self._admit()
        self._tell(SUPERLINK, up=False)
        self._tell(TRAINER, up=False)

    def start(self) -> None:
        """Start SuperLink and, as soon as it answers, the trainer."""
        self._link.start()
        self._watcher.start()

    def ask(self) -> None:
        """Begin to stop."""
        self._stopped.set()
        for child in (self._trainer, self._link):
            child.ask()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End both, side by side."""
        self.ask()
        for child in (self._trainer, self._link):
            child.stop(grace_s)
        if self._watcher.is_alive():
            self._watcher.join()

    def _superlink_command(self) -> Command:
        host, port = self._places.listen
        files, until = self._certificate()
        arguments = (
            *("--host", host, "--port", str(port)),
            *("--ssl-ca-certfile", str(files.ca), "--ssl-certfile", str(files.certificate)),
            *("--ssl-keyfile", str(files.key)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._places.secret)),
            "--enable-supernode-auth",
            *("--database", str(self._places.superlink / "flower.sqlite")),
            "--disable-runtime-dependency-installation",
        )
        return Command((*self._programs.superlink, *arguments), self._environment(), until)

    def _trainer_command(self) -> Command:
        host, port = self._places.listen
        aggregator_host, aggregator_port = self._places.aggregator
        if self._now() >= self._admitted_until:
            self._admitted_until = self._admit()
        arguments = (
            *("--superlink", join_address(near(host), port)),
            *("--ca", str(tls_files(self._places.trainer).ca)),
            *("--secret", str(self._places.secret)),
            *("--aggregator", join_address(near(aggregator_host), aggregator_port)),
            *("--identity", str(self._places.trainer)),
            *("--checkpoints", str(self._places.runs)),
            *(("--data-keys", str(self._places.data_keys)) if self._places.data_keys else ()),
            *(("--key-file", str(self._places.key_file)) if self._places.data_keys and self._places.key_file else ()),
        )
        environment = self._environment()
        if self._places.data_keys and not self._places.key_file:
            environment[VARIABLE] = os.environ[VARIABLE]  # not among the arguments, which everybody may read
        return Command((*self._programs.trainer, *arguments), environment, self._admitted_until)

    def _admit(self) -> datetime:
        return admit_trainer(self._engine, self._authority, self._places.trainer, self._now())

    def _certificate(self) -> tuple[TlsFiles, datetime]:
        key, now = ec.generate_private_key(ec.SECP256R1()), self._now()
        identity = Identity(self._authority.federation, "aggregator", "superlink")
        hosts = tuple(dict.fromkeys((*self._places.hosts, *LOOPBACK)))
        certificate = pki.issue(self._authority, identity, key.public_key(), now, hosts=hosts)
        files = tls_files(self._places.superlink)
        for path, content, mode in (
            (files.key, pki.private_pem(key), 0o600),
            (files.certificate, pki.chain_pem(certificate, self._authority), 0o644),
            (files.ca, self._authority.certificate_pem, 0o644),
        ):
            with write_atomically(path, mode) as file:
                file.write(content)
        return files, certificate.not_valid_after_utc - RENEW_BEFORE

    def _environment(self) -> dict[str, str]:
        # Our own settings stay here: a database's URL may hold a password.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        return {**inherited, **flower.ENVIRONMENT, "FLWR_HOME": str(self._places.superlink / "flower")}

    def _said(self, name: str, folder: Path) -> Callable[[str], None]:
        transcript = Transcript(folder / f"{name}.log")

        def hear(line: str) -> None:
            transcript.write(line)
            # Flower has a line for every call, and one more for its answer.
            if (text := uncoloured(line).strip()) and not _QUIET.search(text[:60]):
                self._log.info("child said", child=name, said=_fields(text[:LINE]))

        return hear

    def _watch(self) -> None:
        context = ssl.create_default_context(cadata=self._authority.certificate_pem.decode())
        host, port = self._places.listen
        url = f"https://{join_address(near(host), port)}/health"
        begun = False
        while not self._stopped.is_set():
            up = _answers(url, context)
            self._tell(SUPERLINK, up=up)
            self._tell(TRAINER, up=self._trainer.running)
            if up and not begun:
                begun = True
                self._log.info("superlink answers", address=join_address(host, port))
                self._trainer.start()
            self._stopped.wait(PROBE_EVERY_S if begun else 0.5)

    def _tell(self, service: str, *, up: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(service, status.SERVING if up else status.NOT_SERVING)
        process = service.removeprefix("cairn.")
        self._metrics.training_up.labels(process).set(up)
        self.up[process] = up


def _try_port(host: str, port: int) -> int:
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        taken: int = found.getsockname()[1]
        return taken


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_PATIENCE_S, context=context) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except OSError:  # which URLError is
        return False


def _fields(text: str) -> object:
    # The trainer writes JSON lines; Flower writes text.
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text
