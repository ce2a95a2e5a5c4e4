"""What all commands of `cairn deploy` share: their options, and how settings and engine are opened."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.errors import ConfigError
from deploy.clinic.settings import Deployment, load_deployment

if TYPE_CHECKING:
    from deploy.clinic.engine import Engine

Config = Annotated[Path, typer.Option("--config", help="The deployment's settings.")]
Host = Annotated[str | None, typer.Option(help="Engine: unix:///path, ssh://user@host or tcp://host:2376 with TLS.")]
Context = Annotated[str | None, typer.Option(help="A docker context's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FILE = Path("deployment.toml")


@contextmanager
def opened(config: Path, host: str | None, context: str | None) -> Iterator[tuple[Deployment, "Engine", Any]]:
    """Read the settings and open the engine: settings, engine, target. Raises ConfigError, Unreachable."""
    wanted = load_deployment(config)
    with engine_of(host, context) as (engine, target):
        yield wanted, engine, target


@contextmanager
def engine_of(host: str | None, context: str | None) -> Iterator[tuple["Engine", Any]]:
    """Open the engine that is meant: engine, target. Raises ConfigError, Unreachable."""
    try:
        from deploy.clinic.engine import choose, opened_engine  # noqa: PLC0415 - the SDK is an extra
    except ImportError as error:
        raise ConfigError('the docker SDK is missing: pip install "cairn-federation[deploy]"') from error
    target = choose(host, context, os.environ)
    with opened_engine(target) as engine, hanging_up():
        yield engine, target


@contextmanager
def hanging_up() -> Iterator[None]:
    """Take SIGTERM and a terminal that hangs up for Ctrl-C: what was stopped or half made is put right first."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
