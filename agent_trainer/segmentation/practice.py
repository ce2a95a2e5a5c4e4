"""What a site holds of a segmentation run between rounds: its volumes, the learner, and the loop that trains it."""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from agent_trainer.algorithms import Algorithm, Place, Weights
from agent_trainer.craft.augmentation import augment
from agent_trainer.craft.domains import keep_own, local_names
from agent_trainer.loading import one_ahead
from agent_trainer.saved_state import fitting
from agent_trainer.segmentation.config import SegmentationConfig, read_config
from agent_trainer.segmentation.learner import Learner, Step, first_weights, remarks
from agent_trainer.segmentation.measures import add, figures, measure, merge_validation
from agent_trainer.segmentation.patches import cut, draw_middle, look_over
from agent_trainer.together import several
from agent_trainer.volumes.reading import Volume, on_disk, read_volume
from agent_trainer.volumes.settings import read_volume_sources
from agent_trainer.volumes.sources import Case, Volumes, load_volumes
from cairn.errors import CairnError, ImageError
from cairn.figures import IMAGES

STATE: Final = "segmentation.safetensors"
QUEUE: Final = "queue"
ON_DISK: Final = "volumes"
IN_MEMORY: Final = 4 << 30  # bytes of volumes; the others are read from files of the run's own at the site


@dataclass
class Sums:
    """Sums over a round so far; `with_dice` are the updates whose patches had a class."""

    updates: int = 0
    loss: float = 0.0
    with_dice: int = 0
    dice: float = 0.0

    def add(self, step: Step) -> None:
        """Count an update."""
        self.updates += 1
        self.loss += step.loss
        if step.dice is not None:
            self.with_dice += 1
            self.dice += step.dice

    def numbers(self) -> dict[str, float]:
        """Say them as means; one that nothing is known of is left out."""
        if not self.updates:
            return {"updates": 0.0}
        said = {"updates": float(self.updates), "loss": self.loss / self.updates}
        return said | ({"dice": self.dice / self.with_dice} if self.with_dice else {})


class SegmentationPractice:
    """A run at this site; see `algorithms.Practice`. `train` goes on where it stopped.

    volumes     the site's cases; those that cannot be read are left out, with a problem each
    seed        of order, draws and first weights
    folder      for the learner's state after each round, so that a restart goes on
    processes   that learn together, each from its share of a batch
    learn, held_out
                what is learned from and what is set aside, as networks take it
    Raises ImageError when no volume to learn from can be read.
    """

    def __init__(
        self,
        volumes: Volumes,
        config: SegmentationConfig,
        seed: int,
        device: str,
        folder: Path,
        processes: int = 1,
    ) -> None:
        self.config, self._folder = config, folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / ON_DISK, ignore_errors=True)
        self._held = 0
        self._problems = list(volumes.problems)
        self.learn = self._read(volumes.train)
        self.held_out = self._read(volumes.validation)
        if not self.learn:
            said = self._problems[len(volumes.problems)] if len(self._problems) > len(volumes.problems) else ""
            raise ImageError(
                f"none of the {len(volumes.train)} volumes to learn from can be read; expected at least one"
                + (f"; the first problem: {said}" if said else "")
            )
        self._seen = [look_over(volume, len(config.classes)) for volume in self.learn]
        self._rng = np.random.default_rng(seed)
        self._queue: deque[int] = deque()  # places of the volumes that come next
        self.learner = Learner(config, seed=seed, device=device)
        self._local = local_names(self.learner.network, config.keep_local)
        self._together = several(self.learner, "segmentation", config, seed, device, folder, processes)
        self._restore()

    def _read(self, cases: tuple[Case, ...]) -> list[Volume]:
        kept: list[Volume] = []
        for case in cases:
            try:
                volume = read_volume(case, self.config.classes, self.config.modality, self.config.spacing_mm)
            except ImageError as error:
                self._problems.append(str(error))
                continue
            self._held += volume.image.nbytes + volume.labels.nbytes
            if self._held > IN_MEMORY:
                volume = on_disk(volume, self._folder / ON_DISK)
            kept.append(volume)
        return kept

    @property
    def examples(self) -> int:
        """Volumes learned from."""
        return len(self.learn)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on what could not be used, and on what this machine cannot do."""
        return (*dict.fromkeys(self._problems), *self.learner.remarks)

    def weights(self) -> Weights:
        """Copy the network's weights, with the statistics of batch norm."""
        return self.learner.weights()

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights but those that stay here; see `Learner.load`."""
        if self._local and self.learner.updates:  # before there are none of its own
            weights = keep_own(weights, self.learner.weights(), self._local)
        self.learner.load(weights, proximal_mu)

    def train(self, updates: int) -> Iterator[Sums]:
        """Learn from so many batches; yields after each.

        Raises Diverged, with the weights from before the batch, and TrainingError when another process has ended.
        """
        sums, step = Sums(), self._begin_step()
        with one_ahead(self.batch, updates) as batches:
            for images, labels in batches:
                sums.add(step(images, labels))
                yield sums

    def _begin_step(self) -> Callable[[Tensor, Tensor], Step]:
        """Return what learns from a batch: alone, or with other processes that now have the same weights."""
        together, learner = self._together, self.learner
        if together is None:
            return learner.step
        together.begin()
        return lambda images, labels: together.step(
            lambda deal: learner.learn_part(*deal([images, labels.to(torch.uint8)]))
        )

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw the next patches and change them: float32[b, 1, patch], int64[b, patch]."""
        config, cuts = self.config, []
        for place in self._chosen(config.batch):
            volume = self.learn[place]
            cuts.append(cut(volume, draw_middle(volume, self._seen[place], config.foreground, self._rng), config.patch))
        images, labels = (torch.from_numpy(np.stack(some)) for some in zip(*cuts, strict=True))
        changed, moved = augment(images[:, None], labels, config.augmentation, self._rng)
        assert moved is not None
        return changed, moved

    def _chosen(self, many: int) -> list[int]:
        while len(self._queue) < many:
            self._queue.extend(self._rng.permutation(len(self.learn)).tolist())
        return [self._queue.popleft() for _ in range(many)]

    def validate(self) -> dict[str, float]:
        """Segment the volumes set aside, at the run's spacing; {} without any."""
        classes = self.config.classes
        measured = [
            measure(self.segmented(volume), volume.labels, self.config.spacing_mm, len(classes))
            for volume in self.held_out
        ]
        return figures(add(measured, len(classes)), classes)

    def segmented(self, volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Return the likeliest class of each voxel: uint8[x, y, z]."""
        return np.asarray(self.learner.probabilities(volume.image).argmax(0), np.uint8)

    def figures(self) -> dict[str, float]:
        """Tell how many volumes to learn from have each class."""
        having = (
            (name, sum(len(seen.places[k]) > 0 for seen in self._seen)) for k, name in enumerate(self.config.classes)
        )
        return {f"{IMAGES}{name}": float(n) for name, n in having}

    def save(self) -> None:
        """Keep network, optimiser, draws and the order of volumes. Raises OSError."""
        queue = torch.tensor(list(self._queue), dtype=torch.int64)
        self.learner.save(self._folder / STATE, {QUEUE: queue}, {"rng": self._rng.bit_generator.state})

    def _restore(self) -> None:
        path, rng = self._folder / STATE, np.random.default_rng(0)
        try:
            saved = self.learner.read(path)
            with fitting(path):
                queue = saved.tensors[QUEUE].tolist()
                rng.bit_generator.state = saved.caller["rng"]
                places = deque(int(place) for place in queue if 0 <= place < len(self.learn))  # some may have gone
        except (OSError, CairnError):
            return  # a new run, or a state of another one: begin anew
        self.learner.take(saved)
        self._rng, self._queue = rng, places


def begin(config: SegmentationConfig, place: Place) -> SegmentationPractice:
    """Begin or go on with a run at a site. Raises ConfigError, ImageError."""
    sources = read_volume_sources(place.table("volumes"), Path.cwd())
    volumes = load_volumes(sources, config.classes, config.modality, config.validation_share)
    return SegmentationPractice(volumes, config, place.seed, place.device, place.folder, place.processes)


def learner(config: SegmentationConfig, seed: int, device: str) -> Learner:
    """Make what learns in another process of the site."""
    return Learner(config, seed=seed, device=device)


SEGMENTATION: Final = Algorithm(read_config, first_weights, begin, merge_validation, remarks, learner)
