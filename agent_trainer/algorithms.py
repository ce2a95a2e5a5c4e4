"""The algorithms that a run may have: what the rounds need of each, and nothing of what it learns."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]
"""Arrays by name, in the network's own order; statistics of batch normalisation are among them."""


class Config(Protocol):
    """An algorithm's own settings, a frozen pydantic model."""

    @property
    def round_updates(self) -> int:
        """Optimiser steps of each site in a round."""

    def model_dump_json(self) -> str:
        """Write all of them as JSON."""


class Progress(Protocol):
    """What training has done in this round so far."""

    @property
    def updates(self) -> int:
        """Optimiser steps made."""

    def numbers(self) -> dict[str, float]:
        """Say it by name: loss, reward, accuracy …; what nothing is known of is left out."""


class Practice(Protocol):
    """What a site holds of a run between rounds: data, networks, optimisers."""

    @property
    def config(self) -> Config:
        """The run's settings."""

    @property
    def examples(self) -> int:
        """Images learned from: the site's weight in the aggregate."""

    @property
    def problems(self) -> Sequence[str]:
        """Sentences on what could not be used, with file names: for the site's own eyes."""

    def weights(self) -> Weights:
        """Copy what the federation averages."""

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take the federation's weights, and hold training to them by ½·mu·‖w − w₀‖² (FedProx)."""

    def train(self, updates: int) -> Iterator[Progress]:
        """Make so many optimiser steps; yields after each piece of work, so that a caller may stop.

        Raises Diverged, with the weights from before the step.
        """

    def validate(self) -> dict[str, float]:
        """Measure the weights on the images set aside; names begin with `cairn.figures.VALIDATION`."""

    def figures(self) -> dict[str, float]:
        """Tell what else is worth telling after a round."""

    def save(self) -> None:
        """Keep the optimiser's state, so that a restart goes on. Raises OSError."""


@dataclass(frozen=True)
class Place:
    """Where a run trains at a site.

    sources  the site's tables of data by kind: "scenes", "labelled", "volumes"; each algorithm reads its own
    seed     of exploration, order and draws; differs between sites
    folder   of the run's own files at this site
    processes  that may learn together; of an algorithm that can
    """

    sources: Mapping[str, Sequence[Mapping[str, Any]]]
    seed: int
    device: str
    folder: Path
    processes: int = 1

    def table(self, kind: str) -> str:
        """Write one kind's tables as JSON."""
        return json.dumps([dict(table) for table in self.sources.get(kind, ())])


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    read_config       settings from JSON; raises ConfigError with the first thing that is wrong
    first_weights     what a run begins with, by its settings and seed
    begin             a site's practice; raises ConfigError, ImageError
    merge_validation  the figures of all sites' validations made into one of each; {} when nobody validated.
                      By which of them the best round is chosen: cairn.run.GOALS
    remarks           sentences on settings for the run's log, such as which layers train
    learner           a learner by settings, seed and device, of which several processes of a site each have one and
                      learn together (`together.Learner`); None where they cannot
    alone             says that a run of these settings learns in one process all the same, and why; "" when it need not
    """

    read_config: Callable[[str], Any]
    first_weights: Callable[[Any, int], Weights]
    begin: Callable[[Any, Place], Practice]
    merge_validation: Callable[[Sequence[Mapping[str, float]]], dict[str, float]]
    remarks: Callable[[Any], tuple[str, ...]] = lambda config: ()  # noqa: ARG005
    learner: Callable[[Any, int, str], Any] | None = None
    alone: Callable[[Any], str] = lambda config: ""  # noqa: ARG005


def algorithm(name: str) -> Algorithm:
    """Return an algorithm by its name in a run. Its modules are imported only when called for: torch takes seconds.

    Raises ConfigError for a name that this version does not know.
    """
    match name:
        case "dqn":
            from agent_trainer.dqn_practice import DQN  # noqa: PLC0415

            return DQN
        case "apga":
            from agent_trainer.apga_practice import APGA  # noqa: PLC0415

            return APGA
        case "attention":
            from agent_trainer.attention_practice import ATTENTION  # noqa: PLC0415

            return ATTENTION
        case "segmentation":
            from agent_trainer.segmentation.practice import SEGMENTATION  # noqa: PLC0415

            return SEGMENTATION
        case "pretrain":
            from agent_trainer.pretraining.practice import PRETRAIN  # noqa: PLC0415

            return PRETRAIN
        case other:
            from cairn.errors import ConfigError  # noqa: PLC0415

            known = "dqn, apga, attention, segmentation and pretrain"
            raise ConfigError(f"there is no algorithm {other}; there are {known}")
