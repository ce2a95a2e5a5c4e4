"""`cairn edge …`: enrol the site, check it, run it, look at it, try a count without an aggregator."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cairn import invitation
from cairn.errors import BadToken
from cairn.figures import in_words
from cairn.health import ask as ask_health
from cairn.secrecy import keep_private, no_dumps
from cairn.stopping import told_to_stop
from edge_node import policy_commands
from edge_node.count_command import count
from edge_node.privacy.commands import budget
from edge_node.settings import load_settings

if TYPE_CHECKING:
    from cairn.v1 import edge_pb2

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A hospital's side: counts images where they are and sends tables of integers.\n\n"
    "Example: `cairn edge enrol --invitation invitation.txt --config site.toml`, then "
    "`cairn edge check --config site.toml` and `cairn edge run --config site.toml`",
)
Config = Annotated[Path, typer.Option("--config", help="The site's settings, site.toml.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def enrol(
    config: Config,
    invited: Annotated[
        str,
        typer.Option("--invitation", help="The invitation: a file, or the line of text.", show_default=False),
    ],
) -> None:
    """Join a federation: make a key here and have it certified.

    Example: `cairn edge enrol --invitation invitation.txt --config site.toml`
    """
    from cairn import enrolment  # noqa: PLC0415 - each command loads what it needs
    from edge_node.connection import keep_address, read_enrolled  # noqa: PLC0415

    settings = load_settings(config)
    wanted = invitation.parse(_text_of(invited))
    if wanted.role != "site":
        raise BadToken(f"this invitation is for an {wanted.role}; ask for one for a site")
    keep_private(settings.state_dir)
    enrolment.enrol(wanted, settings.identity_folder, trains=settings.training is not None)
    keep_address(settings.identity_folder, wanted.address)
    who = read_enrolled(settings.identity_folder)
    typer.echo(f"enrolled as {who.site} in {who.federation}, until {who.expires:%Y-%m-%d}")


@app.command()
def rotate(config: Config) -> None:
    """Replace this site's keys by new ones and have them certified; the running service goes on, and follows.

    The former certificate holds until it ends: if a key was stolen, have the operator revoke the site, and enrol again.
    Example: `cairn edge rotate --config site.toml`
    """
    from cairn import enrolment  # noqa: PLC0415 - each command loads what it needs
    from edge_node.connection import read_enrolled  # noqa: PLC0415

    settings = load_settings(config)
    who = read_enrolled(settings.identity_folder)
    enrolment.rotate(who.address, settings.identity_folder, trains=settings.training is not None)
    now = read_enrolled(settings.identity_folder)
    typer.echo(f"{now.site} has new keys; the certificate holds until {now.expires:%Y-%m-%d}")


@app.command()
def check(config: Config, as_json: AsJson = False) -> None:  # noqa: FBT002 - typer's flag
    """Print the settings as understood, the images found, the aggregator's answer, and what the site would do.

    Ends with exit code 1 when something keeps the site from working. Example: `cairn edge check --config site.toml`
    """
    from edge_node.checking import check_site  # noqa: PLC0415

    report = check_site(load_settings(config), datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        report.show(Console())
    if report.faults:
        raise typer.Exit(1)


@app.command()
def run(
    config: Config,
    invited: Annotated[
        Path | None,
        typer.Option("--invitation", help="Take this file's invitation up first, where the site has not enrolled yet."),
    ] = None,
) -> None:
    """Run the site's service until it is stopped by SIGTERM or Ctrl-C. The log goes to standard error, as JSON lines.

    Example: `cairn edge run --config site.toml`
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read at its import; its lines would break the log of JSON lines
    from cairn import enrolment  # noqa: PLC0415
    from cairn.logs import open_stream  # noqa: PLC0415
    from edge_node.node import Node, alone  # noqa: PLC0415
    from edge_node.status import make_log  # noqa: PLC0415

    settings = load_settings(config)
    no_dumps()
    stop = told_to_stop()
    with alone(settings.state_dir):
        if invited and not enrolment.tls_files(settings.identity_folder).certificate.exists():
            enrol(config, str(invited))
        Node(settings, stop, make_log(open_stream(settings.log, sys.stderr))).run()


@app.command()
def health(config: Config) -> None:
    """Say whether the service answers; ends with exit code 1 when it does not. For the container's engine and scripts.

    A site that cannot reach the aggregator is well: it goes on by itself.
    Example: `cairn edge health --config site.toml`
    """
    typer.echo(f"answers at {ask_health(load_settings(config).state_dir)}")


@app.command()
def status(config: Config, as_json: AsJson = False) -> None:  # noqa: FBT002 - typer's flag
    """Ask the running service how it stands. Example: `cairn edge status --config site.toml --json`."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    from edge_node.local_service import ask  # noqa: PLC0415

    now = ask(load_settings(config).state_dir)
    if as_json:
        fields = MessageToDict(now, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        numbers = {key: int(value) for key, value in fields.items() if key in NUMBERS}  # int64 comes as text
        typer.echo(json.dumps({**fields, **numbers}))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("site", f"{now.site} (Cairn {now.version})")
    table.add_row("aggregator", "connected" if now.connected else "not connected")
    share = f", {100 * now.pixels_done // now.pixels_total} %" if now.pixels_total else ""
    table.add_row("works on", f"{now.working_on}{share}" if now.working_on else "nothing")
    table.add_row("waiting", f"{now.outbox} sealed tallies")
    table.add_row("sent", f"{now.bytes_sent:,} bytes since the start")
    table.add_row("page", now.page)
    if now.HasField("training"):
        table.add_row("training", _training_words(now.training))
    for problem in now.problems:
        table.add_row("problem", problem)
    Console().print(table, markup=False)


NUMBERS = {"pixels_done", "pixels_total", "bytes_sent"}


def _training_words(training: "edge_pb2.TrainingStatus") -> str:
    if not training.run:
        return training.sentence
    doing = f"{'trains' if training.busy else 'has trained'} round {training.round} of {training.run}"
    figures = [f"{name} {training.metrics[name]:.4g}" for name in sorted(training.metrics) if name in SHOWN]
    figures += in_words(training.metrics)
    return "; ".join([training.sentence, ", ".join([doing, *figures])])


SHOWN = {"loss", "reward", "accuracy"}


app.command()(count)
app.command()(policy_commands.approve)
app.command()(policy_commands.refuse)
app.command()(policy_commands.forget)
app.command()(budget)
app.add_typer(policy_commands.policy_app, name="policy")
app.add_typer(policy_commands.audit_app, name="audit")


def _text_of(invited: str) -> str:
    """Return an invitation's line, given itself or as the name of a file."""
    if invited.lstrip().startswith(invitation.PREFIX):
        return invited
    try:
        return Path(invited).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadToken(f"there is no readable invitation file {invited[:200]!r}; give the file or the line") from error
