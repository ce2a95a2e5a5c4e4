"""`cairn aggregator …`: found a federation, serve it, invite, revoke and list its members."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aggregator import at_rest_commands, audit_commands
from aggregator.backup import commands as backup_commands
from cairn import enrolment, invitation
from cairn.errors import ConfigError
from cairn.files import write_atomically
from cairn.health import ask as ask_health
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel, profile_address, write_profile
from cairn.rpc import errors_from_wire
from cairn.secrecy import no_dumps
from cairn.v1 import operations_pb2, operations_pb2_grpc

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Run the middle of a federation.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DirOption = Annotated[Path, typer.Option("--dir", help="Folder of the aggregator, made by `init`.")]
_SPANS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class RoleName(StrEnum):
    """Who can be invited."""

    SITE = "site"
    OPERATOR = "operator"


def parse_span(text: str) -> timedelta:
    """Read a span of time such as 90m, 12h, 7d or 2w."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is not a span of time; write 90m, 12h, 7d or 2w")
    return timedelta(**{_SPANS[found[2]]: int(found[1])})


@app.command()
def init(
    *,
    folder: Annotated[Path, typer.Option("--dir", help="Folder to make the federation in.")],
    federation: Annotated[str, typer.Option(help="Its name: lower-case letters, digits, hyphens.")],
    address: Annotated[
        list[str], typer.Option(help="HOST[:PORT] under which sites reach this machine; repeat it for more names.")
    ],
    operator: Annotated[str, typer.Option(help="Name of the first operator.")] = "operator",
    listen: Annotated[str | None, typer.Option(help="IP:PORT for sites and operators.")] = None,
    enrolment_listen: Annotated[str | None, typer.Option(help="IP:PORT for newcomers.")] = None,
    dashboard_listen: Annotated[str | None, typer.Option(help="IP:PORT for the pages.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; SQLite in DIR by default.")] = None,
    database_file: Annotated[Path | None, typer.Option(help="A file that holds the URL, with its password.")] = None,
    blobs: Annotated[str | None, typer.Option(help="fsspec URL; a folder in DIR by default.")] = None,
    at_rest_key: Annotated[Path | None, typer.Option(help="A file with the key that seals blobs on the disk.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Let sites train: run a Flower SuperLink.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Found a federation: its certificate authority, settings, database and first operator.

    Example: `cairn aggregator init --dir /srv/cairn --federation tissue --address cairn.example.org`
    """
    from aggregator.database import check_without_password  # noqa: PLC0415 - other commands start faster without it
    from aggregator.members.initialise import initialise  # noqa: PLC0415

    if database is not None:
        check_without_password(database)
    with _writable(folder):
        settings = initialise(
            folder,
            federation,
            address,
            datetime.now(UTC),
            operator=operator,
            listen=listen,
            enrolment_listen=enrolment_listen,
            dashboard_listen=dashboard_listen,
            database=database,
            database_file=database_file and database_file.absolute(),
            blobs=blobs,
            at_rest_key=at_rest_key and at_rest_key.absolute(),
            training=training,
        )
    profile = folder / "operator"
    if as_json:
        _print_json({"federation": settings.federation, "dir": str(folder), "profile": str(profile)})
        return
    typer.echo(f"The federation {settings.federation} is founded in {folder}.")
    typer.echo(f"Start it with: cairn aggregator serve --dir {folder}")
    typer.echo(f"Your credentials are in {profile}; the dashboard's token is in {profile / 'dashboard-token'}.")


@app.command()
def serve(folder: DirOption) -> None:
    """Serve until SIGTERM or Ctrl-C; logs are JSON lines on standard error.

    The addresses are written to addresses.json in the state folder once it serves.

    Example: `cairn aggregator serve --dir /srv/cairn`
    """
    from aggregator.server import serve_until_told  # noqa: PLC0415 - other commands start faster without it
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415
    from aggregator.telemetry import make_log  # noqa: PLC0415
    from cairn.logs import open_stream  # noqa: PLC0415

    no_dumps()
    os.umask(0o077)  # nothing that is written here is for other users of this machine
    settings = load_settings(folder / FILE)
    serve_until_told(settings, make_log(open_stream(settings.log, sys.stderr)))


@app.command()
def health(folder: DirOption) -> None:
    """Say whether the aggregator answers and its database does; ends with exit code 1 when not.

    For the container's engine and scripts. Example: `cairn aggregator health --dir /srv/cairn`
    """
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    typer.echo(f"answers at {ask_health(load_settings(folder / FILE).state_dir)}")


@app.command()
def check(folder: DirOption, *, as_json: JsonOption = False) -> None:
    """Look at settings, keys, database, audit and folders, and say what a person should do; nothing is changed.

    Ends with exit code 1 when something keeps the aggregator from working, or its audit was changed.
    Example: `cairn aggregator check --dir /srv/cairn`
    """
    from aggregator.checking import check_aggregator  # noqa: PLC0415 - other commands start faster without it
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    report = check_aggregator(load_settings(folder / FILE), datetime.now(UTC))
    if as_json:
        _print_json({"fine": report.fine, "warnings": report.warnings, "faults": report.faults})
    else:
        for title, sentences in (("fine", report.fine), ("warning", report.warnings), ("fault", report.faults)):
            for sentence in sentences:
                Console().print(f"[bold]{title}[/]: {escape(sentence)}", highlight=False, soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="Name of the newcomer: lower-case letters, digits, hyphens.")],
    profile: ProfileOption,
    role: Annotated[RoleName, typer.Option(help="What the newcomer will be.")] = RoleName.SITE,
    valid_for: Annotated[str, typer.Option(help="How long the invitation holds: 12h, 7d, 2w.")] = "7d",
    out: Annotated[
        Path | None, typer.Option(help="Write the invitation to a file (mode 0600), not to the screen.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time invitation; hand the line to the newcomer over a channel that you trust.

    Example: `cairn aggregator invite north --valid-for 2d --out north.txt`
    """
    request = operations_pb2.InviteSiteRequest(name=name, role=role.value)
    request.valid_for.FromTimedelta(parse_span(valid_for))
    with operator_channel(profile) as channel, errors_from_wire():
        line = operations_pb2_grpc.SitesStub(channel).InviteSite(request, timeout=CALL_SECONDS).invitation
    if out is not None:
        with _writable(out), write_atomically(out, 0o600) as file:
            file.write(f"{line}\n".encode())
    if as_json:
        _print_json({"name": name, "role": role.value, **({"out": str(out)} if out else {"invitation": line})})
    elif out is None:
        typer.echo(line)
    else:
        typer.echo(f"The invitation of {name} is in {out}; it works once, within {valid_for}.")


@app.command()
def enrol(
    invitation_file: Annotated[Path, typer.Option("--invitation", help="File with the invitation's line.")],
    profile: ProfileOption,
) -> None:
    """Take up an operator's invitation: make a key and keep the credentials as a profile folder.

    Example: `cairn aggregator enrol --invitation ada.txt --profile ~/.config/cairn`
    """
    try:
        invited = invitation.parse(invitation_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the invitation {invitation_file} cannot be read; it is one line of text") from error
    if invited.role != "operator":
        raise ConfigError(f"this invitation is for the site {invited.name}; take it up there with `cairn edge enrol`")
    if (profile / "certificate.pem").exists():
        raise ConfigError(f"{profile} holds credentials already; name another folder with --profile")
    with _writable(profile):
        enrolment.enrol(invited, profile)
        write_profile(profile, address=invited.address)
    typer.echo(f"You are {invited.name}, operator of {invited.federation}; your credentials are in {profile}.")


@app.command()
def renew(profile: ProfileOption) -> None:
    """Replace your own keys by new ones and have them certified; certificates hold for a year.

    Example: `cairn aggregator renew --profile ~/.config/cairn`
    """
    with _writable(profile):
        enrolment.rotate(profile_address(profile), profile)
    typer.echo(f"Your credentials in {profile} are new; the former ones hold until they end.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The site or operator to take out.")],
    reason: Annotated[str, typer.Option(help="One sentence; shown to the site and kept in the audit.")],
    profile: ProfileOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Revoke every certificate and open invitation of a member, at once.

    Example: `cairn aggregator revoke north --reason "the machine was stolen"`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        request = operations_pb2.RevokeSiteRequest(name=name, reason=reason)
        operations_pb2_grpc.SitesStub(channel).RevokeSite(request, timeout=CALL_SECONDS)
    if as_json:
        _print_json({"name": name, "state": "revoked", "reason": reason})
    else:
        typer.echo(f"{name} is revoked.")


@app.command()
def sites(profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """List sites and operators: state, last seen, version, bytes, what they work on, their problems.

    Example: `cairn aggregator sites --json`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        stub = operations_pb2_grpc.SitesStub(channel)
        found = stub.ListSites(operations_pb2.ListSitesRequest(), timeout=CALL_SECONDS).sites
    if as_json:
        _print_json({"sites": [_as_dict(site) for site in found]})
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("name", "role", "state", "here", "last seen (UTC)", "version", "bytes", "works on", "problem"):
        # A name that is cut off names nobody; on a narrow screen the last two are what is broken.
        table.add_column(title, overflow="fold", no_wrap=title not in {"works on", "problem"})
    for site in found:
        table.add_row(
            site.name,
            site.role,
            site.state,
            "yes" if site.connected else "no",
            f"{site.last_seen.ToDatetime():%Y-%m-%d %H:%M}" if site.HasField("last_seen") else "never",
            site.version,
            f"{site.bytes_received:,}",
            site.working_on,
            site.problems[-1] if site.problems else "",
        )
    Console().print(table, markup=False)


@app.command("dashboard-token")
def dashboard_token(
    folder: DirOption,
    operator: Annotated[str, typer.Option(help="Whose token it will be.")] = "operator",
    *,
    as_json: JsonOption = False,
) -> None:
    """Make another token for the dashboard, on the aggregator's own machine; shown this once.

    Example: `cairn aggregator dashboard-token --dir /srv/cairn --operator ada`
    """
    from aggregator.database import open_database  # noqa: PLC0415 - other commands start faster without it
    from aggregator.members.tokens import new_dashboard_token  # noqa: PLC0415
    from aggregator.settings import FILE, load_settings  # noqa: PLC0415

    engine = open_database(load_settings(folder / FILE).database_url)
    try:
        token = new_dashboard_token(engine, operator, datetime.now(UTC))
    finally:
        engine.dispose()
    if as_json:
        _print_json({"operator": operator, "token": token})
    else:
        typer.echo(token)


app.command()(backup_commands.backup)
app.command()(backup_commands.restore)
app.add_typer(audit_commands.app, name="audit")
app.add_typer(at_rest_commands.app, name="at-rest")


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _as_dict(site: operations_pb2.Site) -> dict[str, Any]:
    return {
        "name": site.name,
        "role": site.role,
        "state": site.state,
        "connected": site.connected,
        "last_seen": site.last_seen.ToDatetime(UTC).isoformat() if site.HasField("last_seen") else None,
        "version": site.version,
        "bytes_received": site.bytes_received,
        "working_on": site.working_on,
        "pixels_done": site.pixels_done,
        "pixels_total": site.pixels_total,
        "problems": list(site.problems),
    }


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
