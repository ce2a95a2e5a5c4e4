"""Searches whose jobs run at the sites of a federation: asked for, and their journals fetched."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console

from agent_trainer.commands.first_weights import begun_from_files
from agent_trainer.commands.watching import print_json, run_as_dict, watch
from agent_trainer.search.as_run import as_run
from agent_trainer.search.journal import Record, read_journal
from agent_trainer.search.spec import Method, SearchSpec, read_search
from cairn.errors import StudyError
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import RunSpec, parse_run, run_message
from cairn.v1 import training_pb2, training_pb2_grpc

FETCH_S = 600.0
MaybeProfile = Annotated[
    Path | None,
    typer.Option(envvar="CAIRN_PROFILE", help="Operator's folder; JOURNAL is then the name of a search at the sites."),
]


def start(
    search: Annotated[Path, typer.Argument(help="TOML file of the search.", show_default=False)],
    profile: ProfileOption,
    name: Annotated[str | None, typer.Option(help="Name of the run; that of the file when left out.")] = None,
    *,
    sites_per_job: Annotated[int, typer.Option(min=1, help="Sites that do a job together.")] = 1,
    method: Annotated[Method | None, typer.Option(help="What proposes the strategies.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Strategies to try.")] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Jobs at a time, if there are sites for them.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the proposals and of the trainings.")] = None,
    watching: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the search until it ends.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask the federation for a search: each job trains at a site, or several, with the data there.

    It is a run: `cairn runs show`, `logs`, `stop` and `resume` take its name, and so do `cairn search show` and `best`.

    * `cairn search start search.toml --name spleen`

    * `cairn search start search.toml --name spleen --sites-per-job 3 --jobs 40 --no-watch`

    * `cairn search best spleen --out best.toml`
    """
    from agent_trainer.search.training import check  # noqa: PLC0415 - each command loads what it needs

    given = {"method": method, "jobs": jobs, "in_flight": in_flight, "seed": seed}
    spec = read_search(search, **{key: value for key, value in given.items() if value is not None})
    check(spec)
    run = _checked(as_run(spec, "search", sites_per_job), search.stem if name is None else name)
    with operator_channel(profile) as channel:
        run = with_first_weights(channel, run, spec)
        stub = training_pb2_grpc.RunsStub(channel)
        with errors_from_wire():
            stub.CreateRun(training_pb2.CreateRunRequest(spec=run_message(run)), timeout=CALL_SECONDS)
        if not watching:
            said = f"{run.name} is in the queue; follow it with: cairn runs show {run.name} --watch"
            print_json(run.model_dump(mode="json")) if as_json else typer.echo(said)
            return
        shown = watch(channel, run.name, Console(stderr=as_json))
    if as_json:
        print_json(run_as_dict(shown))
    if shown.summary.state == "failed":
        raise StudyError(f"the search {run.name} has failed: {shown.summary.message}")
    if shown.summary.state == "done" and not as_json:
        typer.echo(f"write the best strategy with: cairn search best {run.name} --out best.toml")


def _checked(run: RunSpec, name: str) -> RunSpec:
    return parse_run({**run.model_dump(), "name": name})


def with_first_weights(channel: grpc.Channel, run: RunSpec, spec: SearchSpec) -> RunSpec:
    """Send the weights that the settings name files of; every job begins with them wherever they fit.

    A search without files comes back as it is. Raises as `begun_from_files`.
    """
    from agent_trainer.algorithms import algorithm  # noqa: PLC0415
    from agent_trainer.first_files import files, told  # noqa: PLC0415

    routine = spec.space.run_settings(spec.space.routine())
    config = algorithm(spec.algorithm).read_config(json.dumps(routine))
    if not files(config):
        return run
    begun = begun_from_files(channel, run.model_copy(update={"settings": routine}))
    return run.model_copy(update={"settings": told(run.settings, config), "first_weights": begun.first_weights})


def read_search_of(journal: Path, profile: Path | None) -> tuple[SearchSpec, list[Record]]:
    """Read a journal that lies here or, with an operator's folder, that of a search at the sites by its run's name.

    Raises ConfigError, StudyError when there is no such run or it has no journal.
    """
    if profile is None or journal.exists():
        return read_journal(journal)
    name = str(journal)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search.jsonl"
        request = training_pb2.FetchJournalRequest(name=name)
        with operator_channel(profile) as channel, errors_from_wire(), path.open("wb") as file:
            for part in training_pb2_grpc.RunsStub(channel).FetchJournal(request, timeout=FETCH_S):
                file.write(part.data)
        return read_journal(path)
