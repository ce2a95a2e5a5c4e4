"""A job done: any algorithm trained with a strategy's settings, validated, and measured on test images."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from agent_trainer.algorithms import Place, Weights, algorithm
from agent_trainer.search.data import Data
from agent_trainer.search.jobs import Job
from agent_trainer.search.spec import SearchSpec
from agent_trainer.search.testing import measure
from cairn.errors import TrainingError
from cairn.figures import goal_of, told
from cairn.run import GOALS, AlgorithmName


@dataclass(frozen=True)
class Trained:
    """What came of a job.

    figures  of the validation that counts and of the test images, by name
    """

    reward: float
    figures: Mapping[str, float]
    weights: Weights


def reward_of(name: AlgorithmName, figures: Mapping[str, float]) -> float:
    """Return the reward that a validation's figures hold: the goal's, negated where smaller is better.

    Raises TrainingError when they do not hold it; a NaN is returned as it is.
    """
    goal = GOALS[name]
    value = goal_of(figures, goal)
    if value is None:
        raise TrainingError(
            f"the validation told no {goal.words}, by which a search chooses; set images aside with validation_share"
        )
    return value if goal.larger_is_better else -value


def check(spec: SearchSpec) -> None:
    """Let the search's algorithm refuse settings and ends of ranges before anything is trained. Raises ConfigError."""
    spec.space.check(algorithm(spec.algorithm).read_config)


def check_data(name: AlgorithmName, data: Data) -> None:
    """Refuse tables that the algorithm cannot read; opens no image. Raises ConfigError."""
    match name:
        case "dqn":
            from agent_trainer.scenes.sources import read_sources  # noqa: PLC0415 - each loads what it needs

            read_sources(data.text("scenes"), data.folder)
        case "segmentation":
            from agent_trainer.volumes.settings import read_volume_sources  # noqa: PLC0415

            read_volume_sources(data.text("volumes"), data.folder)
        case "apga" | "attention":
            from agent_trainer.labelled.settings import read_labelled  # noqa: PLC0415

            read_labelled(data.text("labelled"), data.folder)
        case "pretrain":  # which table it takes, its settings say
            return


def train(
    spec: SearchSpec,
    job: Job,
    data: Data,
    folder: Path,
    *,
    test: Data | None = None,
    device: str = "cpu",
    share: Callable[[Weights], Weights] | None = None,
) -> Trained:
    """Train with a job's settings and seed from first weights on; the best of its validations counts.

    folder  of its own, empty
    test    images to measure the weights on that count
    share   gives weights of an earlier job in the place of first ones, where there are any
    Raises CairnError: ConfigError, ImageError of the data; TrainingError, Diverged.
    """
    trained = algorithm(spec.algorithm)
    config = trained.read_config(json.dumps(dict(job.settings)))
    first = trained.first_weights(config, job.seed)
    with chdir(data.folder):  # to which the paths in the tables are relative
        practice = trained.begin(config, Place(data.tables, job.seed, device, folder))
    practice.load(first if share is None else {**first, **share(first)})
    found: list[Trained] = []
    done = 0
    for point in range(1, spec.validations + 1):
        until = spec.updates * point // spec.validations
        for _ in practice.train(until - done):
            pass
        done = until
        figures = trained.merge_validation([practice.validate()])
        found.append(
            Trained(reward_of(spec.algorithm, figures), {**told(figures), "updates": done}, practice.weights())
        )
        if math.isnan(found[-1].reward):
            return found[-1]
    best = max(found, key=lambda one: one.reward)
    if test is None:
        return best
    return replace(best, figures={**best.figures, **measure(spec.algorithm, config, best.weights, test, device)})
