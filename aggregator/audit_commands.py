"""`cairn aggregator audit …`: whether the audit is whole, and all of it as JSON lines; on the aggregator's machine."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cairn import chain
from cairn.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(no_args_is_help=True, help="The audit of members, logins, plans, uploads, merges and runs.")
Dir = Annotated[Path, typer.Option("--dir", help="Folder of the aggregator, made by `init`.")]


@app.command()
def verify(
    folder: Dir,
    known: Annotated[str, typer.Option(help="A line's digest that you noted earlier; it must still be there.")] = "",
    file: Annotated[Path | None, typer.Option(help="An exported audit, instead of the database's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,  # noqa: FBT002
) -> None:
    """Check the audit's chain, and print the last line's digest: note it elsewhere.

    Ends with exit code 1 when a row was changed, removed or slipped in.
    Example: `cairn aggregator audit verify --dir /srv/cairn --known 5c0e…`
    """
    from aggregator import audit_log  # noqa: PLC0415 - other commands start faster without it

    if file is not None:
        try:
            found = chain.verify(file.read_bytes().splitlines(), known)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    else:
        with _database(folder) as engine:
            found = audit_log.verify(engine, known)
    typer.echo(chain.show(found, as_json=as_json))
    if not found.whole:
        raise typer.Exit(1)


@app.command()
def export(
    folder: Dir,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
) -> None:
    """Write the audit as JSON lines, with the chain.

    Example: `cairn aggregator audit export --dir /srv/cairn --out audit-2026.jsonl`
    """
    from sqlalchemy.orm import Session  # noqa: PLC0415 - other commands start faster without it

    from aggregator import audit_log  # noqa: PLC0415

    try:
        with _database(folder) as engine, Session(engine) as session:
            if out is None:
                for line in audit_log.lines(session):
                    sys.stdout.buffer.write(line + b"\n")
                return
            with out.open("wb") as file:
                for line in audit_log.lines(session):
                    file.write(line + b"\n")
    except OSError as error:
        raise ConfigError(f"{out or 'standard output'} cannot be written: {error.strerror}") from error
    typer.echo(f"{out} written, {out.stat().st_size:,} bytes")


@contextmanager
def _database(folder: Path) -> "Iterator[Engine]":
    from aggregator.database import open_database, upgrade  # noqa: PLC0415 - other commands start faster without it
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    engine = open_database(load_settings(folder / FILE).database_url)
    try:
        upgrade(engine)
        yield engine
    finally:
        engine.dispose()
