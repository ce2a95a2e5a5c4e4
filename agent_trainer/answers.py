"""What a trained classifier answers to images that lie here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_trainer.labelled.sources import Example
from agent_trainer.rounds.models import Model
from cairn.errors import ConfigError, ImageError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to the images that could be read.

    probabilities  float32[n, K]
    labels         int64[n], what the images are
    problems       a sentence on each image that could not be read
    """

    probabilities: Floats
    labels: npt.NDArray[np.int64]
    problems: tuple[str, ...]


def answer(model: Model, examples: Sequence[Example]) -> Answers:
    """Classify images, one after another, as the sites do when they validate.

    Raises ConfigError for a model of another kind or one that looks first where a tissue state is, TrainingError for
    weights that are not of its networks.
    """
    (probabilities,), labels, problems = answer_all([model], examples)
    return Answers(probabilities, labels, problems)


def answer_all(
    models: Sequence[Model], examples: Sequence[Example]
) -> tuple[Floats, npt.NDArray[np.int64], tuple[str, ...]]:
    """Classify images with each of M models: float32[M, n, K], labels int64[n], and what could not be read by all.

    Raises what `answer` does, and ConfigError for models of different classes.
    """
    classes = models[0].config.classes
    for model in models:
        if model.config.classes != classes:
            raise ConfigError(
                f"{model.run} tells apart {', '.join(model.config.classes)}, {models[0].run} {', '.join(classes)}; the "
                "members of an ensemble must answer with the same classes in the same order"
            )
    each = [_answering(model) for model in models]
    found, labels, problems = [], [], []
    for example in examples:
        try:
            found.append(np.stack([one(example) for one in each]))
        except ImageError as error:
            problems.append(str(error))
        else:
            labels.append(example.label)
    probabilities = np.stack(found, 1) if found else np.empty((len(models), 0, len(classes)), np.float32)
    return probabilities, np.array(labels, np.int64), tuple(problems)


def _answering(model: Model) -> Callable[[Example], Floats]:
    config = model.config
    match model.algorithm:
        case "apga":
            from agent_trainer.apga_learner import Learner  # noqa: PLC0415 - only what is called for
            from agent_trainer.craft.domains import looked as in_look  # noqa: PLC0415
            from agent_trainer.labelled.reading import read_whole  # noqa: PLC0415

            learner = Learner(config, seed=0)
            learner.load(model.weights)

            def whole(example: Example) -> Floats:
                pixels = in_look(read_whole(example.path, config.side, config.channels)[np.newaxis], config.domain)
                probabilities: Floats = learner.probabilities(pixels)[0]
                return probabilities

            return whole
        case "attention":
            if config.prior != "none" and config.prior_of == "tissue":
                raise ConfigError(
                    f"{model.run} looks first where {config.prior_state} is, and without a site's label images "
                    "would answer otherwise than there; take the sites' own figures from cairn runs show, or measure a "
                    "run without a prior of tissue"
                )
            from agent_trainer.attention_practice import look, networks_of  # noqa: PLC0415
            from agent_trainer.patches import open_big  # noqa: PLC0415

            networks = networks_of(config, model.weights)

            def looked(example: Example) -> Floats:
                with open_big(example.path, config.channels) as image:
                    return look(networks, image).probabilities

            return looked
        case other:
            raise ConfigError(f"{model.run} is a run of {other}, which classifies nothing")
