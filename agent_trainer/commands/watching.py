"""A run as people and scripts see it: asked for once, or followed until it ends."""

import json
import time
from typing import Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cairn.errors import Unreachable
from cairn.figures import goal_of
from cairn.profile import CALL_SECONDS
from cairn.rpc import errors_from_wire
from cairn.run import Goal, read_run
from cairn.v1 import training_pb2, training_pb2_grpc

ENDED = ("done", "stopped", "failed")
LOOK_EVERY_S = 1.0
SHOWN = 12  # rounds on the screen, the newest


def show(channel: grpc.Channel, name: str) -> training_pb2.ShowRunResponse:
    """Ask for a run with all its rounds, which may take several answers. Raises StudyError."""
    stub = training_pb2_grpc.RunsStub(channel)
    rounds: list[training_pb2.Round] = []
    while True:
        request = training_pb2.ShowRunRequest(name=name, after=rounds[-1].round if rounds else 0)
        with errors_from_wire():
            run = stub.ShowRun(request, timeout=CALL_SECONDS)
        rounds += run.rounds
        if not run.more:
            del run.rounds[:]
            run.rounds.extend(rounds)
            return run


def watch(channel: grpc.Channel, name: str, console: Console) -> training_pb2.ShowRunResponse:
    """Follow a run on the screen until it ends; Ctrl-C stops the watching, never the run."""
    run = show(channel, name)
    try:
        with Live(picture(run), console=console, refresh_per_second=4) as live:
            while run.summary.state not in ENDED:
                time.sleep(LOOK_EVERY_S)
                try:
                    run = show(channel, name)
                except Unreachable:  # the aggregator restarts
                    continue
                live.update(picture(run))
    except KeyboardInterrupt:
        console.print(f"{name} goes on; look at it with: cairn runs show {name} --watch")
    return run


def picture(run: training_pb2.ShowRunResponse) -> RenderableType:
    """Draw a run: how far it is, and its newest rounds with what every site did."""
    about, goal, table = run.summary, goal_of_run(run.spec), Table(box=None, padding=(0, 2, 0, 0))
    searches = bool(run.spec.search_json)
    for column in ("job" if searches else "round", "s", "loss", "reward", goal.heading, "sites"):
        table.add_column(column, justify="left" if column == "sites" else "right")
    for one in run.rounds[-SHOWN:]:
        table.add_row(
            f"{one.metrics['job']:.0f}" if searches and "job" in one.metrics else str(one.round),
            f"{one.seconds:.1f}",
            *(_number(one.metrics.get(name)) for name in ("loss", "reward")),
            _number(goal_of(one.metrics, goal)),
            " · ".join(_site(site, goal) for site in one.sites),
        )
    best = best_of(run, goal)
    said = ""
    if best:
        where = f"of job {best.metrics.get('job', 0):.0f}" if searches else f"in round {best.round}"
        said = f"  best {goal.words} {goal.said(goal_of(best.metrics, goal) or 0.0)} {where}"
    far = f"{about.round} of {about.rounds} jobs" if searches else f"round {about.round} of {about.rounds}"
    head = Text.assemble((about.name, "bold"), f"  {about.state}  {far}{said}")
    bar = ProgressBar(total=max(1, about.rounds), completed=about.round, width=60)
    message = [Text(about.message, style="yellow")] if about.message else []
    return Group(head, bar, *message, table)


def goal_of_run(spec: training_pb2.RunSpec) -> Goal:
    """Return the figure by which a run's best round is chosen. Raises TrainingError for a run of a later version."""
    return read_run(spec).goal


def best_of(run: training_pb2.ShowRunResponse, goal: Goal) -> training_pb2.Round | None:
    """Return the round that was validated best, the first of equals; None where none was."""
    best: training_pb2.Round | None = None
    for one in run.rounds:
        value, before = goal_of(one.metrics, goal), None if best is None else goal_of(best.metrics, goal)
        if value is not None and (before is None or goal.better(value, before)):
            best = one
    return best


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _site(site: training_pb2.SiteRound, goal: Goal) -> str:
    if site.state != "trained":
        return f"{site.site}: {site.state}{f' ({site.reason})' if site.reason else ''}"
    value = goal_of(site.metrics, goal)
    return site.site if value is None else f"{site.site} {goal.said(value)}"


def run_as_dict(run: training_pb2.ShowRunResponse) -> dict[str, Any]:
    """Say a run as one JSON object: summary, spec (its settings as an object, and so its search if any), rounds."""
    found = as_dict(run)
    found["spec"]["settings"] = json.loads(found["spec"].pop("settings_json", "") or "{}")
    if search := found["spec"].pop("search_json", ""):
        found["spec"]["search"] = json.loads(search)
    return found


def as_dict(message: Message) -> dict[str, Any]:
    """Say a message as a JSON object with the names of the proto; 64-bit numbers stay numbers."""
    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {key: _numbers(value, key) for key, value in values.items()}


def _numbers(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(one, key) for one in value]
    return int(value) if key in {"bytes", "seed"} else value  # 64-bit integers come as text


def print_json(values: object) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(values, indent=2))
