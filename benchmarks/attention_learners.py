"""What attention sampling is measured against: random patches, the whole image small, and the whole image as it is.

All have the paper's feature network, the same optimiser and the same augmentation (flips). Of random patches there are
as many, of the same size, and each vote counts the same; the whole images are one patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_learner import AttentionLearner
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_practice import covered, look
from agent_trainer.attention_views import View, draw_change, map_shape, rarity
from agent_trainer.patches import Big
from benchmarks.attention_tasks import Sample

Pixels: TypeAlias = npt.NDArray[np.uint8]
Corners: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answer:
    """What a learner says of an image.

    probabilities  float32[K]
    corners        int64[P, 2] of the patches looked at; None for whole images
    pixels         that the networks see, those of a small copy of the image too
    """

    probabilities: npt.NDArray[np.float32]
    corners: Corners | None
    pixels: int


class Learner(Protocol):
    """One way to learn."""

    def update(self, samples: Sequence[Sample], places: Sequence[int]) -> None:
        """Make one optimiser step on some of the images."""

    def answer(self, image: Big) -> Answer:
        """Classify an image; what it does here is what its prediction costs."""

    @property
    def networks(self) -> nn.Module:
        """All that is learned."""


class Attention:
    """Attention sampling as a site trains it, without the rounds."""

    def __init__(self, config: AttentionConfig, seed: int) -> None:
        self.config = config
        self._learner = AttentionLearner(config, seed=seed)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._views: dict[int, View] = {}

    @property
    def networks(self) -> nn.Module:
        """Both networks."""
        return self._learner.networks

    def update(self, samples: Sequence[Sample], places: Sequence[int]) -> None:
        """Make one step; the small images are made once."""
        for place in places:
            if place not in self._views:
                self._views[place] = self._view(samples[place].image)
        views = [replace(self._views[place], change=draw_change(self.config, self._rng)) for place in places]
        self._learner.update(views, np.array([samples[place].label for place in places], np.int64))

    def _view(self, image: Big) -> View:
        low = image.reduced(*map_shape(self.config, image.height, image.width))
        return View(image, low, None if self.config.prior == "none" else rarity(low))

    def answer(self, image: Big) -> Answer:
        """Draw patches once and take their votes, as a site does."""
        networks = self._learner.networks
        found = look(networks, image, seed=self._seed)
        pixels = covered(found.corners, self.config.patch) + found.map.size
        return Answer(found.probabilities, found.corners, pixels)


class Features:
    """The feature network alone, of images or of patches anywhere in them.

    side  of the image it sees; 0: as it is; None: random patches
    """

    def __init__(self, config: AttentionConfig, seed: int, side: int | None) -> None:
        self.config, self.side = config, side
        self._network = Networks(config, seed).classifier  # with the first weights that attention sampling's has
        self._adam = torch.optim.Adam(self._network.parameters(), config.learning_rate, fused=True)
        self._rng = np.random.default_rng(seed)
        self._small: dict[int, Pixels] = {}

    @property
    def networks(self) -> nn.Module:
        """The one network."""
        return self._network

    def update(self, samples: Sequence[Sample], places: Sequence[int]) -> None:
        """Make one step; whole images go through one by one, as their activations do not fit together."""
        self._network.train()
        for place in places:
            if self.side is None:
                corners = self._corners(samples[place].image, self.config.replicas * self.config.patches)
                seen = samples[place].image.patches(corners, self.config.patch)
            else:
                if place not in self._small:
                    self._small[place] = self._whole(samples[place].image)
                seen = self._small[place]
            flips = tuple(axis for axis in (2, 3) if self._rng.integers(2))
            loss = functional.cross_entropy(
                self._logits(torch.from_numpy(seen).flip(flips)),
                torch.tensor([samples[place].label]).expand(self._sets(seen)),
            )
            (loss / len(places)).backward()
        self._adam.step()
        self._adam.zero_grad()

    def answer(self, image: Big) -> Answer:
        """Classify the whole image, or as many random patches as attention has."""
        self._network.eval()
        corners = self._corners(image, self.config.patches) if self.side is None else None
        seen = self._whole(image) if corners is None else image.patches(corners, self.config.patch)
        with torch.no_grad():
            logits = self._logits(torch.from_numpy(seen))[0]
        pixels = seen[0, 0].size if corners is None else covered(corners, self.config.patch)
        return Answer(functional.softmax(logits, -1).numpy(), corners, pixels)

    def _corners(self, image: Big, count: int) -> Corners:
        limits = [image.height - self.config.patch + 1, image.width - self.config.patch + 1]
        return self._rng.integers(0, limits, (count, 2))

    def _whole(self, image: Big) -> Pixels:
        if self.side:
            return image.reduced(self.side, self.side)[np.newaxis]
        return image.reduced(image.height, image.width)[np.newaxis]

    def _sets(self, seen: Pixels) -> int:
        return max(1, len(seen) // self.config.patches) if self.side is None else 1

    def _logits(self, seen: Tensor) -> Tensor:
        votes = self._network(seen.to(torch.float32) / 255)
        if self.side is not None:
            return votes
        sets = votes.view(-1, self.config.patches, len(self.config.classes))
        # Votes of length 1, as attention's, so that one patch's does not drown the others'.
        return functional.normalize(sets, dim=-1).mean(1)


SMALL = 224  # pixels a side of the small image, as classifiers have it
LEARNERS = ("attention", "no_prior", "prior_alone", "random", "small", "whole")


def learner(name: str, config: AttentionConfig, seed: int) -> Learner:
    """Make a learner.

    attention        by the task's settings
    no_prior         the same without the prior: attention begins alike everywhere, as in the paper
    prior_alone      patches drawn by the prior, by nothing that is learned
    random           patches from anywhere
    small, whole     the image at SMALL x SMALL pixels, and as it is
    """
    match name:
        case "attention":
            return Attention(config, seed)
        case "no_prior":
            return Attention(config.model_copy(update={"prior": "none"}), seed)
        case "prior_alone":
            return Attention(config.model_copy(update={"train_attention": False}), seed)
        case "random":
            return Features(config, seed, None)
        case "small":
            return Features(config, seed, SMALL)
        case "whole":
            return Features(config, seed, 0)
        case other:
            raise ValueError(f"there is no learner {other}; there are {', '.join(LEARNERS)}")
