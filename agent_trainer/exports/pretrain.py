"""A pre-training run's encoder for others: from an image's pixels to its features. What solved the task is left out."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer.exports.card import About
from agent_trainer.exports.graphs import Graph
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.learner import Learner
from agent_trainer.pretraining.networks import PretextNetwork, architecture

TASKS = {
    "autoencoder": "drawing images again from behind a bottleneck",
    "rotation": "telling quarter turns of images apart",
    "jigsaw": "telling apart the orders in which tiles of images were laid",
    "masked": "drawing patches of images that were hidden",
}


class Features(nn.Module):  # type: ignore[misc] # torch is not followed
    """The encoder, and the mean of its maps over an image."""

    def __init__(self, network: PretextNetwork, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, features] of uint8[batch, channels, height, width]."""
        x = (images.to(torch.float32) / 255 - self.mean) / self.std
        found: Tensor = self.network.features(x).mean((2, 3))
        return found


def graphs(weights: Mapping[str, npt.NDArray[np.float32]], config: PretrainConfig) -> tuple[Graph, ...]:
    """Make the graph of the encoder: images uint8[batch, channels, h, w] → features float32[batch, c].

    Raises TrainingError for weights of another network, Diverged for those that are not finite.
    """
    learner = Learner(config, seed=0)
    learner.load(weights)
    network = learner.network.to(memory_format=torch.contiguous_format).eval()
    module = Features(network, *learner.scale)
    return (
        Graph("model.onnx", module, {"images": {0: "batch"}}, ("features",), partial(_examples, config), "feature"),
    )


def shape(config: PretrainConfig) -> str:
    """Describe in words all that decides which weights fit."""
    return architecture(config)


def about(config: PretrainConfig) -> About:
    """Describe the encoder."""
    channels, height, width = config.shape
    follows = "a DQN" if config.encoder == "dqn" else f"APGA with the classifier {config.encoder}"
    return About(
        f"An encoder that learned from images without labels, by {TASKS[config.method]},",
        shape(config),
        (
            f"**For**: the first weights of {follows}: `transfer.weights` of that run is `weights.safetensors`",
            f"**Input**: `images` uint8[batch, {channels}, {height}, {width}]; scaling is part of the graph",
            f"**Output**: `features` float32[batch, {Learner(config, seed=0).network.found[0]}], means over the image",
        ),
        "",
        config.model_dump_json(indent=2),
    )


def _examples(config: PretrainConfig, batch: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(batch)
    return (torch.from_numpy(rng.integers(0, 256, (batch, *config.shape), np.uint8)),)
