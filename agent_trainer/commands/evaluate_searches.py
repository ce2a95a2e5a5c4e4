"""How far from their landmarks a DQN's searches end."""

from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.commands.watching import print_json
from agent_trainer.dqn import Learner
from agent_trainer.evaluation import evaluate as measure
from agent_trainer.evaluation import starting_points, trace
from agent_trainer.rounds.models import Model
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.sources import load_scenes, read_sources
from cairn.errors import ConfigError


def evaluate(
    name: str,
    trained: Model,
    sources: str,
    file: Path,
    *,
    starts: int,
    held_out: bool,
    animate: Path | None,
    as_json: bool,
) -> None:
    """Measure a model and print what was found.

    sources  JSON, out of the file
    Raises ConfigError when there is no image, and for what the sources lack.
    """
    config = trained.config
    found = load_scenes(read_sources(sources, file.parent), config, learning=False)
    for problem in found.problems:
        typer.echo(f"left out: {problem}", err=True)
    wanted = found.validation if held_out else (*found.train, *found.validation)
    if not wanted:
        raise ConfigError(f"{file} has no image to measure on; with --held-out some must be set aside for validation")
    learner = Learner(config, len(config.tasks), config.actions, seed=0)
    learner.load(trained.weights)
    measured = {task: one.numbers() for task, one in measure(wanted, config, learner.q_values, starts).items()}
    drawn = [str(_animate(animate, scene, trained, learner)) for scene in _one_a_task(wanted)] if animate else []
    if as_json:
        print_json({"model": name, "round": trained.number, "tasks": measured, "pictures": drawn})
        return
    table = Table("landmark", "n", "mean mm", "median mm", "sd mm", "≤ 2 mm", "≤ 2.5 mm", "≤ 3 mm", "≤ 4 mm")
    for task, one in measured.items():
        rates = (f"{100 * one[f'sdr_{radius}']:.1f} %" for radius in ("2", "2.5", "3", "4"))
        errors = (f"{one[name]:.3g}" for name in ("mean_mm", "median_mm", "sd_mm"))
        table.add_row(task, f"{one['n']:.0f}", *errors, *rates)
    Console().print(table)
    for path in drawn:
        typer.echo(path)


def _one_a_task(scenes: tuple[Scene, ...]) -> list[Scene]:
    return list({scene.task: scene for scene in reversed(scenes)}.values())


def _animate(folder: Path, scene: Scene, trained: Model, learner: Learner) -> Path:
    from agent_trainer.pictures import animate  # noqa: PLC0415 - matplotlib takes a second

    folder.mkdir(parents=True, exist_ok=True)
    start = starting_points(scene.size, 2, trained.config.start_margin)[-1]
    path = folder / f"search-{scene.task}.gif"
    way = trace(scene, np.asarray(start).tolist(), trained.config, learner.q_values)
    animate(path, scene, way, trained.config.box)
    return path
