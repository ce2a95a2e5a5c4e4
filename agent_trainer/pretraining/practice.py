"""What a site holds of a pre-training run between rounds: its images, the learner, and the loop that trains it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent_trainer.algorithms import Algorithm, Place, Weights
from agent_trainer.classification import LEAST, MOST
from agent_trainer.labelled.sources import read_labelled
from agent_trainer.module_weights import as_weights
from agent_trainer.pretraining.config import PretrainConfig, read_config
from agent_trainer.pretraining.images import Found, labelled_images, scene_images
from agent_trainer.pretraining.learner import Learner, Step
from agent_trainer.pretraining.networks import build
from agent_trainer.saved_state import fitting
from agent_trainer.scenes.sources import read_sources
from cairn.errors import CairnError
from cairn.figures import VALIDATION

STATE: Final = "pretrain.safetensors"
DRAWS: Final = 8  # of each image set aside, where a task is drawn: the same ones each time
NUMBER, LOSS, RIGHT = f"{VALIDATION}n", f"{VALIDATION}pretext", f"{VALIDATION}accuracy"


@dataclass
class Sums:
    """Sums over a round so far."""

    updates: int = 0
    images: int = 0
    loss: float = 0.0
    right: float | None = None

    def add(self, step: Step) -> None:
        """Count an update."""
        self.updates += 1
        self.images += len(step.losses)
        self.loss += float(step.losses.sum())
        if step.right is not None:
            self.right = (self.right or 0.0) + float(step.right.sum())

    def numbers(self) -> dict[str, float]:
        """Say them as means over images."""
        if not self.images:
            return {"updates": 0.0}
        mean = self.loss / self.images
        right = {} if self.right is None else {"accuracy": self.right / self.images}
        return {"updates": float(self.updates), "loss": mean, "pretext": mean, **right}


class PretrainPractice:
    """A run at this site; see `algorithms.Practice`. `train` goes on where it stopped.

    found   the site's images
    seed    of order, draws and first weights
    folder  for the learner's state after each round, so that a restart goes on
    """

    def __init__(self, found: Found, config: PretrainConfig, seed: int, device: str, folder: Path) -> None:
        self.config, self.found, self._folder = config, found, folder
        self._seed, self._device = seed, device
        folder.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(config, seed=seed, device=device)
        self._rng = np.random.default_rng(seed)
        self._queue: list[int] = []  # places of the images that come next
        self._restore()

    @property
    def examples(self) -> int:
        """Images learned from."""
        return len(self.found.train)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on images that cannot be used."""
        return self.found.problems

    def weights(self) -> Weights:
        """Copy encoder and what stands behind it."""
        return self.learner.weights()

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights; see `Learner.load`."""
        self.learner.load(weights, proximal_mu)

    def train(self, updates: int) -> Iterator[Sums]:
        """Learn from so many batches; yields after each. Raises Diverged, with the weights from before the batch."""
        sums = Sums()
        for _ in range(updates):
            pixels = self.found.train.batch(self._chosen(), self._rng)
            if self.config.flips:
                over = self._rng.random(len(pixels)) < 0.5
                pixels[over] = pixels[over][..., ::-1].copy()
            sums.add(self.learner.step(pixels, self._rng))
            yield sums

    def _chosen(self) -> npt.NDArray[np.int64]:
        while len(self._queue) < self.config.batch:
            self._queue += self._rng.permutation(self.examples).tolist()
        chosen, self._queue = self._queue[: self.config.batch], self._queue[self.config.batch :]
        return np.array(chosen, np.int64)

    def validate(self) -> dict[str, float]:
        """Set the images aside their tasks, always the same ones; {} of fewer than ten, which would tell too much."""
        images, config = self.found.validation, self.config
        if len(images) < LEAST:
            return {}
        rng = np.random.default_rng(0)
        drawn = config.encoder == "dqn" or config.method in ("jigsaw", "masked")
        which = np.repeat(np.arange(len(images)), DRAWS if drawn else 1)
        parts = [
            self.learner.measure(images.batch(which[at : at + config.batch], rng), rng)
            for at in range(0, len(which), config.batch)
        ]
        told = {NUMBER: float(len(images)), LOSS: sum(float(p.losses.sum()) for p in parts) / len(which)}
        right = [float(p.right.sum()) for p in parts if p.right is not None]
        return told | ({RIGHT: sum(right) / len(which)} if right else {})

    def figures(self) -> dict[str, float]:
        """Nothing beside what training tells."""
        return {}

    def save(self) -> None:
        """Keep network, optimiser and the order of images. Raises OSError."""
        self.learner.save(self._folder / STATE, {"rng": self._rng.bit_generator.state, "queue": self._queue})

    def _restore(self) -> None:
        path, rng = self._folder / STATE, np.random.default_rng(0)
        try:
            state = self.learner.restore(path)
            with fitting(path):
                rng.bit_generator.state = state["rng"]
                queue = [
                    int(place) for place in state["queue"] if 0 <= int(place) < self.examples
                ]  # some may have gone
        except (OSError, CairnError):  # a new run, or a state of another one: begin anew
            if self.learner.updates:
                self.learner = Learner(self.config, seed=self._seed, device=self._device)
            return
        self._rng, self._queue = rng, queue


def merge_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the sites' measures into means over all images; {} when nobody validated.

    validation/pretext = Σ n·pretext / Σ n
    """
    told = [site for site in sites if LEAST <= site.get(NUMBER, 0.0) <= MOST and np.isfinite(site.get(LOSS, np.nan))]
    total = sum(site[NUMBER] for site in told)
    if not total:
        return {}
    found = {NUMBER: total, LOSS: sum(site[NUMBER] * site[LOSS] for site in told) / total}
    if all(RIGHT in site for site in told):
        found[RIGHT] = sum(site[NUMBER] * site[RIGHT] for site in told) / total
    return found


def first_weights(config: PretrainConfig, seed: int) -> Weights:
    """Make the weights that a run begins with."""
    return as_weights(build(config, seed))


def begin(config: PretrainConfig, place: Place) -> PretrainPractice:
    """Load a site's images and go on where the run was at this site. Raises ConfigError, ImageError."""
    table = place.table(config.table)
    found = (
        scene_images(read_sources(table, Path.cwd()), config)
        if config.table == "scenes"
        else labelled_images(read_labelled(table, Path.cwd()), config)
    )
    return PretrainPractice(found, config, place.seed, place.device, place.folder)


PRETRAIN: Final = Algorithm(read_config, first_weights, begin, merge_validation)
