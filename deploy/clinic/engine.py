"""Which Docker engine is meant, how it is reached, and its errors as sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import docker
import requests
from docker.constants import DEFAULT_DOCKER_API_VERSION, MINIMUM_DOCKER_API_VERSION
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound, NotFound, TLSParameterError
from docker.tls import TLSConfig

from cairn.errors import CairnError, ConfigError, Unreachable

LOCAL = "unix:///var/run/docker.sock"
CALL_S = 120  # of the engine, for one call; long work comes as a stream
__all__ = ["Engine", "NotFound", "Target", "choose", "connect", "spoken"]

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
    named = context or environ.get("DOCKER_CONTEXT") or None
    try:
        found = ContextAPI.get_context(named) if named else ContextAPI.get_current_context()
    except (DockerException, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the docker context {named or 'in use'} cannot be read: {error}") from error
    if found is None:
        raise ConfigError(f"there is no docker context {named!r}; `docker context ls` names them")
    url = (found.Host or LOCAL).removeprefix("http+")
    return _checked(url, found.TLSConfig if url.startswith(("tcp://", "https://")) else None)


def connect(target: Target) -> Engine:
    """Open an engine. Raises Unreachable with what to do."""
    options: dict[str, Any] = {
        "base_url": target.url,
        "tls": target.tls or False,
        "timeout": CALL_S,
        # OpenSSH knows the person's keys, hosts and jumps; and it refuses a host that it does not know.
        "use_ssh_client": target.url.startswith("ssh://"),
    }
    if target.local and not Path(target.url.removeprefix("unix://")).exists():
        raise Unreachable(_no_engine(target, FileNotFoundError()))
    try:
        # The SDK's own way to ask for the version leaves what it opened open when nobody answers.
        first = docker.APIClient(version=MINIMUM_DOCKER_API_VERSION, **options)
        try:
            speaks = str(first.version(api_version=False)["ApiVersion"])
        finally:
            first.close()
        return docker.DockerClient(version=min(speaks, DEFAULT_DOCKER_API_VERSION, key=_numbers), **options)
    except (DockerException, requests.RequestException, OSError, ValueError, KeyError) as error:
        raise Unreachable(_no_engine(target, error)) from error


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
    except (requests.RequestException, DockerException) as error:
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
    folder = Path(environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise ConfigError(f"DOCKER_CERT_PATH {folder} lacks {', '.join(missing)}; TLS to an engine needs them")
    try:
        return TLSConfig(client_cert=(str(files["cert"]), str(files["key"])), ca_cert=str(files["ca"]), verify=True)
    except TLSParameterError as error:
        raise ConfigError(f"the certificates in {folder} cannot be used: {error}") from error
