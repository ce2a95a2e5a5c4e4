"""Which Docker engine is meant, how it is reached, and its errors as sentences."""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import docker
import requests
from docker.constants import DEFAULT_DOCKER_API_VERSION, MINIMUM_DOCKER_API_VERSION
from docker.errors import APIError, DockerException, ImageNotFound, NotFound, TLSParameterError
from docker.tls import TLSConfig

from cairn.errors import CairnError, ConfigError, Unreachable

LOCAL = "unix:///var/run/docker.sock"
FAR = "/var/run/docker.sock"  # of an engine behind SSH, unless the URL names another
SSH_S = 60.0
CALL_S = 120  # of the engine, for one call; long work comes as a stream
__all__ = ["Engine", "NotFound", "Target", "choose", "opened_engine", "spoken"]

Engine: TypeAlias = Any  # docker.DockerClient, which has no types


@dataclass(frozen=True)
class Target:
    """An engine. `tls` only with tcp://."""

    url: str
    tls: TLSConfig | None = None

    @property
    def local(self) -> bool:
        """Tell whether the engine's files are this machine's."""
        return self.url.startswith("unix://")


def choose(host: str | None, context: str | None, environ: Mapping[str, str]) -> Target:
    """Choose as the docker command does: --host, --context, DOCKER_HOST, DOCKER_CONTEXT, the current context.

    Raises ConfigError; also for tcp:// without TLS, which gives the machine to everybody who reaches the port.
    """
    if host and context:
        raise ConfigError("--host and --context both name an engine; give one of them")
    if host or (not context and environ.get("DOCKER_HOST")):
        url = host or environ["DOCKER_HOST"]
        return _checked(url, _tls_of_environment(environ) if url.startswith(("tcp://", "https://")) else None)
    home = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    named = context or environ.get("DOCKER_CONTEXT") or _current(home)
    return _checked(LOCAL, None) if named == "default" else _of_context(home, named)


def _current(home: Path) -> str:
    try:
        return str(json.loads((home / "config.json").read_bytes()).get("currentContext", "default"))
    except (OSError, ValueError):
        return "default"


def _of_context(home: Path, named: str) -> Target:
    """Read what `docker context create` wrote. The SDK's own reader finds none where there is no config.json."""
    folder = hashlib.sha256(named.encode()).hexdigest()
    try:
        found = json.loads((home / "contexts/meta" / folder / "meta.json").read_bytes())
        url = str(found["Endpoints"]["docker"]["Host"])
    except FileNotFoundError as error:
        raise ConfigError(f"there is no docker context {named!r}; `docker context ls` names them") from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the docker context {named!r} cannot be read ({type(error).__name__})") from error
    tls = home / "contexts/tls" / folder / "docker"
    return _checked(url, _tls_of(tls) if tls.is_dir() else None)


@contextmanager
def opened_engine(target: Target) -> Iterator[Engine]:
    """Open an engine for a block. Raises Unreachable with what to do."""
    with _way(target) as url:
        engine = _connect(target, url)
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def _way(target: Target) -> Iterator[str]:
    """Give the URL that the SDK connects to: over SSH a socket here, which OpenSSH forwards to the engine's there.

    The SDK's own SSH starts a process a connection and breaks after a command was run in a container. OpenSSH knows
    the person's keys, hosts and jumps, and refuses a host that it does not know.
    """
    if not target.url.startswith("ssh://"):
        yield target.url
        return
    far = urlsplit(target.url)
    with tempfile.TemporaryDirectory(prefix="cairn-ssh-") as folder:
        socket = Path(folder) / "engine.sock"
        command = ["ssh", "-NT", "-o", "ExitOnForwardFailure=yes", "-o", f"ConnectTimeout={SSH_S:.0f}"]
        command += ["-L", f"{socket}:{far.path or FAR}", "--", f"ssh://{far.netloc}"]
        try:
            tunnel = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Unreachable("there is no `ssh` on this machine; install OpenSSH's client") from error
        try:
            deadline = time.monotonic() + SSH_S
            while not socket.exists():
                if tunnel.poll() is not None or time.monotonic() > deadline:
                    raise Unreachable(_no_engine(target, ConnectionError()))
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            tunnel.terminate()
            tunnel.wait()


def _connect(target: Target, url: str) -> Engine:
    options: dict[str, Any] = {"base_url": url, "tls": target.tls or False, "timeout": CALL_S}
    if target.local and not Path(url.removeprefix("unix://")).exists():
        raise Unreachable(_no_engine(target, FileNotFoundError()))
    try:
        # The SDK's own way to ask for the version leaves what it opened open when nobody answers.
        first = docker.APIClient(version=MINIMUM_DOCKER_API_VERSION, **options)
        first.trust_env = target.tls is None  # else REQUESTS_CA_BUNDLE would go before the engine's own CA
        try:
            speaks = str(first.version(api_version=False)["ApiVersion"])
        finally:
            first.close()
        engine = docker.DockerClient(version=min(speaks, DEFAULT_DOCKER_API_VERSION, key=_numbers), **options)
        engine.api.trust_env = first.trust_env
    except (DockerException, requests.RequestException, OSError, ValueError, KeyError) as error:
        raise Unreachable(_no_engine(target, error)) from error
    return engine


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@contextmanager
def spoken(what: str) -> Iterator[None]:
    """Turn what the engine answers inside the block into a sentence that begins with what was tried."""
    try:
        yield
    except ImageNotFound as error:
        raise ConfigError(f"{what}: the engine has no such image ({_said(error)})") from error
    except APIError as error:
        raise CairnError(f"{what}: the engine refuses: {_said(error)}") from error
    except (requests.RequestException, DockerException, ConnectionError) as error:
        raise Unreachable(
            f"{what}: the engine went away ({type(error).__name__}); try again when it is back"
        ) from error


def _said(error: APIError) -> str:
    words = str(error.explanation or error).strip().splitlines() or ["no reason given"]
    return words[0][:300]


def _no_engine(target: Target, error: Exception) -> str:
    text = str(error)
    if target.local:
        path = target.url.removeprefix("unix://")
        if "PermissionError" in text or "Permission denied" in text:
            return f"this user may not use the Docker engine at {path}; join the group docker, or use sudo"
        return f"no Docker engine answers at {path}; start it (`systemctl start docker`), or name another with --host"
    if isinstance(error, requests.exceptions.SSLError) or "SSLError" in text or "certificate" in text:
        return (
            f"the engine at {target.url} and this machine do not trust each other's certificates; see DOCKER_CERT_PATH"
        )
    if target.url.startswith("ssh://"):
        return f"no Docker engine answers through {target.url}; does `ssh {target.url[6:]} docker version` work?"
    return f"no Docker engine answers at {target.url}; check the address and the firewall"


def _checked(url: str, tls: Any) -> Target:
    kind = urlsplit(url).scheme
    if kind not in {"unix", "tcp", "https", "ssh"}:
        raise ConfigError(f"{url!r} is no engine; unix:///path, tcp://host:2376 or ssh://user@host is expected")
    if kind in {"tcp", "https"} and not tls:
        raise ConfigError(
            f"{url} without TLS would give that machine to everybody who reaches the port; "
            "set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, or go by ssh://"
        )
    return Target(url, tls if kind in {"tcp", "https"} else None)


def _tls_of_environment(environ: Mapping[str, str]) -> TLSConfig | None:
    if not environ.get("DOCKER_TLS_VERIFY"):
        return None
    return _tls_of(Path(environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker"))


def _tls_of(folder: Path) -> TLSConfig:
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}; TLS to an engine needs them")
    try:
        return TLSConfig(client_cert=(str(files["cert"]), str(files["key"])), ca_cert=str(files["ca"]), verify=True)
    except TLSParameterError as error:
        raise ConfigError(f"the certificates in {folder} cannot be used: {error}") from error
