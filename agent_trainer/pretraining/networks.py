"""An encoder as the networks that follow have it, under their names, and behind it what its task alone needs."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_trainer.apga_networks import CLASSIFIER
from agent_trainer.apga_networks import networks as classifiers
from agent_trainer.config import PADDING
from agent_trainer.networks import QNetwork
from agent_trainer.pooled_conv import conv_pool_relu
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.tasks import TURNS
from agent_trainer.seeding import seeded

PRETEXT = "pretext"  # what the names of all that is thrown away begin with


class PretextNetwork(nn.Module):  # type: ignore[misc] # torch is not followed
    """Encoder, and a decoder (autoencoder, masked) or a classifier (rotation, jigsaw) of its features.

    The encoder's weights are called `classifier.features.…`, as in a run of APGA, or `convolutions.…`, as in a DQN's.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder == "dqn":
            self.convolutions = QNetwork(config.agent.run(), 4, 1).convolutions
        else:
            built = classifiers(config.classifier(), 0)[CLASSIFIER]
            self.classifier = nn.ModuleDict({"features": built.features})
        channels, side, _ = config.shape
        with torch.no_grad():
            found = self.eval().features(torch.zeros(1, channels, side, side))
        self.train()
        self.found = (int(found.shape[1]), int(found.shape[2]))  # channels, side
        if config.classifies:
            self.pretext = _chooser(config, *self.found)
        else:
            self.pretext = _decoder(self.found, channels, side, config.width)

    def features(self, x: Tensor) -> Tensor:
        """Return the encoder's maps: float[b, c, h', w'], none below 0."""
        if self.config.encoder == "dqn":
            for layer in self.convolutions:
                x = conv_pool_relu(x, layer.weight, layer.bias, PADDING)
            return x
        return functional.relu(self.classifier["features"](x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float[b, K], or an image float[b, channels, h, w]."""
        said = self.pretext(self.features(x))
        if self.config.classifies or said.shape[2:] == x.shape[2:]:
            return said
        return functional.interpolate(said, x.shape[2:], mode="bilinear", align_corners=False)


def build(config: PretrainConfig, seed: int) -> PretextNetwork:
    """Build a run's network with first weights of its own: nothing global is seeded."""
    with seeded(seed):
        network = PretextNetwork(config)
        if config.encoder == "dqn":
            fresh = QNetwork(config.agent.run(), 4, 1, seed).convolutions
            network.convolutions.load_state_dict(fresh.state_dict())
        else:
            fresh = classifiers(config.classifier(), seed)[CLASSIFIER].features
            network.classifier["features"].load_state_dict(fresh.state_dict())
    network.to(memory_format=torch.channels_last)
    return network


def architecture(config: PretrainConfig) -> str:
    """Describe in words all that decides which weights fit."""
    agent = config.agent
    parts = {
        "dqn": f" of {', '.join(map(str, agent.channels))} by {', '.join(map(str, agent.kernels))}",
        "small": f" of {', '.join(map(str, config.small_channels))} with {config.small_norm} norm",
    }
    channels, side, _ = config.shape
    choices = f", {config.permutations} orders of {config.grid**2} tiles" if config.method == "jigsaw" else ""
    return (
        f"encoder {config.encoder}{parts.get(config.encoder, '')}, {channels} channel{'s' if channels > 1 else ''} of "
        f"{side} pixels a side, {config.method}{choices}, width {config.width}"
    )


def _chooser(config: PretrainConfig, channels: int, side: int) -> nn.Module:
    """Rotation: the mean over the image, as a classifier has it. Jigsaw: where in the image something is counts."""
    if config.method == "rotation":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, TURNS))
    places = min(config.grid, side)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(places),
        nn.Flatten(),
        nn.Linear(channels * places**2, 8 * config.width),
        nn.ReLU(),
        nn.Linear(8 * config.width, config.permutations),
    )


def _decoder(found: tuple[int, int], channels: int, side: int, width: int) -> nn.Module:
    """Convolutions 3×3, each with half as many channels and before a doubling, until the side is nearly the image's.

    A small one, so that the encoder has the work.
    """
    layers: list[nn.Module] = []
    before = found[0]
    for _ in range(max(1, round(math.log2(side / found[1])))):
        after = max(width, before // 2)
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, channels, 3, padding=1))
