"""`cairn study …`: create, watch, approve, extend and export a study, as an operator."""

import json
import time
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from aggregator.commands import parse_span
from aggregator.study.messages import spec_message
from aggregator.study.views import as_dict, picture, summary
from cairn.errors import ConfigError, StudyError, Unreachable
from cairn.files import write_atomically
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel
from cairn.rpc import errors_from_wire
from cairn.study import parse_spec
from cairn.v1 import operations_pb2, operations_pb2_grpc

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Fit one map of tissue states over all sites."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the study.")]
LOOK_EVERY_S = 1.0


class Format(StrEnum):
    """What a table can be written as."""

    PARQUET = "parquet"
    CSV = "csv"


@app.command()
def create(
    profile: ProfileOption,
    name: Annotated[str | None, typer.Argument(help="Name of the study; may stand in the file.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", help="TOML file with any of the settings; options go before it.")
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Bands by name, with commas between them.")] = None,
    min_sites: Annotated[int | None, typer.Option(help="Sites that must answer before a stage may close.")] = None,
    states: Annotated[
        list[str] | None, typer.Option("--state", help="STATE=BAND,BAND: bands that mark a state; repeat it.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="How long a stage waits for late sites: 90m, 24h, 7d.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Heavy hitters wanted.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Clusters of the map.")] = None,
    auto_approve: Annotated[
        bool, typer.Option("--auto-approve", help="Do not wait for `approve` after the embedding.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a new study. All settings and their defaults: docs/DATA_MODEL.md.

    * `cairn study create breast --bands DAPI,PanKRT,CD45 --min-sites 3 --state tumour=PanKRT --state immune=CD45`

    * `cairn study create --file study.toml --deadline 7d`
    """
    values = _read_file(file) if file else {}
    given: dict[str, Any] = {
        "name": name,
        "bands": tuple(band.strip() for band in bands.split(",")) if bands else None,
        "min_sites": min_sites,
        "states": dict(_rule(rule) for rule in states) if states else None,
        "stage_deadline": deadline,
        "top_k": top_k,
        "clusters": clusters,
        "auto_approve": auto_approve or None,
    }
    values.update({key: value for key, value in given.items() if value is not None})
    if isinstance(values.get("stage_deadline"), str):
        values["stage_deadline"] = parse_span(values["stage_deadline"])
    spec = parse_spec(values)
    with operator_channel(profile) as channel, errors_from_wire():
        request = operations_pb2.CreateStudyRequest(spec=spec_message(spec))
        operations_pb2_grpc.StudiesStub(channel).CreateStudy(request, timeout=CALL_SECONDS)
    if as_json:
        _print_json(spec.model_dump(mode="json"))
    else:
        typer.echo(f"{spec.name} is published; follow it with: cairn study show {spec.name} --wait")


@app.command("list")
def list_studies(profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """List all studies.

    Example: `cairn study list --json`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        stub = operations_pb2_grpc.StudiesStub(channel)
        found = stub.ListStudies(operations_pb2.ListStudiesRequest(), timeout=CALL_SECONDS).studies
    if as_json:
        _print_json({"studies": [summary(study) for study in found]})
        return
    table = Table("name", "state", "window", "created (UTC)", "message")
    for study in found:
        created = f"{study.created.ToDatetime():%Y-%m-%d %H:%M}"
        table.add_row(study.name, study.state, str(study.window), created, study.message)
    Console().print(table, markup=False)


@app.command()
def show(
    name: NameArgument,
    profile: ProfileOption,
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it until it is done, has failed, or waits for you.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a study: its stages at each site, and what it has found so far.

    Examples: `cairn study show breast` · `cairn study show breast --wait` · `cairn study show breast --json`
    """
    with operator_channel(profile) as channel:
        study = _look(channel, name)
        if wait:
            with Live(picture(study), console=Console(stderr=as_json), refresh_per_second=4) as live:
                while not _waits_for_nobody_else(study):
                    time.sleep(LOOK_EVERY_S)
                    study = _look_patiently(channel, name, study)
                    live.update(picture(study))
    if as_json:
        _print_json(as_dict(study))
    elif not wait:
        Console().print(picture(study))
    if study.summary.state == "failed":
        raise StudyError(f"{name} has failed: {study.summary.message}")


@app.command()
def approve(
    name: NameArgument,
    profile: ProfileOption,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", help="NUMBER=STATE: names a cluster; the others keep what the rules gave."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Name the clusters and send the codebook to the sites, which then write label images.

    Example: `cairn study approve breast --state 3=tumour --state 5=immune`
    """
    named = dict(_named(text) for text in states or [])
    with operator_channel(profile) as channel, errors_from_wire():
        request = operations_pb2.ApproveStudyRequest(name=name, cluster_states=named)
        operations_pb2_grpc.StudiesStub(channel).ApproveStudy(request, timeout=CALL_SECONDS)
    if as_json:
        _print_json({"name": name, "cluster_states": {str(number): state for number, state in named.items()}})
    else:
        typer.echo(f"The codebook of {name} goes out to the sites.")


@app.command()
def extend(name: NameArgument, profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """Open the next window: sites count the files that are new since, and the map is made anew on all.

    Example: `cairn study extend breast`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        request = operations_pb2.ExtendStudyRequest(name=name)
        operations_pb2_grpc.StudiesStub(channel).ExtendStudy(request, timeout=CALL_SECONDS)
        window = _look(channel, name).summary.window
    if as_json:
        _print_json({"name": name, "window": window})
    else:
        typer.echo(f"{name} counts its window {window}.")


@app.command()
def export(
    name: NameArgument,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    profile: ProfileOption,
    form: Annotated[Format | None, typer.Option("--format", help="By the file's ending when not given.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the heavy hitters (keys, digits, counts, place on the map, cluster, state) as Parquet or CSV.

    Examples: `cairn study export breast map.parquet` · `cairn study export breast map.csv`
    """
    wanted = form or (Format.CSV if out.suffix.lower() == ".csv" else Format.PARQUET)
    with operator_channel(profile) as channel, errors_from_wire():
        request = operations_pb2.ExportStudyRequest(name=name)
        stream = operations_pb2_grpc.StudiesStub(channel).ExportStudy(request, timeout=10 * CALL_SECONDS)
        data = b"".join(part.data for part in stream)
    if wanted is Format.CSV:
        from aggregator.study.results import as_csv  # noqa: PLC0415 - other commands start faster without it

        data = as_csv(data)
    try:
        with write_atomically(out) as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    if as_json:
        _print_json({"name": name, "out": str(out), "format": wanted.value, "bytes": len(data)})
    else:
        typer.echo(f"{out}: {len(data):,} bytes")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _rule(text: str) -> tuple[str, tuple[str, ...]]:
    state, equals, bands = text.partition("=")
    if not (state.strip() and equals and bands.strip()):
        raise typer.BadParameter(f"{text!r} is not STATE=BAND,BAND, as in tumour=PanKRT,ECAD")
    return state.strip(), tuple(band.strip() for band in bands.split(","))


def _named(text: str) -> tuple[int, str]:
    number, _, state = text.partition("=")
    if not (number.strip().isdecimal() and state.strip()):
        raise typer.BadParameter(f"{text!r} is not NUMBER=STATE, as in 3=tumour")
    return int(number), state.strip()


def _look(channel: grpc.Channel, name: str) -> operations_pb2.ShowStudyResponse:
    with errors_from_wire():
        request = operations_pb2.ShowStudyRequest(name=name)
        return operations_pb2_grpc.StudiesStub(channel).ShowStudy(request, timeout=CALL_SECONDS)


def _look_patiently(
    channel: grpc.Channel, name: str, last: operations_pb2.ShowStudyResponse
) -> operations_pb2.ShowStudyResponse:
    try:
        return _look(channel, name)
    except Unreachable:  # as when the aggregator restarts
        return last


def _waits_for_nobody_else(study: operations_pb2.ShowStudyResponse) -> bool:
    state = study.summary.state
    return state in {"done", "failed"} or (state == "awaiting_approval" and not study.spec.auto_approve)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
