"""What a job's weights are worth on images that no search chooses by: figures for people, named test/…."""

from collections.abc import Mapping
from typing import Any

from agent_trainer.algorithms import Weights
from agent_trainer.search.data import Data
from agent_trainer.search.spec import TEST
from cairn.errors import ConfigError
from cairn.run import AlgorithmName


def measure(name: AlgorithmName, config: Any, weights: Weights, data: Data, device: str) -> dict[str, float]:
    """Measure weights on all images of the data, whichever side of a split they are on.

    Raises ConfigError, ImageError for data that cannot be used, TrainingError for weights of other networks.
    """
    match name:
        case "apga" | "attention":
            found = _classifier(name, config, weights, data)
        case "dqn":
            found = _searches(config, weights, data, device)
        case "segmentation":
            found = _volumes(config, weights, data, device)
        case other:
            raise ConfigError(f"{other} has no measure on test images; leave out the search's test")
    return {f"{TEST}{figure}": value for figure, value in found.items()}


def _classifier(name: AlgorithmName, config: Any, weights: Weights, data: Data) -> Mapping[str, float]:
    from agent_trainer.answers import answer  # noqa: PLC0415 - each loads what it needs
    from agent_trainer.classification import count, measures  # noqa: PLC0415
    from agent_trainer.labelled.settings import read_labelled  # noqa: PLC0415
    from agent_trainer.labelled.sources import load_labelled  # noqa: PLC0415
    from agent_trainer.rounds.models import Model  # noqa: PLC0415

    sources = read_labelled(data.text("labelled"), data.folder)
    found = load_labelled(sources, config.classes, config.validation_share, groups=config.groups, learning=False)
    answers = answer(Model("this job", 0, name, config, weights), (*found.train, *found.validation))
    if not len(answers.labels):
        raise ConfigError("none of the test images can be read; expected at least one")
    measured = measures(count(answers.probabilities, answers.labels), config.classes)
    return {key: value for key, value in measured.items() if "/" not in key}


def _searches(config: Any, weights: Weights, data: Data, device: str) -> Mapping[str, float]:
    from agent_trainer.dqn import Learner  # noqa: PLC0415
    from agent_trainer.evaluation import evaluate, merge_validation, named  # noqa: PLC0415
    from agent_trainer.scenes.sources import load_scenes, read_sources  # noqa: PLC0415
    from cairn.figures import VALIDATION  # noqa: PLC0415

    found = load_scenes(read_sources(data.text("scenes"), data.folder), config, learning=False)
    learner = Learner(config, len(config.tasks), config.actions, seed=0, device=device)
    learner.load(weights)
    measured = named(evaluate((*found.train, *found.validation), config, learner.q_values, 1))
    merged = merge_validation([measured])
    return {name.removeprefix(VALIDATION): value for name, value in merged.items()}


def _volumes(config: Any, weights: Weights, data: Data, device: str) -> Mapping[str, float]:
    from agent_trainer.segmentation.learner import Learner  # noqa: PLC0415
    from agent_trainer.segmentation.measures import add, means  # noqa: PLC0415
    from agent_trainer.segmentation.measures import measure as measure_volume  # noqa: PLC0415
    from agent_trainer.volumes.reading import read_volume  # noqa: PLC0415
    from agent_trainer.volumes.settings import read_volume_sources  # noqa: PLC0415
    from agent_trainer.volumes.sources import load_volumes  # noqa: PLC0415

    sources = read_volume_sources(data.text("volumes"), data.folder)
    found = load_volumes(sources, config.classes, config.modality, config.validation_share, learning=False)
    learner = Learner(config, seed=0, device=device)
    learner.load(weights)
    measured = []
    for case in (*found.train, *found.validation):
        volume = read_volume(case, config.classes, config.modality, config.spacing_mm)
        answers = learner.probabilities(volume.image).argmax(0)
        measured.append(measure_volume(answers, volume.labels, config.spacing_mm, len(config.classes)))
    return means(add(measured, len(config.classes)), config.classes)
