"""How often a classifier is right, of which classes, and how sure it may be believed to be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.answers import answer
from agent_trainer.classification import Counts, count, measures
from agent_trainer.commands.watching import print_json
from agent_trainer.labelled.settings import read_labelled
from agent_trainer.labelled.sources import load_labelled
from agent_trainer.rounds.models import Model
from cairn.errors import ConfigError

OVERALL = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "ece": "calibration error"}


def evaluate(
    name: str, trained: Model, sources: str, file: Path, *, held_out: bool, plot: Path | None, as_json: bool
) -> None:
    """Measure a model and print what was found.

    sources  JSON, out of the file
    Raises ConfigError when there is no image, and for what the sources lack.
    """
    config = trained.config
    classes: tuple[str, ...] = config.classes
    found = load_labelled(
        read_labelled(sources, file.parent), classes, config.validation_share, groups=config.groups, learning=False
    )
    wanted = found.validation if held_out else (*found.train, *found.validation)
    answers = answer(trained, wanted)
    for problem in (*found.problems, *answers.problems):
        typer.echo(f"left out: {problem}", err=True)
    if not len(answers.labels):
        raise ConfigError(f"{file} has no image to measure on; with --held-out some must be set aside for validation")
    counts = count(answers.probabilities, answers.labels)
    measured = measures(counts, classes)
    if plot is not None:
        from agent_trainer.classification_pictures import draw_classification  # noqa: PLC0415 - matplotlib

        draw_classification(plot, counts, classes)
    if as_json:
        drawn = [] if plot is None else [str(plot)]
        about = {"model": name, "round": trained.number, "classes": list(classes)}
        print_json({**about, **_as_json(counts, measured, classes), "pictures": drawn})
        return
    console = Console()
    console.print(_overall(measured), _classes(measured, classes), _confusion(counts, classes))
    if plot is not None:
        typer.echo(plot)


def _as_json(counts: Counts, measured: dict[str, float], classes: Sequence[str]) -> dict[str, Any]:
    of_class = {
        name: {kind: measured.get(f"{kind}/{name}") for kind in ("sensitivity", "specificity")} for name in classes
    }
    return {
        "measures": {key: value for key, value in measured.items() if "/" not in key},
        "of_class": of_class,
        "confusion": counts.confusion.tolist(),
    }


def _overall(measured: dict[str, float]) -> Table:
    table = Table("n", *OVERALL.values())
    known = {**measured, "auc": measured.get("auc")}
    table.add_row(f"{measured['n']:.0f}", *(_said(known[key]) for key in OVERALL))
    return table


def _classes(measured: dict[str, float], classes: Sequence[str]) -> Table:
    table = Table("class", "sensitivity", "specificity")
    for name in classes:
        table.add_row(name, *(_said(measured.get(f"{kind}/{name}")) for kind in ("sensitivity", "specificity")))
    return table


def _confusion(counts: Counts, classes: Sequence[str]) -> Table:
    table = Table("true, predicted →", *classes)
    for name, row in zip(classes, counts.confusion.tolist(), strict=True):
        table.add_row(name, *map(str, row))
    return table


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
