"""What the two child processes of training are started with: programs, files, environment, ports."""

import hashlib
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cairn import enrolment, flower
from cairn.files import write_atomically
from edge_node.policy import against_updates
from edge_node.settings import SiteSettings, Training


@dataclass(frozen=True)
class Programs:
    """How the two are called, before their own arguments."""

    supernode: tuple[str, ...] = (sys.executable, "-m", "agent_trainer.rounds.daemons", "supernode")
    trainer: tuple[str, ...] = (sys.executable, "-m", "agent_trainer.rounds.site")


PROGRAMS = Programs()


def not_installed(missing: Iterable[str]) -> str:
    """Say it in a sentence."""
    return (
        f"this site is to train, but {' and '.join(missing)} cannot be imported; install cairn-federation[train], or "
        "take [training] out of site.toml"
    )


@dataclass(frozen=True)
class Surroundings:
    """A site's folder for training, and the arguments made from it."""

    settings: SiteSettings
    training: Training

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        return self.settings.training_folder

    @property
    def ca(self) -> Path:
        """The federation's CA."""
        return enrolment.tls_files(self.settings.identity_folder).ca

    def not_allowed(self) -> str | None:
        """Say why this site's policy lets no trainer run; None: it may."""
        policy = self.settings.policy
        if "updates" not in policy.streams:
            return "this site lets no model updates out (policy.streams), so it does not train"
        if policy.apps is not None and (found := app_digest()) not in policy.apps:
            return f"the trainer that is installed has the digest {found}, which policy.apps does not list"
        return None

    def key_stamp(self) -> int:
        """Tell one key of the SuperNode from another by when its file was written."""
        try:
            return enrolment.supernode_key(self.settings.identity_folder).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def prepare(self) -> None:
        """Make the folders, the secret between SuperNode and trainer, and the trainer's settings."""
        for folder in (self.folder, self.settings.replay_folder, self.folder / "flower", self.folder / "site"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flower.keep_secret(self._secret)
        told = {
            "runs": self.training.runs,
            "run_digests": self.settings.policy.runs,
            "against_plain": against_updates(self.settings, masked=False),
            "against_masked": against_updates(self.settings, masked=True),
            **{kind: [dict(table) for table in tables] for kind, tables in self.training.tables.items()},
            "device": self.training.device,
            "threads": self.training.threads,
            "processes": self.training.processes,
            "folder": str(self.folder / "site"),
        }
        with write_atomically(self._settings, mode=0o600) as file:
            file.write(json.dumps(told, default=str).encode())

    def supernode(self, superlink: str, port: int) -> tuple[str, ...]:
        """Give the SuperNode's arguments."""
        return (
            *("--superlink", superlink),
            *("--root-certificates", str(self.ca)),
            *("--auth-supernode-private-key", str(enrolment.supernode_key(self.settings.identity_folder))),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._secret)),
            *("--host", "127.0.0.1", "--port", str(port)),
        )

    def trainer(self, port: int) -> tuple[str, ...]:
        """Give the trainer's arguments."""
        return (
            *("--supernode", f"127.0.0.1:{port}"),
            *("--secret", str(self._secret)),
            *("--settings", str(self._settings)),
            *("--spool", str(self.settings.replay_folder)),
        )

    def environment(self) -> Mapping[str, str]:
        """Give the environment of both."""
        threads = str(self.training.threads)
        return {
            **os.environ,
            **flower.ENVIRONMENT,
            "FLWR_HOME": str(self.folder / "flower"),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }

    @property
    def _secret(self) -> Path:
        return self.folder / "secret"

    @property
    def _settings(self) -> Path:
        return self.folder / "site.json"


def app_digest() -> str:
    """Return the digest of the program that trains here: SHA-256 over the names and digests of its packages' files.

    Nothing is imported. What the aggregator sends along with a run is never executed, so this is all that runs.
    """
    whole = hashlib.sha256()
    for package in ("cairn", "agent_trainer"):
        found = importlib.util.find_spec(package)
        root = Path(next(iter(found.submodule_search_locations or [""]))) if found else Path()
        for path in sorted(root.rglob("*.py")) if found else ():
            whole.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def free_port() -> int:
    """Find a port of this machine's loopback address that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port of the loopback address."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def for_log(line: str) -> dict[str, str | int | float | bool]:
    """Take out of a trainer's line what may stand in the node's log: the scalars of a line of JSON, else nothing."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    scalars = {name: value for name, value in fields.items() if isinstance(value, str | int | float | bool)}
    return {name: value[:300] if isinstance(value, str) else value for name, value in scalars.items()}
