"""`cairn runs …`: look at training runs, stop and resume them, compare them."""

import json
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.commands.watching import (
    as_dict,
    best_of,
    goal_of_run,
    picture,
    print_json,
    run_as_dict,
    show,
    watch,
)
from cairn.errors import ConfigError, StudyError
from cairn.figures import goal_of, told
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import GOALS, Goal
from cairn.v1 import training_pb2, training_pb2_grpc

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at training runs, stop and resume them.\n\nExample: `cairn runs list`",
)
NameArgument = Annotated[str, typer.Argument(help="Name of the run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command("list")
def list_runs(profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """List all runs.

    Example: `cairn runs list --json`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        found = training_pb2_grpc.RunsStub(channel).ListRuns(training_pb2.ListRunsRequest(), timeout=CALL_SECONDS)
    if as_json:
        print_json(as_dict(found))
        return
    table = Table("name", "algorithm", "state", "round", "best validation", "created (UTC)", "message")
    for run in found.runs:
        created, best = f"{run.created.ToDatetime():%Y-%m-%d %H:%M}", _best(run)
        table.add_row(run.name, run.algorithm, run.state, f"{run.round} of {run.rounds}", best, created, run.message)
    Console().print(table)


def _best(run: training_pb2.RunSummary) -> str:
    goal = next((goal for name, goal in GOALS.items() if name == run.algorithm), None)
    return f"{goal.words} {goal.said(run.best)}" if goal and run.HasField("best") else "–"


@app.command("show")
def show_run(
    name: NameArgument,
    profile: ProfileOption,
    *,
    watching: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its rounds, and what every site did in them.

    Examples: `cairn runs show sella` · `cairn runs show sella --watch` · `cairn runs show sella --json`
    """
    with operator_channel(profile) as channel:
        run = watch(channel, name, Console(stderr=as_json)) if watching else show(channel, name)
    if as_json:
        print_json(run_as_dict(run))
    elif not watching:
        Console().print(picture(run))
    if run.summary.state == "failed":
        raise StudyError(f"the run {name} has failed: {run.summary.message}")


@app.command()
def logs(
    name: NameArgument,
    profile: ProfileOption,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print a run's log.

    Example: `cairn runs logs sella --follow`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        request = training_pb2.ReadLogRequest(name=name, follow=follow)
        for line in training_pb2_grpc.RunsStub(channel).ReadLog(request, timeout=None if follow else CALL_SECONDS):
            typer.echo(
                json.dumps(as_dict(line)) if as_json else f"{line.at.ToDatetime():%Y-%m-%d %H:%M:%S}  {line.text}"
            )


@app.command()
def stop(name: NameArgument, profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """End a run after the round that is under way; its last checkpoint stays.

    Example: `cairn runs stop sella`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        _stub(channel).StopRun(training_pb2.StopRunRequest(name=name), timeout=CALL_SECONDS)
        run = _stub(channel).ShowRun(training_pb2.ShowRunRequest(name=name), timeout=CALL_SECONDS).summary
    if as_json:
        print_json(as_dict(run))
    elif run.state == "stopping":
        typer.echo(f"{name} ends with its round; resume it with: cairn runs resume {name}")
    else:
        typer.echo(f"{name} is {run.state}")


@app.command()
def resume(name: NameArgument, profile: ProfileOption, *, as_json: JsonOption = False) -> None:
    """Put a stopped or failed run back into the queue; it goes on behind its last checkpoint.

    Example: `cairn runs resume sella`
    """
    with operator_channel(profile) as channel, errors_from_wire():
        _stub(channel).ResumeRun(training_pb2.ResumeRunRequest(name=name), timeout=CALL_SECONDS)
        run = _stub(channel).ShowRun(training_pb2.ShowRunRequest(name=name), timeout=CALL_SECONDS).summary
    if as_json:
        print_json(as_dict(run))
        return
    typer.echo(f"{name} is in the queue again; follow it with: cairn runs show {name} --watch")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="Names of two or more runs.")],
    profile: ProfileOption,
    *,
    plot: Annotated[Path | None, typer.Option(help="Draw their curves into this PNG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: settings that differ, the best round by each run's goal, and where each of them got to.

    Examples: `cairn runs compare uniform sketched --plot curves.png` · `cairn runs compare apga cutout --json`
    """
    if len(set(names)) < 2:
        raise ConfigError("one run was named; name at least two to compare")
    with operator_channel(profile) as channel:
        runs = {name: show(channel, name) for name in names}
    specs = {name: run_as_dict(run)["spec"] for name, run in runs.items()}
    goals = {name: goal_of_run(run.spec) for name, run in runs.items()}
    differing = _differing(specs)
    ends = {name: _newest(run) for name, run in runs.items()}
    best = {name: _best_round(run, goals[name]) for name, run in runs.items()}
    if len(set(goals.values())) > 1:
        said = "; ".join(f"{name} by {goal.heading}" for name, goal in goals.items())
        typer.echo(f"these runs have different goals, whose values are not comparable: {said}", err=True)
    if plot is not None:
        _draw(plot, runs, goals)
    if as_json:
        named = {name: {"metric": goal.metric, **best[name]} for name, goal in goals.items()}
        print_json({"differing": differing, "goal": named, "last_round": ends})
        return
    table = Table("", *names)
    for setting, values in differing.items():
        table.add_row(setting, *(str(values[name]) for name in names))
    table.add_row("rounds", *(str(runs[name].summary.round) for name in names))
    for goal in dict.fromkeys(goals.values()):
        table.add_row(f"best {goal.heading}", *(_said(best[name]) if goals[name] == goal else "–" for name in names))
    for metric in sorted(set().union(*ends.values())):
        table.add_row(metric, *(f"{ends[name][metric]:.4g}" if metric in ends[name] else "–" for name in names))
    Console().print(table)


def _newest(run: training_pb2.ShowRunResponse) -> dict[str, float]:
    """Return the last round's figures, but for counts."""
    return told(run.rounds[-1].metrics) if run.rounds else {}


def _best_round(run: training_pb2.ShowRunResponse, goal: Goal) -> dict[str, float]:
    """Return value and number of the round that was validated best; {} where none was."""
    best = best_of(run, goal)
    value = None if best is None else goal_of(best.metrics, goal)
    return {} if best is None or value is None else {"best": value, "round": best.round}


def _said(best: dict[str, float]) -> str:
    return f"{best['best']:.4g} in round {best['round']:.0f}" if best else "–"


def _draw(plot: Path, runs: dict[str, training_pb2.ShowRunResponse], goals: dict[str, Goal]) -> None:
    """Draw the runs' validations, a panel for each goal."""
    from agent_trainer.pictures import Curves, draw_curves  # noqa: PLC0415 - matplotlib takes a second

    panels = [
        Curves(
            f"{goal.heading}, on validation images",
            {name: _curve(runs[name], goal) for name in goals if goals[name] == goal},
        )
        for goal in dict.fromkeys(goals.values())
    ]
    draw_curves(plot, panels)


def _curve(run: training_pb2.ShowRunResponse, goal: Goal) -> tuple[list[int], list[float]]:
    """Return a run's validated rounds and the goal's figure in them."""
    found = {one.round: value for one in run.rounds if (value := goal_of(one.metrics, goal)) is not None}
    return list(found), list(found.values())


def _differing(specs: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the settings that are not the same in all runs, by setting and run."""
    flat = {
        name: {**{k: v for k, v in spec.items() if k not in {"name", "settings"}}, **_own(spec)}
        for name, spec in specs.items()
    }
    keys = sorted(set().union(*flat.values()))
    rows = {key: {name: one.get(key, "default") for name, one in flat.items()} for key in keys}
    return {key: row for key, row in rows.items() if len({repr(value) for value in row.values()}) > 1}


def _own(spec: dict[str, object]) -> dict[str, object]:
    settings = spec["settings"]
    assert isinstance(settings, dict)  # by run_as_dict
    return settings


def _stub(channel: grpc.Channel) -> training_pb2_grpc.RunsStub:
    return training_pb2_grpc.RunsStub(channel)
