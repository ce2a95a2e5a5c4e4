"""Training by `AttentionPractice`, as a site does, beside a plain torch loop of the same networks on the same images.

Both take turns, and each one's best turn counts; a second is one of the processor's, on one thread. The plain loop is
what one would write for this alone: images and their small copies in memory, patches by slices, the paper's losses,
torch's own Adam; no checks, no clipping, no prior, no class weights, nothing to save. Neither augments.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from agent_trainer.algorithms import Place, Practice
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_practice import ATTENTION
from agent_trainer.attention_views import map_shape
from agent_trainer.labelled.needles import WORDS, needle_examples
from agent_trainer.labelled.settings import Needles
from benchmarks.attention_tasks import NEEDLE, loaded

Line = dict[str, Any]

IMAGES, TURNS = 24, 3
PLAIN: dict[str, Any] = {"flips": False, "contrast": 0.0, "zoom": 1.0, "prior": "none", "validation_share": 0.0}
SIZES: dict[str, dict[str, Any]] = {"needle": {**NEEDLE, **PLAIN}, "paper": PLAIN}
SEED = 0


def speed(updates: int, sizes: tuple[str, ...] = ("needle",)) -> Iterator[Line]:
    """Measure updates a second of both."""
    torch.set_num_threads(1)
    for size in sizes:
        config = AttentionConfig(classes=WORDS, **SIZES[size])
        with tempfile.TemporaryDirectory() as folder:
            table = {"kind": "needles", "images": IMAGES, "folder": folder}
            place = Place({"labelled": [table]}, SEED, "cpu", Path(folder) / "run")
            practice = ATTENTION.begin(config, place)
            other = PlainLoop(config, Needles(images=IMAGES, folder=Path(folder)))
            mine, theirs = best(partial(train, practice, updates), partial(other.train, updates), updates)
        yield {
            "name": f"attention/speed/{size}",
            "value": round(mine, 3),
            "unit": "updates/s",
            "ratio": round(mine / theirs, 3),
            "against": f"a plain torch loop {theirs:.3f} updates/s",
            "updates": updates,
        }


class PlainLoop:
    """Paper 4 written straight down."""

    def __init__(self, config: AttentionConfig, settings: Needles) -> None:
        self.config, self.networks = config, Networks(config, SEED)
        made = needle_examples(settings)
        bigs = [loaded(one.path) for one in made]
        shape = map_shape(config, settings.size, settings.size)
        self.low = torch.from_numpy(np.stack([big.reduced(*shape) for big in bigs])).float() / 255
        whole = [big.patches(np.zeros((1, 2), np.int64), settings.size)[0] for big in bigs]
        self.images = torch.from_numpy(np.stack(whole))
        self.labels = torch.tensor([WORDS.index(one.word) for one in made])
        self.adam = torch.optim.Adam(self.networks.parameters(), config.learning_rate)
        self.generator = torch.Generator().manual_seed(SEED)
        self.networks.train()

    def train(self, updates: int) -> None:
        """Make so many steps."""
        c, side = self.config, self.config.patch
        (height, width), limit = self.low.shape[2:], self.images.shape[2] - side
        cell = self.images.shape[2] / height
        for _ in range(updates):
            chosen = torch.randint(len(self.images), (c.batch,), generator=self.generator)
            y = self.labels[chosen]
            log_a = functional.log_softmax(self.networks.attention(self.low[chosen]), dim=-1)
            cells = torch.multinomial(
                log_a.detach().exp(), c.replicas * c.patches, replacement=True, generator=self.generator
            )
            tops = (((cells // width + 0.5) * cell - side / 2).round().long().clamp(0, limit)).tolist()
            lefts = (((cells % width + 0.5) * cell - side / 2).round().long().clamp(0, limit)).tolist()
            patches = torch.stack(
                [
                    self.images[image, :, top : top + side, left : left + side]
                    for image, rows, columns in zip(chosen.tolist(), tops, lefts, strict=True)
                    for top, left in zip(rows, columns, strict=True)
                ]
            )
            shape = (c.batch, c.replicas, c.patches)
            votes = functional.normalize(self.networks.classifier(patches.float() / 255), dim=-1).view(*shape, -1)
            drawn = log_a.gather(1, cells).view(shape)
            a = drawn.detach().exp()
            expected = (a / a.sum(-1, keepdim=True))[..., None].mul(votes).sum(2)
            target = y[:, None].expand(shape[:2]).reshape(-1)
            loss = functional.cross_entropy(expected.flatten(0, 1), target)
            reward = votes.detach().softmax(-1).gather(-1, y[:, None, None, None].expand(*shape, 1))[..., 0]
            gain = (reward - reward.mean()) / (reward.std() + 1e-6)
            loss = loss - (drawn * gain).mean(-1).mean() + c.entropy * (log_a.exp() * log_a).sum(-1).mean()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()


def train(practice: Practice, updates: int) -> None:
    """Make so many steps as a site does."""
    for _ in practice.train(updates):
        pass


def best(ours: Callable[[], None], theirs: Callable[[], None], items: int) -> tuple[float, float]:
    """Return the best items a second of both, taking turns; a first turn of each warms up."""
    rates = [0.0, 0.0]
    for turn in range(TURNS + 1):
        for which, work in enumerate((ours, theirs)):
            began = time.process_time()
            work()
            if turn:
                rates[which] = max(rates[which], items / (time.process_time() - began))
    return rates[0], rates[1]
