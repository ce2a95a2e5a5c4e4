"""The figures of a run as people see them, the same for researchers, operators and sites: names, headings, values."""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from cairn.run import GOALS, AlgorithmName, Goal

Metrics = Mapping[str, float]

VALIDATION: Final = "validation/"  # before the names of all figures of a validation
COUNTS: Final = f"{VALIDATION}counts/"  # before those of the counts that sites add up
IMAGES: Final = "images/"  # before the number of images of a class that a site learns from


class Figure(NamedTuple):
    """One number of a round.

    words  what people call it
    share  whether it is one, from 0 to 1
    """

    name: str
    words: str
    unit: str = ""
    share: bool = False

    @property
    def heading(self) -> str:
        """What stands over it."""
        return f"{self.words}, {self.unit}" if self.unit else self.words


# What a classifier's validation tells beside its goal, over all classes and of each.
OVERALL: Final = (
    Figure("validation/accuracy", "accuracy", share=True),
    Figure("validation/auc", "AUC"),
    Figure("validation/ece", "calibration error", share=True),
    Figure("validation/read", "pixels that the classifier read", share=True),
)
OF_CLASSES: Final = (
    Figure("validation/sensitivity/", "sensitivity", share=True),
    Figure("validation/specificity/", "specificity", share=True),
)
_LOSS: Final = Figure("loss", "loss")
_RIGHT: Final = Figure("accuracy", "accuracy on images learned from", share=True)
# What training tells, by algorithm, in the order in which it is drawn.
TRAINING: Final[dict[AlgorithmName, tuple[Figure, ...]]] = {
    "dqn": (
        _LOSS,
        Figure("reward", "reward a step", "mm"),
        Figure("replay/unique_share", "replay: unique transitions", share=True),
        Figure("replay/effective", "replay: effective sample size", "transitions"),
        Figure("replay/fill", "replay: table fill", share=True),
    ),
    "apga": (
        _LOSS,
        _RIGHT,
        Figure("masked_loss", "loss on masked images"),
        Figure("reward", "reward of the masks"),
        Figure("masks/kept", "share of pixels that the masks keep", share=True),
    ),
    "attention": (
        _LOSS,
        _RIGHT,
        Figure("reward", "reward of a patch"),
        Figure("entropy", "entropy of the attention"),
    ),
    "segmentation": (_LOSS, Figure("dice", "Dice on patches learned from", share=True)),
    "pretrain": (_LOSS, Figure("pretext", "pretext loss")),
}


def told(metrics: Metrics) -> dict[str, float]:
    """Leave out the counts that sites add up: hundreds of numbers that say nothing to people."""
    return {name: value for name, value in metrics.items() if not _is_count(name)}


def _is_count(name: str) -> bool:
    # counts/class/NAME, counts/confusion/0/1 …; a task that is called counts has shorter ones.
    return name.startswith(COUNTS) and name.count("/") > 2


def algorithm_of(names: Collection[str]) -> AlgorithmName:
    """Tell what a site trains by what it tells of: a classifier of its accuracy, attention of its entropy."""
    own: tuple[AlgorithmName, ...] = ("segmentation", "pretrain")
    for name in own:
        if GOALS[name].metric in names or TRAINING[name][-1].name in names:
            return name
    if "entropy" in names:
        return "attention"
    return "apga" if "accuracy" in names or GOALS["apga"].metric in names else "dqn"


def in_words(metrics: Metrics) -> list[str]:
    """Say a site's validation: its goal's figure, of each task if there are several, and a classifier's measures."""
    goal = GOALS[algorithm_of(metrics)]
    said = [f"{task} {goal.said(value)}" for task, value in sorted(goal_by_task(metrics, goal).items())]
    if not said and (value := goal_of(metrics, goal)) is not None:
        said = [f"{goal.words} {goal.said(value)}"]
    said += [f"{figure.words} {metrics[figure.name]:.3g}" for figure in OVERALL if figure.name in metrics]
    for figure in OF_CLASSES:
        said += [f"{figure.words} of {name} {value:.3g}" for name, value in by_class(metrics, figure).items()]
    return said


def goal_of(metrics: Metrics, goal: Goal) -> float | None:
    """Find a goal's figure among the numbers of a site, or of all sites; None where nothing was validated.

    Σ n·value / Σ n      over the tasks of a site, which tells of each
    """
    if goal.metric in metrics:
        return metrics[goal.metric]
    images = total = 0.0
    for task, value in goal_by_task(metrics, goal).items():
        n = metrics.get(f"{VALIDATION}{task}/n", 0.0)
        images, total = images + n, total + n * value
    return total / images if images else None


def goal_by_task(metrics: Metrics, goal: Goal) -> dict[str, float]:
    """Find a goal's figure of each task; {} where a run has none, as a classifier's."""
    last = f"/{goal.metric.removeprefix(VALIDATION)}"
    return {
        name.removeprefix(VALIDATION).removesuffix(last): value
        for name, value in metrics.items()
        if name.startswith(VALIDATION) and name.endswith(last) and name != goal.metric
    }


def by_class(metrics: Metrics, figure: Figure) -> dict[str, float]:
    """Find one of OF_CLASSES of each class, in the order of names."""
    found = {name.removeprefix(figure.name): value for name, value in metrics.items() if name.startswith(figure.name)}
    return dict(sorted(found.items()))
