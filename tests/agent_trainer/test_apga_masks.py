"""Masks that no policy makes."""

import numpy as np
import torch
from torch import nn

from agent_trainer.apga_networks import grad_cam_layer, networks
from agent_trainer.masks import GradCamMasks, cutout
from tests.agent_trainer.apga_sites import tiny


def test_a_cut_out_patch_is_one_rectangle_no_larger_than_asked_for() -> None:
    kept = cutout(200, 16, 0.5, np.random.default_rng(0))
    assert kept.shape == (200, 1, 16, 16)
    sizes = set()
    for hole in ~kept[:, 0].numpy():
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) > 0
        assert rows[-1] - rows[0] + 1 == len(rows) <= 8
        assert columns[-1] - columns[0] + 1 == len(columns) <= 8
        sizes.add((len(rows), len(columns)))
    assert len(sizes) > 30, "patches are of random size"


def test_the_same_draws_cut_the_same_patches() -> None:
    assert torch.equal(cutout(5, 16, 0.5, np.random.default_rng(1)), cutout(5, 16, 0.5, np.random.default_rng(1)))


class TwoSpots(nn.Module):
    """Sees the left half for class 0 and the right half for class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight[:] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.features(x)
        return torch.stack([seen[:, 0, :, :4].mean((1, 2)), seen[:, 1, :, 4:].mean((1, 2))], 1)


def test_grad_cam_keeps_the_pixels_that_speak_for_the_predicted_class() -> None:
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 2:4, 1:3] = 1  # class 0, in the left half
    x[1, 0, 5:7, 5:7] = 1  # class 1, in the right half
    kept = GradCamMasks(TwoSpots(), "features")(x)
    assert torch.equal(kept, x > 0.5)


def test_grad_cam_of_a_batch_is_grad_cam_of_each_image() -> None:
    config = tiny()
    classifier = networks(config, 0)["classifier"]
    x = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = GradCamMasks(classifier, grad_cam_layer(config))
    together, alone = masks(x), torch.cat([masks(x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(together, alone)
    assert 0 < together.float().mean() < 1


def test_an_image_in_which_nothing_speaks_for_its_class_is_kept_whole() -> None:
    assert bool(GradCamMasks(TwoSpots(), "features")(torch.zeros(1, 1, 8, 8)).all())
