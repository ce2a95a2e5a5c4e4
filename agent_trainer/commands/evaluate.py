"""`cairn evaluate`: how far from their landmarks a model's searches end, on images that lie here."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.commands.fetching import fetched, read_model
from agent_trainer.commands.watching import print_json
from agent_trainer.rounds.models import Model
from agent_trainer.scenes.scene import Scene
from cairn.errors import ConfigError
from cairn.profile import ProfileOption

if TYPE_CHECKING:
    from agent_trainer.dqn import Learner

app = typer.Typer(rich_markup_mode="markdown", context_settings={"allow_interspersed_args": True})


@app.callback(invoke_without_command=True)
def evaluate(
    model: Annotated[str, typer.Argument(help="Name of a run, or a weights file that `cairn export` wrote.")],
    scenes: Annotated[Path, typer.Option(help="TOML or JSON file with a list `scenes`, as in site.toml.")],
    profile: ProfileOption = Path("operator"),
    *,
    round_number: Annotated[int, typer.Option("--round", help="Which checkpoint; 0 the best.")] = 0,
    starts: Annotated[int, typer.Option(min=1, help="Searches an image; their median is the answer.")] = 5,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the images that training sets aside for validation.")
    ] = False,
    animate: Annotated[
        Path | None, typer.Option(help="Folder for an animated search of each task, from the first start.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure a model as ISBI 2015 does: mean and median radial error, and how many lie within 2, 2.5, 3 and 4 mm.

    * `cairn evaluate sella --scenes test.toml --profile operator`

    * `cairn evaluate weights.safetensors --scenes test.toml --animate pictures --json`
    """
    from agent_trainer.dqn import Learner  # noqa: PLC0415 - with what follows, seconds that --help should not take
    from agent_trainer.evaluation import evaluate as measure  # noqa: PLC0415
    from agent_trainer.scenes.sources import load_scenes, read_sources  # noqa: PLC0415

    trained = read_model(Path(model)) if Path(model).is_file() else fetched(profile, model, round_number)
    config = trained.config
    found = load_scenes(read_sources(_list(scenes), scenes.parent), config, learning=False)
    for problem in found.problems:
        typer.echo(f"left out: {problem}", err=True)
    wanted = found.validation if held_out else (*found.train, *found.validation)
    if not wanted:
        raise ConfigError(f"{scenes} has no image to measure on; with --held-out some must be set aside for validation")
    learner = Learner(config, len(config.tasks), config.actions, seed=0)
    learner.load(trained.weights)
    measured = {task: one.numbers() for task, one in measure(wanted, config, learner.q_values, starts).items()}
    drawn = [str(_animate(animate, scene, trained, learner)) for scene in _one_a_task(wanted)] if animate else []
    if as_json:
        print_json({"model": model, "round": trained.number, "tasks": measured, "pictures": drawn})
        return
    table = Table("landmark", "n", "mean mm", "median mm", "sd mm", "≤ 2 mm", "≤ 2.5 mm", "≤ 3 mm", "≤ 4 mm")
    for task, one in measured.items():
        rates = (f"{100 * one[f'sdr_{radius}']:.1f} %" for radius in ("2", "2.5", "3", "4"))
        errors = (f"{one[name]:.3g}" for name in ("mean_mm", "median_mm", "sd_mm"))
        table.add_row(task, f"{one['n']:.0f}", *errors, *rates)
    Console().print(table)
    for path in drawn:
        typer.echo(path)


def _list(path: Path) -> str:
    """Return the list `scenes` of a file as JSON. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return json.dumps(values["scenes"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a file of scenes with --scenes") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has no list `scenes`; write [[scenes]] tables as in site.toml") from error


def _one_a_task(scenes: tuple[Scene, ...]) -> list[Scene]:
    return list({scene.task: scene for scene in reversed(scenes)}.values())


def _animate(folder: Path, scene: Scene, trained: Model, learner: "Learner") -> Path:
    from agent_trainer.evaluation import starting_points, trace  # noqa: PLC0415
    from agent_trainer.pictures import animate  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    start = starting_points(scene.size, 2, trained.config.start_margin)[-1]
    path = folder / f"search-{scene.task}.gif"
    way = trace(scene, np.asarray(start).tolist(), trained.config, learner.q_values)
    animate(path, scene, way, trained.config.box)
    return path
