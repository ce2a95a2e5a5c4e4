"""An APGA run's classifier for others: from an image's pixels to the probabilities of its classes."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer.apga import aiding, left_over
from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.apga_networks import CLASSIFIER, MASKER, architecture
from agent_trainer.craft import domains
from agent_trainer.exports.card import About
from agent_trainer.exports.graphs import Graph

MODEL, WITHOUT_MASKS = "model.onnx", "without_masks.onnx"


class Answers(nn.Module):  # type: ignore[misc] # torch is not followed
    """What a run answers: the classifier's probabilities, or their mean with those of the masked image.

    masker  None answers by the image alone
    """

    def __init__(self, config: ApgaConfig, classifier: nn.Module, masker: nn.Module | None) -> None:
        super().__init__()
        self.classifier, self.masker = classifier, masker
        mean, std = (torch.tensor(scale)[:, None, None] for scale in config.scale)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.look = config.domain.look
        self.register_buffer("reference", torch.from_numpy(domains.lookup(config.domain.reference).astype(np.float32)))

    def looked(self, images: Tensor) -> Tensor:
        """Bring images to the run's look, as `craft.domains.looked`: float32[…] of uint8[batch, c, side, side]."""
        flat = images.to(torch.float32).flatten(2)
        if self.look == "standardise":
            mean = flat.mean(2, keepdim=True)
            deviation = (flat - mean).square().mean(2, keepdim=True).sqrt().clamp(min=domains.FLAT)
            moved = domains.GREYS * (domains.MEAN + domains.DEVIATION * (flat - mean) / deviation)
            flat = moved.round().clamp(0, domains.GREYS - 1)
        elif self.look == "histogram":
            levels = torch.arange(domains.GREYS, device=images.device)
            below = (images.flatten(2).unsqueeze(-1) <= levels).to(torch.float32).mean(2)  # [batch, c, 256]
            before = torch.cat([torch.zeros_like(below[..., :1]), below[..., :-1]], 2)
            places = ((below + before) / 2 * domains.STEPS).round().to(torch.int64)
            flat = self.reference[places].gather(2, images.flatten(2).to(torch.int64))
        return flat.reshape(images.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, K] of uint8[batch, channels, side, side]."""
        x = (self.looked(images) / 255 - self.mean) / self.std
        probabilities = torch.softmax(self.classifier(x), 1)
        if self.masker is None:
            return probabilities
        kept = left_over(aiding(self.masker(x)))
        return (probabilities + torch.softmax(self.classifier(x * kept), 1)) / 2


def graphs(weights: Mapping[str, npt.NDArray[np.float32]], config: ApgaConfig) -> tuple[Graph, ...]:
    """Make the graph that answers as the run is measured; where that has masks, also the one without.

    Raises TrainingError for weights of other networks, Diverged for those that are not finite.
    """
    learner = Learner(config, seed=0)
    learner.load(weights)
    networks = learner.networks.to(memory_format=torch.contiguous_format)
    masker = networks[MASKER] if config.mask_at_inference else None
    found = [(MODEL, masker), *([(WITHOUT_MASKS, None)] if masker is not None else [])]
    return tuple(
        Graph(
            file,
            Answers(config, networks[CLASSIFIER], masks),
            {"images": {0: "batch"}},
            ("probabilities",),
            partial(_examples, config),
            "probability",
        )
        for file, masks in found
    )


def shape(config: ApgaConfig) -> str:
    """Describe in words all that decides which weights fit."""
    return architecture(config)


def about(config: ApgaConfig) -> About:
    """Describe the model."""
    masks = (
        f"; the mean of the image's and of what a mask keeps of it; `{WITHOUT_MASKS}` answers by the image alone"
        if config.mask_at_inference
        else ""
    )
    how = {
        "apga": "with adversarial policy-gradient augmentation",
        "none": "without augmentation",
        "cutout": "with patches cut out",
        "gradcam": "with what Grad-CAM finds cut out",
        "end-to-end": "with masks learned end to end",
    }[config.method]
    look = "" if config.domain.look == "none" else f"; bringing to one look ({config.domain.look}) is part of the graph"
    colours = "red, green and blue" if config.channels == 3 else "grey"
    return About(
        f"A classifier of whole images ({', '.join(config.classes)}), {how},",
        shape(config),
        (
            f"**Classes**: {', '.join(config.classes)}, in this order",
            f"**Input**: `images` uint8[batch, {config.channels}, {config.side}, {config.side}], {colours}, from the "
            f"whole image by averaging areas; scaling is part of the graph{look}",
            f"**Output**: `probabilities` float32[batch, {len(config.classes)}]{masks}",
        ),
        "",
        config.model_dump_json(indent=2),
    )


def _examples(config: ApgaConfig, batch: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(batch)
    return (torch.from_numpy(rng.integers(0, 256, (batch, config.channels, config.side, config.side), np.uint8)),)
