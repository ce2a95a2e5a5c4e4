"""What a site holds of an attention-sampling run between rounds, and what the attention looks at in one image."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from agent_trainer.algorithms import Algorithm, Place, Weights
from agent_trainer.attention_config import AttentionConfig, read_attention_config
from agent_trainer.attention_draws import draw, highest
from agent_trainer.attention_learner import AttentionLearner, Update
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_shelf import Shelf, check_size
from agent_trainer.attention_views import Changing, View, draw_change, map_shape, on_map, rarity
from agent_trainer.classification import count, figures
from agent_trainer.craft.domains import keep_own, local_names
from agent_trainer.craft.validation import merge
from agent_trainer.estimators import expectation
from agent_trainer.labelled.balance import class_weights, order
from agent_trainer.labelled.settings import read_labelled
from agent_trainer.labelled.sources import Example, Labelled, load_labelled
from agent_trainer.patches import Big
from agent_trainer.scenes.settings import LabelImages, read_sources
from agent_trainer.together import several
from cairn.errors import CairnError, ConfigError, ImageError
from cairn.figures import VALIDATION

STATE: Final = "attention.safetensors"
READ: Final = f"{VALIDATION}read"  # mean share of an image's pixels that the classifier read
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What one answer rests on.

    probabilities  float32[K]
    map            float32[h, w], the attention over the whole image (before the first patch, if conditional); sums to 1
    corners        int64[P, 2], row and column of each patch's first pixel
    weights        float32[P], of each patch's vote in eq. (1)
    votes          float32[P, K], softmax of each patch's features: what it alone would answer
    patches        uint8[P, channels, w, w]
    share_read     of the image's pixels, by the classifier; one in two patches counts once
    """

    probabilities: Floats
    map: Floats
    corners: npt.NDArray[np.int64]
    weights: Floats
    votes: Floats
    patches: npt.NDArray[np.uint8]
    share_read: float


def networks_of(config: AttentionConfig, weights: Mapping[str, Floats]) -> Networks:
    """Make networks that answer. Raises TrainingError for weights of others, Diverged for those not finite."""
    networks = Networks(config)
    networks.load(weights)
    networks.eval()
    return networks


def look(networks: Networks, image: Big, *, seed: int = 0, density: Floats | None = None) -> Look:
    """Answer what an image shows, and where that was seen.

    seed     of the draws: the same seed, the same answer
    density  float32[h, w] of any size, over the whole image: the prior of the run's tissue state. One of rare colours
             is made here
    Raises ImageError for an image smaller than a patch, or pixels that cannot be read.
    """
    config = networks.config
    check_size(config, image)
    low = image.reduced(*map_shape(config, image.height, image.width))
    prior = on_map(density, (low.shape[1], low.shape[2])) if density is not None else None
    if config.prior != "none" and config.prior_of == "rarity":
        prior = rarity(low)
    return look_at(networks, View(image, low, prior), seed)


def look_at(networks: Networks, view: View, seed: int) -> Look:
    """Do what `look` does, of a view. Raises ImageError."""
    config, training = networks.config, networks.training
    device = next(networks.parameters()).device
    networks.eval()
    with torch.inference_mode():
        if config.inference == "highest" and config.sampling != "conditional":
            drawn = highest(networks, view)
        else:
            drawn = draw(networks, [view], 1, torch.Generator(device).manual_seed(seed))
        votes = networks.votes(drawn.patches).view(*drawn.cells.shape, len(config.classes))
        weights = drawn.weights(config)
        probabilities = expectation(weights, votes)[0, 0].softmax(-1)
    networks.train(training)
    corners = view.corners(drawn.cells[0, 0].cpu().numpy(), config.patch)
    return Look(
        probabilities.cpu().numpy(),
        drawn.maps[0].view(view.shape).cpu().numpy(),
        corners,
        weights[0, 0].cpu().numpy(),
        votes[0, 0].softmax(-1).cpu().numpy(),
        drawn.patches.cpu().numpy(),
        covered(corners, config.patch) / (view.image.height * view.image.width),
    )


def covered(corners: npt.NDArray[np.int64], side: int) -> int:
    """Count the pixels that lie in at least one of some squares."""
    rows = np.unique(np.concatenate([corners[:, 0], corners[:, 0] + side]))
    columns = np.unique(np.concatenate([corners[:, 1], corners[:, 1] + side]))
    marks = np.zeros((len(rows), len(columns)), bool)
    for y, x in corners.tolist():
        marks[np.searchsorted(rows, y) : np.searchsorted(rows, y + side),
              np.searchsorted(columns, x) : np.searchsorted(columns, x + side)] = True  # fmt: skip
    return int(np.diff(rows) @ marks[:-1, :-1] @ np.diff(columns)) if len(corners) else 0


@dataclass
class Sums:
    """Sums over a round so far."""

    updates: int = 0
    loss: float = 0.0
    reward: float = 0.0
    entropy: float = 0.0
    right: float = 0.0

    def add(self, made: Update) -> None:
        """Count an update."""
        self.updates += 1
        self.loss += made.loss
        self.reward += made.reward
        self.entropy += made.entropy
        self.right += made.right

    def numbers(self) -> dict[str, float]:
        """Say them as means; entropy is that of the attention, as a share of an even one's."""
        if not self.updates:
            return {"updates": 0.0}
        sums = {"loss": self.loss, "reward": self.reward, "entropy": self.entropy, "accuracy": self.right}
        return {"updates": float(self.updates), **{name: value / self.updates for name, value in sums.items()}}


class AttentionPractice:
    """A run at this site; see `algorithms.Practice`. `train` goes on where it stopped.

    folder  for the learner's state after each round
    seed    of first weights, order, augmentation and draws
    shelf   the images
    processes  that classify the patches together; this one reads images and looks where patches are drawn
    Raises ImageError when no image to learn from is left.
    """

    def __init__(
        self,
        labelled: Labelled,
        config: AttentionConfig,
        seed: int,
        device: str,
        folder: Path,
        shelf: Shelf,
        processes: int = 1,
    ) -> None:
        self.config, self._folder, self._shelf, self._seed = config, folder, shelf, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.train_on, broken = shelf.usable(labelled.train)
        self.held_out, more = shelf.usable(labelled.validation)
        self._problems = [*labelled.problems, *broken, *more]
        self._check()
        self._rng = np.random.default_rng(seed)
        self._queue: deque[Example] = deque()
        self.learner = AttentionLearner(config, seed=seed, device=device)
        self._together = several(self.learner, "attention", config, seed, device, folder, processes)
        self._local = local_names(self.learner.networks, config.keep_local)
        self._weigh = self._class_weights()
        self._last = Sums()
        self._restore()

    @property
    def examples(self) -> int:
        """Images learned from."""
        return len(self.train_on)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on what cannot be used, and on what this machine cannot do."""
        return (*self._problems, *self.learner.remarks)

    def weights(self) -> Weights:
        """Copy all networks' weights, with the statistics of batch normalisation."""
        return self.learner.weights()

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights, but for those that stay here once they have learned here."""
        if self._local and self.learner.updates:
            weights = keep_own(weights, self.learner.weights(), self._local)
        self.learner.load(weights, proximal_mu)

    def train(self, updates: int) -> Iterator[Sums]:
        """Learn from so many batches; yields after each. An image that cannot be read is left out from then on.

        Raises Diverged, with the weights from before the batch, ImageError when no image is left, TrainingError when
        another process has ended.
        """
        self._last = sums = Sums()
        if self._together is not None:
            self._together.begin()
        while sums.updates < updates:
            batch = self._chosen()
            try:
                views = [self._changed(example) for example in batch]
                labels = np.array([example.label for example in batch], np.int64)
                sums.add(self._learn(views, labels))
            except ImageError as error:
                self._leave_out(error)
                continue
            yield sums

    def _learn(self, views: Sequence[View], labels: npt.NDArray[np.int64]) -> Update:
        learn = partial(self.learner.update, views, labels, self._weigh)
        return learn() if self._together is None else self._together.step(learn)

    def _changed(self, example: Example) -> View:
        view = self._shelf.view(example, draw_change(self.config, self._rng))
        return replace(view, image=Changing(view.image, self.config.augmentation, self._rng))

    def _chosen(self) -> list[Example]:
        labels = np.array([example.label for example in self.train_on], np.int64)
        while len(self._queue) < self.config.batch:
            many = max(self.config.batch, len(labels))
            self._queue.extend(self.train_on[i] for i in order(labels, self._rng, many, self.config.balance).tolist())
        return [self._queue.popleft() for _ in range(self.config.batch)]

    def _leave_out(self, error: ImageError) -> None:
        broken = self._shelf.broken
        kept = tuple(example for example in self.train_on if example.path not in broken)
        if len(kept) == len(self.train_on):
            raise error
        self.train_on = kept
        self._queue.clear()
        self._problems.append(str(error))
        self._check()
        self._weigh = self._class_weights()

    def _check(self) -> None:
        if not self.train_on:
            found = f"; the first: {self._problems[0]}" if self._problems else ""
            raise ImageError(f"no image to learn from can be used, expected at least one{found}")

    def _class_weights(self) -> Floats | None:
        labels = np.array([example.label for example in self.train_on], np.int64)
        return class_weights(labels, len(self.config.classes)) if self.config.balance == "weights" else None

    def validate(self) -> dict[str, float]:
        """Classify the images set aside; {} without any that can be read."""
        answers, labels, read = [], [], []
        for example in self.held_out:
            try:
                found = look_at(self.learner.networks, self._shelf.view(example), seed=0)
            except ImageError as error:
                self._problems.append(str(error))
                continue
            answers.append(found.probabilities)
            labels.append(example.label)
            read.append(found.share_read)
        self.held_out = tuple(example for example in self.held_out if example.path not in self._shelf.broken)
        if not answers:
            return {}
        told = figures(count(np.stack(answers), np.array(labels, np.int64)), self.config.classes)
        return told | ({READ: float(np.mean(read))} if told else {})

    def figures(self) -> dict[str, float]:
        """Describe λ and the classes that the site learns from."""
        labels = np.array([example.label for example in self.train_on], np.int64)
        counts = np.bincount(labels, minlength=len(self.config.classes)).tolist()
        told = {f"images/{name}": float(n) for name, n in zip(self.config.classes, counts, strict=True)}
        return told | {"attention/entropy_weight": self.config.entropy_weight(self.learner.updates)}

    def save(self) -> None:
        """Keep the learner's state. Raises OSError."""
        self.learner.save(self._folder / STATE)

    def _restore(self) -> None:
        try:
            self.learner.restore(self._folder / STATE)
        except (OSError, CairnError):
            return  # a new run, or a state of other networks: begin anew
        self._rng = np.random.default_rng([self._seed, self.learner.updates])  # not the changes drawn before


def merged(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Measure all sites' validations together; of what was read the mean over all their images."""
    found, total = merge(sites), f"{VALIDATION}n"
    told = [(site[READ], site[total]) for site in sites if 0 <= site.get(READ, -1.0) <= 1 and site.get(total, 0.0) > 0]
    images = sum(n for _, n in told)
    return found | ({READ: sum(share * n for share, n in told) / images} if found and images else {})


def first_weights(config: AttentionConfig, seed: int) -> Weights:
    """Return what a run begins with: where the config names a file, the attention in it. Raises ConfigError."""
    networks = Networks(config, seed)
    weights: Weights = networks.weights()
    if config.attention_weights is None:
        return weights
    name = config.attention_weights.name
    try:
        found = load_file(config.attention_weights)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{name} is not a model that can be read; give attention_weights a .safetensors file"
        ) from error
    for wanted in (key for key in weights if not key.startswith("classifier.")):
        shape = found[wanted].shape if wanted in found else "not there"
        if shape != weights[wanted].shape:
            raise ConfigError(
                f"{name} is not of this attention: {wanted} is {shape}, {weights[wanted].shape} was expected; give the "
                "run the channels, filters and sampling of the one that trained it"
            )
        weights[wanted] = found[wanted].astype(np.float32)
    return weights


def begin(config: AttentionConfig, place: Place) -> AttentionPractice:
    """Begin or go on with a run at a site. Raises ConfigError, ImageError."""
    sources = read_labelled(place.table("labelled"), Path.cwd())
    labelled = load_labelled(sources, config.classes, config.validation_share, groups=config.groups, shots=config.shots)
    shelf = Shelf(config, _label_folders(config, place))
    return AttentionPractice(labelled, config, place.seed, place.device, place.folder, shelf, place.processes)


def _label_folders(config: AttentionConfig, place: Place) -> list[Path]:
    """Return where the site's label images lie: the folders of its scenes of kind "labels"."""
    if config.prior == "none" or config.prior_of != "tissue":
        return []
    scenes = read_sources(place.table("scenes"), Path.cwd()) if place.sources.get("scenes") else ()
    folders = [scene.folder for scene in scenes if isinstance(scene, LabelImages)]
    if not folders:
        raise ConfigError(
            f"the run looks first where {config.prior_state} is; name the label images that a codebook made in a "
            'table training.scenes of kind "labels"'
        )
    return folders


def learner(config: AttentionConfig, seed: int, device: str) -> AttentionLearner:
    """Make what learns in another process of the site."""
    return AttentionLearner(config, seed=seed, device=device)


ATTENTION: Final = Algorithm(read_attention_config, first_weights, begin, merged, learner=learner)
