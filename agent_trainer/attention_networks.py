"""The networks of paper 4 (§VI): attention and features, and what §XI adds: another classifier, a recurrent policy."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.module_weights import as_weights, put_weights
from agent_trainer.seeding import seeded
from cairn.errors import ConfigError

LEVELS: Final = 255.0  # an image's numbers are divided by it
REACH: Final = (1.0, 2.0, 4.0, 8.0)  # cells: how far from the last patch the conditional policy tells near from far
DIALECTS: Final = (  # how MONAI's classifiers call their inputs and outputs
    ("in_channels", "out_channels"),
    ("in_channels", "num_classes"),
    ("n_input_channels", "num_classes"),
)
SUCH_AS: Final = "DenseNet121, resnet18, SEResNet50 or efficientnet-b0"
Weights = dict[str, npt.NDArray[np.float32]]


class AttentionNetwork(nn.Module):  # type: ignore[misc] # torch is not followed
    """Logits of where to look, from the image averaged into cells; 1,513 parameters as in the paper.

    Three times convolution, batch normalisation and leaky ReLU, then a linear convolution; all 3 x 3. Beyond the
    image's edge its last pixels are repeated: zeros would make the edge a thing to look at.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.leak = config.leak
        sides = (config.channels, *(config.attention_filters,) * config.attention_layers)
        self.convolutions = nn.ModuleList(_conv(i, o) for i, o in pairwise(sides))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in sides[1:])
        self.last = _conv(sides[-1], 1)

    @torch.no_grad()  # type: ignore[untyped-decorator] # torch is not followed
    def start_even(self) -> None:
        """Make the last layer's weights small: before anything is learned, no place is better than another."""
        self.last.weight.mul_(0.1)

    def features(self, low: Tensor) -> Tensor:
        """Return what is known of each cell, float[n, filters, h, w] of float[n, channels, h, w] in 0 … 1."""
        return self.together([low])[0]

    def together(self, lows: Sequence[Tensor]) -> list[Tensor]:
        """Return `features` of images of several shapes, normalised over the cells of all of them as one batch."""
        found = list(lows)
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            found = [functional.leaky_relu(x, self.leak) for x in _normalised([layer(x) for x in found], norm)]
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Return float[n, h·w] of what `features` gives."""
        return self.last(features).flatten(1)

    def forward(self, low: Tensor) -> Tensor:
        """Return the logits of each cell, float[n, h·w]."""
        return self.logits(self.features(low))


class FeatureNetwork(nn.Module):  # type: ignore[misc] # torch is not followed
    """A vote of each patch; 7,459 parameters as in the paper: four convolutions, global pooling, an affine map."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.leak, self.pooling = config.leak, config.pooling
        sides = (config.channels, *(config.filters,) * config.layers)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sides))
        self.affine = nn.Linear(config.filters, len(config.classes))

    def features(self, patches: Tensor) -> Tensor:
        """Return what the last convolution makes of patches in 0 … 1: float[n, filters, w, w]."""
        x = patches.contiguous(memory_format=torch.channels_last)
        for layer in self.convolutions:
            x = functional.leaky_relu_(layer(x), self.leak)
        return x

    def answered(self, x: Tensor) -> Tensor:
        """Return float[n, K] of features."""
        pooled = x.amax((2, 3)) if self.pooling == "max" else x.mean((2, 3))
        return self.affine(pooled)

    def forward(self, patches: Tensor) -> Tensor:
        """Return float[n, K] of patches float[n, channels, w, w] in 0 … 1; not yet of length 1."""
        return self.answered(self.features(patches))


class ConditionalPolicy(nn.Module):  # type: ignore[misc] # torch is not followed
    """q(p_k | p_1 … p_{k-1}, image), paper 4 §XI.B: what the map becomes when patches have been seen.

        logits_k(p) = logits(p) + u(h_k)·φ(p) + Σ_j c_j(h_k)·exp(-|p - p_{k-1}|² / 2ρ_j²)
        h_k = GRU((φ(p_{k-1}), f(p_{k-1}), place of p_{k-1}), h_{k-1})

    φ are the attention network's features of a cell, f the classifier's vote, ρ_j are REACH. u and c begin as zeros:
    the policy begins as the map, drawn from independently.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.cell = nn.GRUCell(config.attention_filters + len(config.classes) + 2, config.hidden)
        self.like = nn.Linear(config.hidden, config.attention_filters)
        self.near = nn.Linear(config.hidden, len(REACH))
        for layer in (self.like, self.near):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def step(self, features: Tensor, drawn: Tensor, votes: Tensor, state: Tensor | None) -> Tensor:
        """Return the new state, float[n·R, hidden], of R sets of patches of each of n images.

        features  float[n, filters, h, w]
        drawn     int64[n, R], the cells drawn last
        votes     float[n·R, K], the classifier's of the patches there
        state     float[n·R, hidden]; None at the first step
        """
        n, filters, height, width = features.shape
        there = features.flatten(2).gather(2, drawn[:, None].expand(n, filters, -1)).transpose(1, 2).flatten(0, 1)
        place = torch.stack([drawn // width / height, drawn % width / width], 2).flatten(0, 1).to(features.dtype)
        made: Tensor = self.cell(torch.cat([there, votes, place], 1), state)
        return made

    def added(self, features: Tensor, drawn: Tensor, state: Tensor) -> Tensor:
        """Return what is added to the logits, float[n, R, h·w]; as `step`, with the state that it has made.

        exp(-|p - q|² / 2ρ²) is a product over rows and columns, so that nothing larger than the sum itself is made.
        """
        n, _, height, width = features.shape
        like, near = (layer(state).view(n, drawn.shape[1], -1) for layer in (self.like, self.near))
        reach = torch.tensor(REACH, device=features.device)[:, None]

        def falling(length: int, middles: Tensor) -> Tensor:
            apart = torch.arange(length, device=features.device) - middles[..., None, None]
            return torch.exp(-apart.square() / (2 * reach.square()))  # float[n, R, len(REACH), length]

        rows, columns = falling(height, drawn // width), falling(width, drawn % width)
        around: Tensor = (near[..., None] * rows).transpose(2, 3) @ columns
        return torch.baddbmm(around.flatten(2), like, features.flatten(2))


class Networks(nn.Module):  # type: ignore[misc] # torch is not followed
    """All that a run learns: attention, classifier and, in conditional sampling, the policy."""

    def __init__(self, config: AttentionConfig, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.attention = AttentionNetwork(config)
            self.classifier = FeatureNetwork(config) if config.classifier == "paper" else monai_classifier(config)
            for layer in self.modules() if config.classifier == "paper" else self.attention.modules():
                if isinstance(layer, nn.Conv2d):  # He et al. 2015; with torch's own the votes stay alike for long
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
            self.attention.start_even()
            self.policy = ConditionalPolicy(config) if config.sampling == "conditional" else None
        self.config = config

    def votes(self, patches: Tensor, classifier: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return f of each patch, float[n, K]; of length 1 with config.normalise. patches uint8[n, channels, w, w].

        classifier  calls the network's own in another way, such as compiled
        """
        votes = (classifier or self.classifier)(patches.to(torch.float32) / LEVELS).float()
        return functional.normalize(votes, dim=-1) if self.config.normalise else votes

    def attention_parameters(self) -> dict[str, nn.Parameter]:
        """Return by name what is learned by reward."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("classifier.")}

    def weights(self) -> Weights:
        """Return a copy of everything by name, float32; statistics of batch normalisation are among it."""
        return as_weights(self)

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take weights; averaged variances below 0 become 0.

        Raises TrainingError for weights of other networks, Diverged for those that are not finite.
        """
        put_weights(self, weights, architecture(self.config))


def monai_classifier(config: AttentionConfig) -> nn.Module:
    """Make MONAI's two-dimensional classification network of that name, in place of the paper's feature network.

    Raises ConfigError for a name that MONAI does not have, or a network that does not map a patch to the classes.
    """
    from monai.networks import nets  # noqa: PLC0415  which takes seconds

    name, classes = config.classifier, len(config.classes)
    if name.startswith("efficientnet-"):
        build: Any = partial(nets.EfficientNetBN, name, pretrained=False)  # type: ignore[attr-defined]
    elif name.startswith("_") or not callable(build := getattr(nets, name, None)):
        raise ConfigError(f"MONAI has no network {name}; give one of its classifiers, such as {SUCH_AS}")
    error: Exception | None = None
    for inputs, outputs in DIALECTS:
        try:
            network: nn.Module = build(**{"spatial_dims": 2, inputs: config.channels, outputs: classes}).eval()
            with torch.no_grad():
                shape = tuple(network(torch.zeros(2, config.channels, config.patch, config.patch)).shape)
        except (TypeError, ValueError, RuntimeError, AttributeError) as failed:
            error = failed
            continue
        if shape == (2, classes):
            return network.train()
    raise ConfigError(
        f"MONAI's {name} does not map patches of {config.patch} pixels to {classes} classes; use one of {SUCH_AS}, or "
        "larger patches"
    ) from error


def architecture(config: AttentionConfig) -> str:
    """Describe in words all that decides which weights fit; two runs' fit each other if these are equal."""
    features = f"{config.layers} x {config.filters} filters" if config.classifier == "paper" else config.classifier
    policy = f", conditional with {config.hidden}" if config.sampling == "conditional" else ""
    return (
        f"{config.channels} channels, {len(config.classes)} classes, attention {config.attention_layers} x "
        f"{config.attention_filters} filters, classifier {features}{policy}"
    )


def _normalised(planes: list[Tensor], norm: nn.BatchNorm2d) -> list[Tensor]:
    """Normalise float[n, filters, h, w] of several h and w over all that is there."""
    if len(planes) == 1:
        return [norm(planes[0])]
    rows = [plane.transpose(0, 1).flatten(1) for plane in planes]
    parts = norm(torch.cat(rows, 1)[None, :, None])[0, :, 0].split([row.shape[1] for row in rows], 1)
    return [
        part.view(len(part), len(plane), *plane.shape[2:]).transpose(0, 1)
        for part, plane in zip(parts, planes, strict=True)
    ]


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")
