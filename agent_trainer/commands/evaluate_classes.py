"""How often a classifier is right, of which classes, and how sure it may be believed to be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.answers import answer_all
from agent_trainer.classification import Counts, count, measures
from agent_trainer.commands.watching import print_json
from agent_trainer.craft.calibration import fit_temperature, scaled
from agent_trainer.craft.ensembles import Vote, combined, vote_weights
from agent_trainer.craft.thresholds import OperatingPoint, Rule, operating_points, read_rule
from agent_trainer.labelled.settings import read_labelled
from agent_trainer.labelled.sources import load_labelled
from agent_trainer.rounds.models import Model
from cairn.errors import ConfigError

OVERALL = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "ece": "calibration error"}


@dataclass(frozen=True)
class Asked:
    """What is asked for beyond measures.

    vote, weights  of an ensemble, see `ensembles.combined`
    point          a rule, see `thresholds.read_rule`
    temperature    that the probabilities are measured behind; None as they are
    """

    vote: str
    weights: tuple[float, ...]
    point: str
    temperature: float | None
    held_out: bool


def evaluate(
    members: Sequence[tuple[str, Model]],
    sources: str,
    file: Path,
    asked: Asked,
    *,
    accuracy: Callable[[Model], float],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure a model, or several that answer together, and print what was found.

    sources   JSON, out of the file
    accuracy  of a model in its run's own validation: what its vote weighs where nobody says it
    Raises ConfigError when there is no image, and for what the sources lack.
    """
    (name, trained), rule = members[0], read_rule(asked.point)
    config = trained.config
    classes: tuple[str, ...] = config.classes
    vote, weights = _vote(members, asked, accuracy, len(classes))
    found = load_labelled(
        read_labelled(sources, file.parent), classes, config.validation_share, groups=config.groups, learning=False
    )
    wanted = found.validation if asked.held_out else (*found.train, *found.validation)
    each, labels, problems = answer_all([model for _, model in members], wanted)
    for problem in (*found.problems, *problems):
        typer.echo(f"left out: {problem}", err=True)
    if not len(labels):
        raise ConfigError(f"{file} has no image to measure on; with --held-out some must be set aside for validation")
    probabilities = combined(each, vote, weights) if len(members) > 1 else each[0]
    if asked.temperature is not None:
        probabilities = scaled(probabilities, asked.temperature)
    counts = count(probabilities, labels)
    measured = measures(counts, classes)
    points = operating_points(counts, classes, rule)
    warmer = fit_temperature(counts)
    behind = None if warmer is None else measures(count(scaled(probabilities, warmer), labels), classes)["ece"]
    if plot is not None:
        from agent_trainer.classification_pictures import draw_classification  # noqa: PLC0415 - matplotlib

        draw_classification(plot, counts, classes)
    alone = [measures(count(one, labels), classes) for one in each] if len(members) > 1 else []
    if as_json:
        print_json(
            {
                "model": name,
                "round": trained.number,
                "classes": list(classes),
                **_as_json(counts, measured, classes),
                "operating_points": {"rule": str(rule), "of_class": {k: asdict(v) for k, v in points.items()}},
                "calibration": {"applied": asked.temperature, "temperature": warmer, "ece_behind_it": behind},
                "ensemble": _ensemble(members, alone, vote, weights),
                "pictures": [] if plot is None else [str(plot)],
            }
        )
        return
    console = Console()
    if alone:
        console.print(_members(members, alone, weights))
    console.print(_overall(measured), _classes(measured, points, rule, classes), _confusion(counts, classes))
    if warmer is not None and behind is not None:
        typer.echo(f"a temperature of {warmer:.2f} would bring the calibration error of these images to {behind:.3f}")
    if plot is not None:
        typer.echo(plot)


def _vote(
    members: Sequence[tuple[str, Model]], asked: Asked, accuracy: Callable[[Model], float], classes: int
) -> tuple[Vote, list[float]]:
    """Return how the members answer together, and what each vote weighs. Raises ConfigError."""
    match asked.vote:
        case "average" | "majority" as vote:
            if asked.weights:
                raise ConfigError(f"--weight is of --vote weighted; with {vote} all members count alike")
            return vote, []
        case "weighted":
            given = list(asked.weights)
            return "weighted", given or vote_weights([accuracy(model) for _, model in members], classes)
    raise ConfigError(f"--vote is {asked.vote!r}; it can be average, majority or weighted")


def _ensemble(
    members: Sequence[tuple[str, Model]], alone: Sequence[dict[str, float]], vote: Vote, weights: Sequence[float]
) -> dict[str, Any] | None:
    if not alone:
        return None
    told = [
        {
            "model": name,
            "round": model.number,
            "accuracy": one["accuracy"],
            "balanced_accuracy": one["balanced_accuracy"],
        }
        for (name, model), one in zip(members, alone, strict=True)
    ]
    return {"vote": vote, "weights": list(weights), "members": told}


def _members(
    members: Sequence[tuple[str, Model]], alone: Sequence[dict[str, float]], weights: Sequence[float]
) -> Table:
    table = Table("member", "round", *OVERALL.values(), *(["weight"] if weights else []))
    for place, ((name, model), one) in enumerate(zip(members, alone, strict=True)):
        weighs = [f"{weights[place]:.2f}"] if weights else []
        table.add_row(name, str(model.number), *(_said(one.get(key)) for key in OVERALL), *weighs)
    return table


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


def _classes(
    measured: dict[str, float], points: Mapping[str, OperatingPoint], rule: Rule, classes: Sequence[str]
) -> Table:
    """Lay out each class, as answered and at its operating point."""
    table = Table(
        "class", "sensitivity", "specificity", f"threshold ({rule})", "sensitivity there", "specificity there"
    )
    for name in classes:
        point = points.get(name)
        there = (
            ("–",) * 3 if point is None else tuple(map(_said, (point.threshold, point.sensitivity, point.specificity)))
        )
        table.add_row(name, *(_said(measured.get(f"{kind}/{name}")) for kind in ("sensitivity", "specificity")), *there)
    return table


def _confusion(counts: Counts, classes: Sequence[str]) -> Table:
    table = Table("true, predicted →", *classes)
    for name, row in zip(classes, counts.confusion.tolist(), strict=True):
        table.add_row(name, *map(str, row))
    return table


def _said(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
