"""What a site holds of an APGA run between rounds: its labelled images, the learner, and the loop that trains it."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from agent_trainer import apga
from agent_trainer.algorithms import Algorithm, Place, Weights
from agent_trainer.apga_config import ApgaConfig, read_config
from agent_trainer.apga_learner import Learner
from agent_trainer.apga_networks import CLASSIFIER, last_layer, load_pretrained, networks
from agent_trainer.classification import count, figures
from agent_trainer.craft import transfer
from agent_trainer.craft.augmentation import augment_pixels
from agent_trainer.craft.domains import keep_own, local_names, looked
from agent_trainer.craft.validation import merge
from agent_trainer.labelled.balance import class_weights, order
from agent_trainer.labelled.reading import Pixels, read_all
from agent_trainer.labelled.sources import Example, Labelled, LabelledSource, load_labelled, read_labelled
from agent_trainer.loading import each
from agent_trainer.module_weights import as_weights
from agent_trainer.saved_state import fitting
from agent_trainer.together import several
from cairn.errors import CairnError, ConfigError, ImageError

STATE: Final = "apga.safetensors"
QUEUE: Final = "queue"


@dataclass
class Sums:
    """Sums over a round so far.

    masked, adversarial  the updates that had masked images, and an adversary
    kept                 sum over images of the share of pixels with P > 0.5, of `looked` images
    """

    updates: int = 0
    images: int = 0
    loss: float = 0.0
    right: int = 0
    masked: int = 0
    masked_loss: float = 0.0
    adversarial: int = 0
    reward: float = 0.0
    looked: int = 0
    kept: float = 0.0

    def add(self, step: apga.Step, images: int) -> None:
        """Count an update."""
        self.updates += 1
        self.images += images
        self.loss += step.original
        self.right += step.right
        if step.masked is not None:
            self.masked += 1
            self.masked_loss += step.masked
        if step.reward is not None:
            self.adversarial += 1
            self.reward += step.reward
        if step.kept is not None:
            self.looked += images
            self.kept += float(step.kept.sum())

    def numbers(self) -> dict[str, float]:
        """Say them as means; one that nothing is known of is left out."""
        if not self.updates:
            return {"updates": 0.0}
        said = {"updates": float(self.updates), "loss": self.loss / self.updates, "accuracy": self.right / self.images}
        said |= {"masked_loss": self.masked_loss / self.masked} if self.masked else {}
        said |= {"reward": self.reward / self.adversarial} if self.adversarial else {}
        return said | ({"kept": self.kept / self.looked} if self.looked else {})


@dataclass(frozen=True)
class Batch:
    """Images to learn from: int64[b] their places, their pixels, changed, and those of the other look.

    pixels, target  uint8[b, channels, side, side]; None without a CORAL loss
    """

    chosen: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]
    target: npt.NDArray[np.uint8] | None


class ApgaPractice:
    """A run at this site; see `algorithms.Practice`. `train` goes on where it stopped.

    labelled  the site's examples; images that cannot be read are left out, with a problem each
    seed      of order, draws and first weights
    folder    for the learner's state after each round, so that a restart goes on
    target    images of the other look, see `Domain`; what they show is not used
    processes that learn together, each from its share of a batch
    images, labels, held_out, held_out_labels
              uint8[n, channels, side, side] and int64[n]: to learn from, and set aside
    Raises ImageError when no image to learn from can be read.
    """

    def __init__(
        self,
        labelled: Labelled,
        config: ApgaConfig,
        seed: int,
        device: str,
        folder: Path,
        target: Sequence[Example] = (),
        processes: int = 1,
    ) -> None:
        self.config, self._folder = config, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.images, train, broken = self._read(labelled.train)
        self.held_out, validation, more = self._read(labelled.validation)
        self._target, _, yet_more = self._read(target)
        if not train:
            raise ImageError(
                f"none of the {len(labelled.train)} images to learn from can be read; expected at least one"
            )
        self.labels = np.array([example.label for example in train], np.int64)
        self.held_out_labels = np.array([example.label for example in validation], np.int64)
        self._problems = (*labelled.problems, *broken, *more, *yet_more)
        self._rng = np.random.default_rng(seed)
        self._queue: deque[int] = deque()  # places of the images that come next
        weigh = class_weights(self.labels, len(config.classes)) if config.balance == "weights" else None
        self.learner = Learner(config, seed=seed, device=device, class_weights=weigh)
        processes = 1 if alone(config) else processes
        self._together = several(self.learner, "apga", config, seed, device, folder, processes)
        # Changing images takes time, in which a GPU can learn; a CPU's cores are taken. Where a step draws too, what is
        # drawn would come in another order.
        self._ahead = torch.device(device).type == "cuda" and not (
            config.augmentation.off or config.dropout or config.method == "cutout"
        )
        self._local = local_names(self.learner.networks, config.domain.keep_local)
        self._window: list[float] = []  # of each update since the masks were last looked at: share of collapsed ones
        self._sums = Sums()
        self._collapses = 0  # over all rounds
        self._collapse = ""  # a sentence on the last one
        self._restore()

    def _read(self, examples: Sequence[Example]) -> tuple[Pixels, tuple[Example, ...], tuple[str, ...]]:
        """Read images as the networks see them; many of them stay on the disk."""
        config = self.config

        def change(pixels: Pixels) -> Pixels:
            found: Pixels = looked(pixels[np.newaxis], config.domain)[0]
            return found

        return read_all(examples, config.side, config.channels, self._folder, change)

    @property
    def examples(self) -> int:
        """Images learned from."""
        return len(self.labels)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on the masks' last collapse, as it may spoil the run, on broken images, and on this machine."""
        return (*([self._collapse] if self._collapse else []), *self._problems, *self.learner.remarks)

    def weights(self) -> Weights:
        """Copy both networks' weights, with the statistics of batch norm."""
        return self.learner.weights()

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights, but for those that stay here once they have learned here; see `Learner.load`."""
        if self._local and self.learner.updates:
            weights = keep_own(weights, self.learner.weights(), self._local)
        self.learner.load(weights, proximal_mu)

    def train(self, updates: int) -> Iterator[Sums]:
        """Learn from so many batches, pre-training first; yields after each.

        However the round ends, also when the caller closes it early, the masks are looked at before its end.
        Raises Diverged, with the weights from before the batch, and TrainingError when another process has ended.
        """
        self._sums = sums = Sums()
        if self._together is not None:
            self._together.begin()
        with each(self._batch, updates, ahead=self._ahead) as batches:
            for made, batch in enumerate(batches, 1):
                step, chosen = self._learn(batch), batch.chosen
                sums.add(step, len(chosen))
                if step.kept is not None:
                    self._window.append(float(apga.collapsed(step.kept, self.config.collapse_share).float().mean()))
                    if len(self._window) >= self.config.collapse_window or made == updates:
                        revived = self._look_at_masks(chosen, float(step.kept.mean()))
                        if revived and self._together is not None and made < updates:
                            self._together.begin()
                try:
                    yield sums
                except GeneratorExit:  # the round's time is over
                    if step.kept is not None and self._window:
                        self._look_at_masks(chosen, float(step.kept.mean()))
                    raise

    def _batch(self) -> Batch:
        chosen = self._chosen(self.config.batch)
        pixels = augment_pixels(self.images[chosen], self.config.augmentation, self._rng)
        return Batch(chosen, pixels, self._of_target(len(chosen)))

    def _learn(self, batch: Batch) -> apga.Step:
        learn = partial(self.learner.step, batch.pixels, self.labels[batch.chosen], self._rng, batch.target)
        return learn() if self._together is None else self._together.step(learn)

    def _of_target(self, many: int) -> npt.NDArray[np.uint8] | None:
        """Draw images of the other look; None without a CORAL loss."""
        if not self.config.domain.coral or not len(self._target):
            return None
        found: npt.NDArray[np.uint8] = self._target[self._rng.integers(0, len(self._target), many)]
        return found

    def _look_at_masks(self, chosen: npt.NDArray[np.int64], kept: float) -> bool:
        """Revive masks that collapsed, before anybody gets these weights; tells whether any had."""
        collapsed = bool(np.mean(self._window) >= 0.5)
        if collapsed:
            self._collapses += 1
            self.learner.revive(self.images[chosen])
            what = "zero, nothing counting as important" if kept < 0.5 else "one, everything counting as important"
            self._collapse = (
                f"after {self.learner.updates} batches the masks had collapsed to all {what} ({self._collapses} times "
                "so far); the masker's last bias was set anew, half of the pixels on either side; if this comes back, "
                "change lambda_zeros or lower learning_rate"
            )
        self._window.clear()
        return collapsed

    def _chosen(self, many: int) -> npt.NDArray[np.int64]:
        if len(self._queue) < many:
            enough = max(many, len(self.labels))
            self._queue.extend(order(self.labels, self._rng, enough, self.config.balance).tolist())
        return np.array([self._queue.popleft() for _ in range(many)], np.int64)

    def validate(self) -> dict[str, float]:
        """Classify the images set aside; {} without any."""
        if not len(self.held_out_labels):
            return {}
        return figures(count(self.answers(self.held_out), self.held_out_labels), self.config.classes)

    def answers(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return each class's probability: float32[n, K] of uint8[n, channels, side, side]."""
        batch = 2 * self.config.batch
        parts = [self.learner.probabilities(pixels[at : at + batch]) for at in range(0, len(pixels), batch)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.config.classes)), np.float32)

    def figures(self) -> dict[str, float]:
        """Describe the phase, the masks and the classes that the site learns from."""
        counts = np.bincount(self.labels, minlength=len(self.config.classes))
        told = {f"images/{name}": float(n) for name, n in zip(self.config.classes, counts, strict=True)}
        told |= {"pretrained": float(self.learner.pretraining.over)}
        if self.config.transfer.still:
            told |= {"train/share": self.learner.staged.report.share}
        if self.config.masks:
            told |= {"masks/collapses": float(self._collapses), "masks/restarts": float(self.learner.restarts)}
        if self._sums.looked:
            told |= {"masks/kept": self._sums.kept / self._sums.looked}
        return told

    def save(self) -> None:
        """Keep networks, optimisers, the order of images and the phase. Raises OSError."""
        queue = torch.tensor(list(self._queue), dtype=torch.int64)
        state = {
            "rng": self._rng.bit_generator.state,
            "window": self._window,
            "collapses": self._collapses,
            "collapse": self._collapse,
        }
        self.learner.save(self._folder / STATE, {QUEUE: queue}, state)

    def _restore(self) -> None:
        path, rng = self._folder / STATE, np.random.default_rng(0)
        try:
            saved = self.learner.read(path)
            with fitting(path):
                queue = saved.tensors[QUEUE].tolist()
                rng.bit_generator.state = saved.caller["rng"]
                window = [float(share) for share in saved.caller["window"]]
                collapses, collapse = int(saved.caller["collapses"]), str(saved.caller["collapse"])
                places = deque(int(place) for place in queue if 0 <= place < len(self.labels))  # images may have gone
        except (OSError, CairnError):
            return  # a new run, or a state of another one: begin anew
        self.learner.take(saved)
        self._rng, self._queue, self._window = rng, places, window
        self._collapses, self._collapse = collapses, collapse


def first_weights(config: ApgaConfig, seed: int) -> Weights:
    """Return what a run begins with: pretrained where the config names local files. Raises ConfigError."""
    built = networks(config, seed)
    load_pretrained(built, config)
    transfer.begin_with(built[CLASSIFIER], config.transfer, last_layer(config))
    return as_weights(built)


def remarks(config: ApgaConfig) -> tuple[str, ...]:
    """Say what a run's log is to begin with: which layers of the classifier train."""
    return transfer.remarks(networks(config, 0)[CLASSIFIER], config.transfer, last_layer(config))


def begin(config: ApgaConfig, place: Place) -> ApgaPractice:
    """Begin or go on with a run at a site. Raises ConfigError, ImageError."""
    sources = read_labelled(place.table("labelled"), Path.cwd())
    labelled = load_labelled(sources, config.classes, config.validation_share, groups=config.groups, shots=config.shots)
    target = _target(sources, config)
    return ApgaPractice(labelled, config, place.seed, place.device, place.folder, target, place.processes)


def learner(config: ApgaConfig, seed: int, device: str) -> Learner:
    """Make what learns in another process of the site; the classes' weights come from the first."""
    weigh = np.ones(len(config.classes), np.float32) if config.balance == "weights" else None
    return Learner(config, seed=seed, device=device, class_weights=weigh)


def alone(config: ApgaConfig) -> str:
    """Say why a run of these settings learns in one process; "" when it need not."""
    coral = "apga with domain.coral learns in one, as that compares covariances of the whole batch"
    return coral if config.domain.coral else ""


def _target(sources: Sequence[LabelledSource], config: ApgaConfig) -> tuple[Example, ...]:
    """Find the images that a site files under the word of the other look; none where it has none."""
    if not config.domain.coral:
        return ()
    words = [source.model_copy(update={"classes": None}) for source in sources]
    try:
        return load_labelled(words, (config.domain.target,), 0.0, learning=False).train
    except ConfigError:
        return ()


APGA: Final = Algorithm(read_config, first_weights, begin, merge, remarks, learner, alone)
