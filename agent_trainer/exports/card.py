"""The model card in Markdown: what a model is, who trained it, how well it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Measures = Mapping[str, Mapping[str, float]]
POINT = ("threshold", "sensitivity", "specificity")  # of an operating point


@dataclass(frozen=True)
class SiteCard:
    """What a site gave and measured.

    name      as in the federation; "" for a site that wishes not to be named
    images    that it learned from
    measures  named numbers on the site's own validation images, by task; of a classifier one row, of the task ""
    classes   how many of the images are of each class
    """

    name: str
    images: int
    measures: Measures = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """What a model card says that the weights do not.

    run, round  which checkpoint this is
    rounds      how many the run had
    strategy    how the sites' weights were joined
    data        a sentence on the images: kind, modality, source
    sites       those that took part
    pooled      measures over all sites' validation images
    privacy     settings by name: masking, noise, what left the sites
    licence     of the weights, an SPDX name or a sentence; somebody must have decided it
    points      of each class, an operating point: threshold, sensitivity and specificity by name
    calibration the temperature, and the calibration error before and behind it, by name
    """

    run: str
    round: int
    rounds: int
    strategy: str
    data: str
    licence: str
    sites: Sequence[SiteCard] = ()
    pooled: Measures = field(default_factory=dict)
    privacy: Mapping[str, str] = field(default_factory=dict)
    points: Measures = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What a card says of a model by its algorithm.

    what          it is, the first half of a sentence
    architecture  in words all that decides which weights fit
    lines         its inputs and outputs, as items of a list
    tasks         what a task is called, for the head of a column; "" where there are none
    settings      as JSON
    """

    what: str
    architecture: str
    lines: tuple[str, ...]
    tasks: str
    settings: str


def describe(about: About, card: ModelCard, difference: float) -> str:
    """Return the card.

    difference  between ONNX's outputs and torch's, at most
    """
    lines = [
        f"# {card.run}, round {card.round}",
        "",
        f"{about.what} trained by {len(card.sites)} site{'' if len(card.sites) == 1 else 's'} together with Cairn. "
        "Images did not leave the sites.",
        "",
        f"- **Licence**: {card.licence}",
        f"- **Data**: {card.data}",
        f"- **Training**: {card.rounds} rounds, joined by {card.strategy}; these are the weights of round {card.round}",
        f"- **Network**: {about.architecture}",
        *(f"- {line}" for line in about.lines),
        f"- **ONNX**: checked in onnxruntime, within {difference:.1e} of torch's",
        "",
        "Not a medical device. It was measured on the sites' images only; measure it on yours before use.",
        "",
        "## Sites",
        "",
        *_sites(card.sites),
        "",
        "## Measures on each site's own validation images",
        "",
        *_measures(card, about.tasks),
        *_in_use(card),
        "",
        "## Privacy",
        "",
        *([f"- **{name}**: {value}" for name, value in card.privacy.items()] or ["Nothing was stated."]),
        "",
        "## Settings",
        "",
        "```json",
        about.settings,
        "```",
        "",
    ]
    return "\n".join(lines)


def _sites(sites: Sequence[SiteCard]) -> list[str]:
    """List the sites' images, of each class where there are classes."""
    classes = list(dict.fromkeys(name for site in sites for name in site.classes))
    rows = [
        (_name(i, site), str(site.images or "not told"), *(str(site.classes.get(name, 0)) for name in classes))
        for i, site in enumerate(sites, 1)
    ]
    if classes:
        sums = (str(sum(site.classes.get(name, 0) for site in sites)) for name in classes)
        rows.append(("all sites", str(sum(site.images for site in sites)), *sums))
    return _table(("Site", "Images", *(f"of {name}" for name in classes)), rows)


def _in_use(card: ModelCard) -> list[str]:
    """Say from which probability on a class is called, and how far probabilities can be believed."""
    lines: list[str] = []
    if card.points:
        rows = [(name, *(f"{point[key]:.3g}" for key in POINT)) for name, point in card.points.items()]
        lines += [
            "",
            "## Operating points",
            "",
            "The likeliest class is the answer. To call a class by its probability alone, this threshold gave the most "
            "sensitivity + specificity (Youden) over all sites' validation images, on which it was also chosen; choose "
            "your own with `cairn evaluate --point`.",
            "",
            *_table(("Class", *POINT), rows),
        ]
    if "temperature" in card.calibration:
        found = card.calibration
        behind = f", {found['behind it']:.3g} behind the temperature" if "behind it" in found else ""
        before = f" The calibration error is {found['error']:.3g} as it is{behind}." if "error" in found else ""
        lines += [
            "",
            "## Calibration",
            "",
            f"Temperature {found['temperature']:.3g}: p^(1/{found['temperature']:.3g}), divided by its sum over the "
            f"classes, is what the probabilities should have been on all sites' validation images.{before} The graphs "
            "and weights are without it.",
        ]
    return lines


def _measures(card: ModelCard, tasks: str) -> list[str]:
    rows = [(_name(i, s), task, numbers) for i, s in enumerate(card.sites, 1) for task, numbers in s.measures.items()]
    rows += [("all sites", task, numbers) for task, numbers in card.pooled.items()]
    if not rows:
        return ["None were reported."]
    names = list(dict.fromkeys(name for _, _, numbers in rows for name in numbers))
    cells = [
        (site, *([task] if tasks else []), *(f"{numbers[n]:.4g}" if n in numbers else "" for n in names))
        for site, task, numbers in rows
    ]
    return _table(("Site", *([tasks] if tasks else []), *names), cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = (head, ["---"] * len(head), *rows)
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _name(number: int, site: SiteCard) -> str:
    return site.name or f"site {number}"
