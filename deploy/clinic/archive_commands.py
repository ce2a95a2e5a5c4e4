"""`cairn deploy backup | restore | support-bundle | bundle`: what goes into files, and comes back from them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.clinic.options import FILE, AsJson, Config, Context, Host, engine_of, opened


def backup(
    out: Annotated[Path, typer.Argument(help="The archive to write; it will hold private keys.")],
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    labels: Annotated[bool, typer.Option(help="Also the label images, which may be large.")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Write the state to an archive with checksums; the service rests for that time, and goes on.

    Example: `cairn deploy backup north-2027-01-31.backup`
    """
    from deploy.clinic import running, volumes  # noqa: PLC0415
    from deploy.clinic.planning import plan as make_plan  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _), running.bars(quiet=as_json) as progress:
        task = progress.add_task("backing up", total=None)
        moved = _advancing(progress, task)
        done = volumes.backup(engine, make_plan(wanted), out, labels=labels, moved=moved)
    _print_archive(done, as_json=as_json)


def restore(
    archive: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete the state that is there.")] = False,  # noqa: FBT002
) -> None:
    """Put a state back into an empty volume; then `cairn deploy up` goes on with it.

    Example: `cairn deploy restore north-2027-01-31.backup`
    """
    from deploy.clinic import running, volumes  # noqa: PLC0415
    from deploy.clinic.planning import plan as make_plan  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _), running.bars(quiet=False) as progress:
        task = progress.add_task("restoring", total=None)
        volumes.restore(engine, make_plan(wanted), archive, replace=replace, moved=_advancing(progress, task))
    typer.echo(f"the state of {archive} is back; `cairn deploy up` starts it")


def support_bundle(
    out: Annotated[Path, typer.Argument(help="The .tar.gz to write.")],
    config: Config = FILE,
    host: Host = None,
    context: Context = None,
    tail: Annotated[int, typer.Option(min=1, help="Lines of the log.")] = 2000,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Gather versions, states and log for whoever helps: no pixels, no keys, no names of files or patients.

    Look into it before you send it. Example: `cairn deploy support-bundle support.tar.gz`
    """
    from deploy.clinic.standing import support  # noqa: PLC0415

    with opened(config, host, context) as (wanted, engine, _):
        names = support(engine, wanted, out, tail)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "files": names}))
    else:
        typer.echo(f"{out} holds {', '.join(names)}; look into it before you send it")


def bundle(
    images: Annotated[list[str], typer.Argument(help="Images of the engine, with their versions.")],
    out: Annotated[Path, typer.Option(help="The archive to write.")],
    wheels: Annotated[Path | None, typer.Option(help="Also the wheels of a folder, to install `cairn` from.")] = None,
    host: Host = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Write images and their checksums to one archive, for a clinic whose machine reaches no registry.

    Example: `cairn deploy bundle cairn-edge:0.2.0 --out cairn-0.2.0.bundle`
    """
    from deploy.clinic import bundling, running  # noqa: PLC0415

    with engine_of(host, context) as (engine, _), running.bars(quiet=as_json) as progress:
        done = bundling.bundle(engine, images, wheels, out, progress)
    _print_archive(done, as_json=as_json)


def _advancing(progress: Any, task: Any) -> Any:
    return lambda count: progress.advance(task, count)


def _print_archive(done: Any, *, as_json: bool) -> None:
    size = done.path.stat().st_size
    if as_json:
        typer.echo(json.dumps({"out": str(done.path), "bytes": size, "sha256": done.sha256, "parts": dict(done.parts)}))
    else:
        typer.echo(f"{done.path} written, {size:,} bytes, SHA-256 {done.sha256}")
