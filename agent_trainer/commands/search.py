"""`cairn search …`: find how to train, by many short trainings on this machine; and look at what was found."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from agent_trainer.commands.search_sites import MaybeProfile, read_search_of, start
from agent_trainer.commands.watching import print_json
from agent_trainer.search.comparison import compared, comparison_table, course
from agent_trainer.search.data import read_data
from agent_trainer.search.journal import Journal, Record, read_journal
from agent_trainer.search.leaderboard import best, leaderboard, leaderboard_table, ranked
from agent_trainer.search.space import export
from agent_trainer.search.spec import Method, SearchSpec, read_search
from cairn.errors import ConfigError, TrainingError
from cairn.run import GOALS

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Find how to train: learning rate, augmentation, architecture, by many trainings.\n\n"
    "Examples: `cairn search run search.toml` · `cairn search best search.journal --out best.toml`",
)
JournalArgument = Annotated[
    Path, typer.Argument(help="Journal of a search, or with --profile its name.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
app.command()(start)
INTERRUPTED = 130  # what a shell takes for an end by Ctrl-C


@app.command()
def run(
    search: Annotated[Path, typer.Argument(help="TOML file of the search.", show_default=False)],
    *,
    journal: Annotated[
        Path | None, typer.Option(help="File that the search is written to; SEARCH.journal when left out.")
    ] = None,
    method: Annotated[Method | None, typer.Option(help="What proposes the strategies.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Strategies to try; more than before goes on.")] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Jobs at a time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the proposals and of the trainings.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where jobs train.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Processor cores of each job.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Search, or go on with a search whose journal is there; Ctrl-C leaves it so that the same command goes on.

    * `cairn search run search.toml`

    * `cairn search run search.toml --journal tpe.journal --method tpe --jobs 40 --in-flight 2`
    """
    given = {"method": method, "jobs": jobs, "in_flight": in_flight, "seed": seed}
    spec = read_search(search, **{name: value for name, value in given.items() if value is not None})
    path = search.with_suffix(".journal") if journal is None else journal
    _check(spec, search)
    from agent_trainer.commands.searching import watch  # noqa: PLC0415 - each command loads what it needs
    from agent_trainer.search.jobs import Search  # noqa: PLC0415
    from agent_trainer.search.spec import proposer  # noqa: PLC0415
    from agent_trainer.search.worker import Asked, command, jobs_folder  # noqa: PLC0415
    from agent_trainer.search.workers import Workers  # noqa: PLC0415

    program = command(sys.executable, Asked(path, device, threads))
    with (
        _interruptible(path),
        _open(path, spec) as written,
        Workers(program, jobs_folder(path)) as workers,
    ):
        watch(spec, written, Search(spec, proposer(spec), written, workers), Console(stderr=as_json))
    spec, records = read_journal(path)
    if not ranked(records):
        raise TrainingError(f"none of {len(records)} jobs gave a reward; the last: {records[-1].why}")
    if as_json:
        _print(spec, records)
        return
    Console().print(leaderboard_table(records, test=spec.test_metric))
    typer.echo(f"the best is job {best(records).job}; write it with: cairn search best {path} --out best.toml")


@app.command()
def show(
    journal: JournalArgument,
    *,
    profile: MaybeProfile = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show a search's leaderboard, and why jobs have no reward; the search may be under way.

    Examples: `cairn search show search.journal --top 5` · `cairn search show spleen --profile me`
    """
    spec, records = read_search_of(journal, profile)
    if as_json:
        _print(spec, records)
        return
    console = Console()
    console.print(f"{spec.method} searches {len(spec.space.names)} settings of {spec.algorithm} by {spec.reward_words}")
    console.print(leaderboard_table(records, top, spec.test_metric))
    for record in records:
        if record.state in ("failed", "lost"):
            console.print(f"job {record.job} {record.state}: {record.why}", highlight=False, markup=False)


@app.command()
def picture(
    journal: JournalArgument,
    out: Annotated[Path, typer.Argument(help="PNG file to write.", show_default=False)],
    *,
    profile: MaybeProfile = None,
) -> None:
    """Draw a search: reward over jobs, parameters over time, and which of them mattered.

    Example: `cairn search picture search.journal search.png`
    """
    spec, records = read_search_of(journal, profile)
    from agent_trainer.search.pictures import draw_course  # noqa: PLC0415 - matplotlib, Optuna

    draw_course(out, spec, records, spec.reward_words)
    typer.echo(out)


@app.command("best")
def best_strategy(
    journal: JournalArgument,
    *,
    out: Annotated[Path, typer.Option(help="TOML file to write.", show_default=False)],
    job: Annotated[int | None, typer.Option(min=0, help="Another job than the best.")] = None,
    profile: MaybeProfile = None,
) -> None:
    """Write the best strategy as the TOML file that `cairn train` takes.

    * `cairn search best search.journal --out best.toml`

    * `cairn train segmentation --config best.toml --rounds 50 --min-sites 3`
    """
    spec, records = read_search_of(journal, profile)
    found = best(records) if job is None else _of(records, job)
    export(out, spec.space, found.strategy, spec.algorithm)
    said = "no reward" if found.reward is None else f"{spec.reward_words} {found.reward:.4f}"
    typer.echo(f"{out}: job {found.job}, {said}; train with: cairn train {spec.algorithm} --config {out}")


@app.command()
def compare(
    journals: Annotated[list[Path], typer.Argument(help="Journals; several seeds of a method make one line.")],
    *,
    out: Annotated[Path | None, typer.Option(help="PNG file for the best so far against the jobs spent.")] = None,
    at: Annotated[int | None, typer.Option(min=1, help="Compare after so many jobs; at the end when left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare searches of one algorithm: the best reward for the jobs spent, by method.

    Example: `cairn search compare ppo.journal tpe.journal random.journal --out methods.png`
    """
    found = [read_journal(path) for path in journals]
    first = found[0][0]
    for path, (spec, _) in zip(journals, found, strict=True):
        if (spec.algorithm, spec.space) != (first.algorithm, first.space):
            raise ConfigError(
                f"{path.name} is of a search of other settings than {journals[0].name}; compare searches of one space"
            )
    courses = [course(spec, records) for spec, records in found]
    if out is not None:
        from agent_trainer.search.pictures import draw_comparison  # noqa: PLC0415 - matplotlib

        draw_comparison(out, courses, first.reward_words)
    rows = compared(courses, at)
    if as_json:
        print_json({"reward": first.reward_words, "methods": rows, "pictures": [] if out is None else [str(out)]})
        return
    Console().print(comparison_table(rows, first.reward_words))
    if out is not None:
        typer.echo(out)


def _check(spec: SearchSpec, file: Path) -> None:
    """Refuse what no job could do, before the first begins. Raises ConfigError."""
    from agent_trainer.search import training  # noqa: PLC0415

    if spec.sources is None:
        raise ConfigError(f'{file.name} names no data; set sources = "data.toml", a file with [[volumes]] or others')
    training.check(spec)
    if spec.test is not None and spec.algorithm == "pretrain":
        raise ConfigError(f"{file.name} names test images, and pre-training has no measure on them; leave out test")
    for path in (spec.sources, spec.test):
        if path is not None:
            try:
                training.check_data(spec.algorithm, read_data(path))
            except ConfigError as error:
                raise ConfigError(f"{path.name}: {error}") from error


def _open(path: Path, spec: SearchSpec) -> Journal:
    try:
        return Journal(path, spec)
    except OSError as error:
        raise ConfigError(f"the journal {path} cannot be written ({error.strerror}); name another file") from error


@contextmanager
def _interruptible(journal: Path) -> Iterator[None]:
    """Say on Ctrl-C, when told to end, and when nothing can be written, that the search is only resting."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"stopped; the same command goes on where {journal.name} ends", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except OSError as error:  # a full disk, a folder that is gone
        raise TrainingError(
            f"the search cannot write beside {journal} ({error.strerror}); mend that, and the same command goes on"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _of(records: list[Record], job: int) -> Record:
    found = next((record for record in records if record.job == job), None)
    if found is None:
        raise TrainingError(f"the search has no job {job}; it has jobs 0 to {len(records) - 1}")
    return found


def _print(spec: SearchSpec, records: list[Record]) -> None:
    """Print a search as one JSON object: what was asked, its leaderboard, and the jobs without a reward."""
    others = [
        {"job": one.job, "state": one.state, "attempts": one.attempts, "why": one.why, "strategy": one.strategy}
        for one in records
        if one.state != "finished"
    ]
    about: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    words = {"reward": spec.reward_words, "goal": GOALS[spec.algorithm].metric}
    print_json({"search": about, **words, "leaderboard": leaderboard(records), "others": others})
