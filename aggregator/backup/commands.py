"""`cairn aggregator backup` and `cairn aggregator restore`, on the aggregator's own machine."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cairn.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def backup(
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the aggregator, made by `init`.")],
    out: Annotated[Path, typer.Option(help="File to write; one that is there is never overwritten.")],
    *,
    without_blobs: Annotated[
        bool, typer.Option("--without-blobs", help="Leave blobs out: their object store keeps copies of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one file with settings, CA, database, blobs and checkpoints, and read it back; the aggregator may serve.

    The key-encryption key of `at_rest` is never in it.
    Example: `cairn aggregator backup --dir /srv/cairn --out /backup/cairn-2026-11-21.tar`
    """
    from aggregator.backup import making  # noqa: PLC0415 - other commands start faster without it
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    os.umask(0o077)
    try:
        made = making.make(folder, load_settings(folder / FILE), out, datetime.now(UTC), blobs=not without_blobs)
    except OSError as error:
        raise ConfigError(f"the backup cannot be made: {error.strerror or error} {error.filename or ''}") from error
    if as_json:
        found = {"out": str(out), "bytes": made.size, "files": made.files, "sealed_by": made.sealed_by}
        typer.echo(json.dumps({**found, "warnings": made.warnings}))
        return
    typer.echo(f"{out} holds {made.files} files, {made.size:,} bytes; it was read back and is whole.")
    for sentence in made.warnings:
        typer.echo(f"warning: {sentence}")


def restore(
    file: Annotated[Path, typer.Argument(help="A backup's file.")],
    folder: Annotated[Path | None, typer.Option("--dir", help="Empty folder to make the aggregator in.")] = None,
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL, without a password, of an empty database, where it moves.")
    ] = None,
    database_file: Annotated[Path | None, typer.Option(help="A file that holds such a URL, with its password.")] = None,
    blobs: Annotated[str | None, typer.Option(help="fsspec URL of the blobs, where they move.")] = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Only read the file and compare it with its list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup back into an empty folder; afterwards `serve` goes on as of the moment when it was made.

    Example: `cairn aggregator restore /backup/cairn-2026-11-21.tar --dir /srv/cairn`
    """
    from aggregator.backup import archive, restoring  # noqa: PLC0415 - other commands start faster without it
    from aggregator.database import check_without_password  # noqa: PLC0415

    if (folder is None) != check:
        raise ConfigError("name an empty folder with --dir, or ask for --check alone")
    if database is not None:
        check_without_password(database)
    os.umask(0o077)
    try:
        if folder is None:
            about, warnings = archive.read(file), tuple[str, ...]()
        else:
            moved = restoring.Moved(database, database_file and database_file.absolute(), blobs)
            done = restoring.restore(file, folder, datetime.now(UTC), moved)
            about, warnings = done.about, done.warnings
    except OSError as error:
        raise ConfigError(f"{file} cannot be put back: {error.strerror or error} {error.filename or ''}") from error
    if as_json:
        found = {"federation": about.federation, "made": about.made, "cairn": about.cairn, "files": len(about.files)}
        typer.echo(json.dumps({**found, "sealed_by": about.sealed_by, "warnings": warnings}))
        return
    typer.echo(f"{file} is whole: {len(about.files)} files of the federation {about.federation}, made {about.made}.")
    if folder is not None:
        typer.echo(f"It is in {folder}. Start it with: cairn aggregator serve --dir {folder}")
    for sentence in warnings:
        typer.echo(f"warning: {sentence}")
