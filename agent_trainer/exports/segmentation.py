"""A segmentation run's network for others: one graph, from a window of a volume to the probability of each class."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer.exports.card import About
from agent_trainer.exports.graphs import Graph
from agent_trainer.module_weights import put_weights
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.networks import architecture, network

FILE = "segmentation.onnx"


class Outlined(nn.Module):  # type: ignore[misc] # torch is not followed
    """The network and the softmax behind it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, window: Tensor) -> Tensor:
        """Return float32[batch, K + 1, x, y, z], sums 1, of float32[batch, 1, x, y, z] in [0, 1]."""
        return torch.softmax(self.inner(window), 1)


def graphs(weights: Mapping[str, npt.NDArray[np.float32]], config: SegmentationConfig) -> tuple[Graph, ...]:
    """Make the graph. Raises TrainingError for weights of another network, Diverged for those that are not finite."""
    built = network(config, 0)
    put_weights(built, weights, architecture(config))
    built.requires_grad_(requires_grad=False).eval()
    return (
        Graph(
            FILE,
            Outlined(built),
            {"window": {0: "batch"}},
            ("probabilities",),
            partial(_windows, config),
            "probability",
        ),
    )


def shape(config: SegmentationConfig) -> str:
    """Describe in words all that decides which weights fit."""
    return architecture(config)


def about(config: SegmentationConfig) -> About:
    """Describe the model."""
    sides = ", ".join(map(str, config.patch))
    spacing = " × ".join(f"{step:g}" for step in config.spacing_mm)
    values = (
        "-1000 to 1000 HU become 0 to 1"
        if config.modality == "ct"
        else "the 5th to the 95th percentile of the volume's voxels become 0 to 1"
    )
    return About(
        f"A network that outlines {', '.join(config.classes)} in {config.modality.upper()} volumes,",
        shape(config),
        (
            f"**Classes**: 0 the background, then {', '.join(config.classes)}, in this order",
            f"**Input**: `window` float32[batch, 1, {sides}], cut from a volume whose axes point to the right, to the "
            f"front and up (RAS), resampled to {spacing} mm; {values}, and what lies beyond is cut",
            f"**Output**: `probabilities` float32[batch, {len(config.classes) + 1}, {sides}], sums 1",
            f"**A whole volume**: move the window over it, each place overlapping the next by {config.overlap:.0%} of "
            "a side, and take the mean where several see a voxel; fill a smaller one up with 0",
        ),
        "",
        config.model_dump_json(indent=2),
    )


def _windows(config: SegmentationConfig, batch: int) -> tuple[Tensor, ...]:
    values = np.random.default_rng(batch).random((batch, 1, *config.patch), np.float32)
    return (torch.from_numpy(values),)
