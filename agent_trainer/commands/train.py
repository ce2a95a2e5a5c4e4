"""`cairn train …`: ask the federation for a training run, and watch it."""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from agent_trainer.commands.watching import print_json, run_as_dict, watch
from cairn.errors import ConfigError, StudyError
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import OPTIONS, RunSpec, parse_run, run_message
from cairn.v1 import operations_pb2, operations_pb2_grpc, training_pb2, training_pb2_grpc

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Train one agent at all sites.\n\n"
    "Example: `cairn train dqn --study tissue-map --rounds 20 --min-sites 3 --profile operator`",
)
TISSUE_TASK = "tumour-centre"  # what label images of a study are searched for


@app.callback()
def train() -> None:
    """Keep `dqn` a command of its own while it is the only one."""


@app.command()
def dqn(
    profile: ProfileOption,
    name: Annotated[str | None, typer.Argument(help="Name of the run; the study's with -dqn behind it.")] = None,
    *,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any of the settings; options go before it.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Search the centre of the largest tumour in this study's label images.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Landmark to search, as the sites call it; repeat it.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the run.")] = None,
    min_sites: Annotated[int | None, typer.Option(help="Sites that must answer before a round counts.")] = None,
    strategy: Annotated[str | None, typer.Option(help=f"How updates are joined: {', '.join(OPTIONS)}.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds that a round waits for late sites.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many validations without a better one; 0 never.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first weights.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the DQN's own settings, as TOML; repeat it.")
    ] = None,
    watching: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the run until it ends.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a DQN that moves a box to landmarks; its replay is sampled by the counts of all sites.

    All settings and their defaults: docs/TRAINING.md.

    * `cairn train dqn --study tissue-map --rounds 20 --min-sites 3`

    * `cairn train dqn ceph --task sella --task nasion --rounds 50 --min-sites 2 --strategy fedprox`

    * `cairn train dqn --config run.toml --set replay="sketched" --set batch=96 --no-watch`
    """
    values = _read_file(config) if config else {}
    own = _own(values, config) | dict(map(_setting, settings or []))
    if task:
        own["tasks"] = list(task)
    elif study:
        own.setdefault("tasks", [TISSUE_TASK])
    given: dict[str, Any] = {
        "name": name or (f"{study}-dqn" if study and "name" not in values else None),
        "rounds": rounds,
        "min_sites": min_sites,
        "strategy": strategy,
        "round_deadline": None if deadline is None else timedelta(seconds=deadline),
        "patience": patience,
        "seed": seed,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    run = parse_run({**values, **chosen, "algorithm": "dqn", "settings": _checked(own)})
    with operator_channel(profile) as channel:
        if study:
            _check_study(channel, study)
        with errors_from_wire():
            training_pb2_grpc.RunsStub(channel).CreateRun(
                training_pb2.CreateRunRequest(spec=run_message(run)), timeout=CALL_SECONDS
            )
        if not watching:
            _say(run, as_json=as_json)
            return
        shown = watch(channel, run.name, Console(stderr=as_json))
    if as_json:
        print_json(run_as_dict(shown))
    if shown.summary.state == "failed":
        raise StudyError(f"the run {run.name} has failed: {shown.summary.message}")


def _say(run: RunSpec, *, as_json: bool) -> None:
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        typer.echo(f"{run.name} is in the queue; follow it with: cairn runs show {run.name} --watch")


def _checked(own: dict[str, Any]) -> dict[str, Any]:
    """Check the DQN's settings before anything is sent; only what was chosen goes into the run."""
    import json  # noqa: PLC0415 - beside what it is for

    from agent_trainer.config import read_config  # noqa: PLC0415 - each command loads what it needs

    read_config(json.dumps(own))
    return own


def _check_study(channel: grpc.Channel, study: str) -> None:
    """Refuse a study that has not written its label images. Raises StudyError."""
    with errors_from_wire():
        found = operations_pb2_grpc.StudiesStub(channel).ShowStudy(
            operations_pb2.ShowStudyRequest(name=study), timeout=CALL_SECONDS
        )
    if found.summary.state != "done":
        raise StudyError(
            f"the study {study} is in the state {found.summary.state}, so its label images are not written yet; "
            f"wait for it with: cairn study show {study} --wait"
        )


def _own(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the DQN's own settings of a run's file. Raises ConfigError."""
    own = values.get("settings", {})
    if not isinstance(own, dict):
        raise ConfigError(f"{config}: settings is {own!r}; write them as a table, [settings]")
    return dict(own)


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a value that is no TOML is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not NAME=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a run's TOML file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error
