"""`cairn deploy …`: plan, start, watch, upgrade and take down Cairn's containers on a Docker engine, near or far."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cairn.errors import ConfigError
from deploy.clinic import archive_commands
from deploy.clinic.checks import Findings, in_gib
from deploy.clinic.options import FILE, AsJson, Config, Context, Host, opened
from deploy.clinic.planning import leaves
from deploy.clinic.settings import Deployment

if TYPE_CHECKING:
    from deploy.clinic.engine import Engine
    from deploy.clinic.looking import Seen

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Run Cairn in containers: at a clinic, or the aggregator. The engine is this machine's, or the one of --host, "
    "--context or DOCKER_HOST.\n\n"
    "Examples:\n\n"
    "* `cairn deploy plan` says what would run, what is in its way, and what may leave\n"
    "* `cairn deploy up` enrols the site and starts it\n"
    "* `cairn deploy --help` and `cairn deploy up --help` tell more",
)


def _looked(wanted: Deployment, engine: "Engine", target: Any) -> "Seen":
    from deploy.clinic.looking import look, look_here  # noqa: PLC0415

    seen = look_here(wanted)
    look(engine, target, wanted, seen)
    return seen


def _say(*, quiet: bool) -> Any:
    return (lambda _: None) if quiet else typer.echo


def _as_findings(found: Findings) -> dict[str, list[str]]:
    return {"fine": found.fine, "warnings": found.warnings, "faults": found.faults}


def _show_findings(found: Findings) -> None:
    console = Console(stderr=False, soft_wrap=True, highlight=False)
    for title, sentences in (("fine", found.fine), ("warning", found.warnings), ("fault", found.faults)):
        for sentence in sentences:
            console.print(f"[bold]{title}[/]: ", end="")
            console.print(sentence, markup=False)


def _stop_at_faults(seen: "Seen", *, as_json: bool) -> None:
    """Print what is in the way and end with 1, before anything is changed."""
    if seen.findings.faults:
        if as_json:
            typer.echo(json.dumps({"checks": _as_findings(seen.findings), "changed": False}))
        for sentence in seen.findings.faults:
            typer.echo(f"cairn: {sentence}", err=True)
        typer.echo("cairn: nothing was changed", err=True)
        raise typer.Exit(1)
    for sentence in seen.findings.warnings:
        typer.echo(f"warning: {sentence}", err=True)


@app.command()
def plan(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say what would run, with which ports and volumes, what may leave, and what is in the way; nothing is changed.

    Ends with exit code 1 when something must be mended first. Example: `cairn deploy plan --host ssh://it@imaging-1`
    """
    with opened(config, host, context) as (wanted, engine, target):
        seen = _looked(wanted, engine, target)
    planned = seen.planned
    fields: dict[str, Any] = {
        "container": planned.container,
        "image": planned.image,
        "engine": target.url,
        "command": " ".join(("cairn", *planned.command)),
        "user": "10001, read-only root, no capabilities",
        "limits": f"memory {in_gib(planned.memory)}, {planned.cpus:g} processors",
        "gpu": "yes" if seen.gpu else "no",
        "network": planned.network,
        "ports": [f"{address}:{port} → {inside}" for inside, (address, port) in planned.ports.items()],
        "volumes": [f"{name} at {where}" for name, where in planned.volumes.items()],
        "folders": [f"{folder} at {where}, read-only" for folder, where in planned.folders.items()],
        "leaves": leaves(seen.site),
    }
    if as_json:
        typer.echo(json.dumps({**fields, "checks": _as_findings(seen.findings)}))
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in fields.items():
            table.add_row(key, "\n".join(value) or "none" if isinstance(value, list) else value)
        Console(highlight=False).print(table)
        _show_findings(seen.findings)
    if seen.findings.faults:
        raise typer.Exit(1)


@app.command()
def up(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    wait: Annotated[bool, typer.Option(help="Wait until a site is connected; without, until it is healthy.")] = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Start the deployment, or bring it to what the settings say: image, volumes, enrolment, container, connected.

    May be repeated. Ends with exit code 1, and changes nothing, when a check finds a fault.
    Example: `cairn deploy up --config deployment.toml`
    """
    from deploy.clinic import running, upgrading  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, target), running.bars(quiet=as_json) as progress:
        seen = _looked(wanted, engine, target)
        _stop_at_faults(seen, as_json=as_json)
        say = _say(quiet=as_json)
        upgrading.settle(engine, seen, say)
        container = running.up(engine, wanted, seen, progress, say)
        connected = running.connected(container, seen, say) if wait else None
        if as_json:
            typer.echo(json.dumps({"container": container.name, "healthy": True, "connected": connected}))
    if connected is False:
        raise typer.Exit(1)


@app.command()
def status(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say how the deployment stands: container, health, version, connection, certificate, disk.

    Ends with exit code 1 when it does not run. Example: `cairn deploy status --json`
    """
    from deploy.clinic.standing import standing  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _):
        found = standing(engine, wanted)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in found.items():
            table.add_row(key, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
        Console(highlight=False).print(table)
    if found["state"] != "running":
        raise typer.Exit(1)


@app.command()
def logs(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    tail: Annotated[int, typer.Option(min=1, help="Lines from the end.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,  # noqa: FBT002
) -> None:
    """Print the service's log, JSON lines. Example: `cairn deploy logs --tail 20 --follow`."""
    from deploy.clinic.engine import spoken  # noqa: PLC0415
    from deploy.clinic.standing import existing  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _):
        container = existing(engine, wanted)
        with spoken("reading the log"):
            for chunk in container.logs(stream=True, follow=follow, tail=tail):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()


@app.command()
def upgrade(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    archive: Annotated[
        Path | None, typer.Option(help="An archive with the new image, instead of the settings'.")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Change to the image that the settings name now, and back when it does not get healthy and connected.

    The new version first migrates and serves a copy of the state, where nobody can reach it. Set `image` first.
    Example: `cairn deploy upgrade --archive cairn-0.3.0.bundle`
    """
    from deploy.clinic import running, upgrading  # noqa: PLC0415

    with opened(config, host, context) as (found, engine, target), running.bars(quiet=as_json) as progress:
        wanted = found.model_copy(update={"archive": archive, "archive_sha256": None}) if archive else found
        seen = _looked(wanted, engine, target)
        _stop_at_faults(seen, as_json=as_json)
        container = upgrading.upgrade(engine, wanted, seen, progress, _say(quiet=as_json))
        if as_json:
            typer.echo(json.dumps({"container": container.name, "image": wanted.image, "healthy": True}))
        else:
            typer.echo(f"{container.name} runs {wanted.image}")


@app.command()
def down(
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    delete_state: Annotated[
        str | None,
        typer.Option(help="Also delete keys, audit log and all else that is kept; repeat the deployment's name."),
    ] = None,
) -> None:
    """Stop and remove the container; the state stays in its volume.

    Example: `cairn deploy down`, or for ever: `cairn deploy down --delete-state north`
    """
    from deploy.clinic import running  # noqa: PLC0415
    from deploy.clinic.planning import plan as make_plan  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _):
        if delete_state not in {None, wanted.name}:
            raise ConfigError(
                f"--delete-state {delete_state} does not name this deployment, {wanted.name}; nothing changed"
            )
        running.down(engine, make_plan(wanted), volumes=delete_state is not None, say=_say(quiet=False))


app.command()(archive_commands.backup)
app.command()(archive_commands.restore)
app.command("support-bundle")(archive_commands.support_bundle)
app.command()(archive_commands.bundle)
