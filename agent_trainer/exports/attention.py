"""An attention run's networks for others: one says where to look, the other what the patches seen there are of.

They are two graphs, as between them lies the cutting of patches from an image that no memory holds.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import LEVELS, Networks, architecture
from agent_trainer.estimators import expectation
from agent_trainer.exports.card import About
from agent_trainer.exports.graphs import Graph

WHERE, WHAT = "attention.onnx", "classifier.onnx"
MAP = (20, 28)  # rows and columns of the map that the graph is tried with


class Where(nn.Module):  # type: ignore[misc] # torch is not followed
    """The attention: a = softmax(logits / temperature) over the map."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.attention, self.temperature = networks.attention, networks.config.temperature

    def forward(self, reduced: Tensor) -> Tensor:
        """Return float32[batch, rows, columns], sums 1, of uint8[batch, channels, rows, columns]."""
        logits = self.attention(reduced.to(torch.float32) / LEVELS) / self.temperature
        rows, columns = reduced.shape[2:]
        return torch.softmax(logits, 1).unflatten(1, (rows, columns))


class What(nn.Module):  # type: ignore[misc] # torch is not followed
    """The classifier of patches, and equation (1): softmax(Σ_k w_k·f(patch_k))."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, patches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32[batch, K] and votes float32[batch, patches, K].

        patches  uint8[batch, patches, channels, side, side]
        weights  float32[batch, patches]
        """
        votes = self.networks.votes(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return torch.softmax(expectation(weights, votes), -1), votes


def graphs(weights: Mapping[str, npt.NDArray[np.float32]], config: AttentionConfig) -> tuple[Graph, ...]:
    """Make both graphs. Raises TrainingError for weights of other networks, Diverged for those that are not finite."""
    networks = Networks(config)
    networks.load(weights)
    networks.requires_grad_(requires_grad=False).eval()
    return (
        Graph(
            WHERE,
            Where(networks),
            {"reduced": {0: "batch", 2: "rows", 3: "columns"}},
            ("attention",),
            partial(_maps, config),
            "attention",
        ),
        Graph(
            WHAT,
            What(networks),
            {"patches": {0: "batch", 1: "patches"}, "weights": {0: "batch", 1: "patches"}},
            ("probabilities", "votes"),
            partial(_patches, config),
            "probability",
        ),
    )


def shape(config: AttentionConfig) -> str:
    """Describe in words all that decides which weights fit."""
    return architecture(config)


def about(config: AttentionConfig) -> About:
    """Describe the model."""
    colours = "red, green and blue" if config.channels == 3 else "grey"
    return About(
        f"A classifier of images of any size ({', '.join(config.classes)}) that looks at {config.patches} patches of "
        "each where its attention is high,",
        shape(config),
        (
            f"**Classes**: {', '.join(config.classes)}, in this order",
            f"**Where to look**, `{WHERE}`: `reduced` uint8[batch, {config.channels}, rows, columns], {colours}, the "
            f"image with {config.reduction} × {config.reduction} pixels averaged into one, more where a side would "
            f"pass {config.map_side}; `attention` float32[batch, rows, columns] sums to 1",
            f"**What is there**, `{WHAT}`: `patches` uint8[batch, patches, {config.channels}, {config.patch}, "
            f"{config.patch}], cut from the full image about cells drawn by the attention; `weights` float32[batch, "
            f"patches], {_weighing(config)}; `probabilities` float32[batch, {len(config.classes)}] and each patch's "
            "`votes`",
            *_more(config),
        ),
        "",
        config.model_dump_json(indent=2),
    )


def _weighing(config: AttentionConfig) -> str:
    """Say what a patch weighs, for draws by the attention a itself."""
    if config.sampling == "without":
        return "a_k·(P - k) + 1 - Σ a_j over the earlier j, divided by P, with k from 1, as drawn without replacement"
    drawn = "one after another" if config.sampling == "conditional" else "with replacement"
    return f"{'1 / P' if config.estimate == 'unbiased' else 'a_k / Σ a_j'} each, as drawn {drawn}"


def _more(config: AttentionConfig) -> list[str]:
    lines = []
    if config.sampling == "conditional":
        lines.append("**Not in the graphs**: the policy that draws a patch by those seen before; it is in the weights")
    if config.prior != "none":
        lines.append(f"**Not in the graphs**: the prior of where to look ({config.prior}, {config.prior_of})")
    return lines


def _maps(config: AttentionConfig, batch: int) -> tuple[Tensor, ...]:
    rows, columns = (side + batch for side in MAP)
    return (_pixels(batch, config.channels, rows, columns),)


def _patches(config: AttentionConfig, batch: int) -> tuple[Tensor, ...]:
    number = config.patches + batch
    weights = torch.from_numpy(np.random.default_rng(batch).dirichlet(np.ones(number), batch).astype(np.float32))
    return _pixels(batch, number, config.channels, config.patch, config.patch), weights


def _pixels(*sides: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(sides)).integers(0, 256, sides, np.uint8))
