"""The networks by name, and weights that they begin with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import first_weights
from agent_trainer.segmentation.networks import architecture, network
from cairn.errors import ConfigError

SMALL: dict[str, Any] = {
    "classes": ("a", "b"), "modality": "mr", "network": "unet", "width": 4, "depth": 2, "blocks": 0,
    "patch": (16, 16, 16),
}  # fmt: skip


def config(**change: Any) -> SegmentationConfig:
    return SegmentationConfig(**{**SMALL, **change})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"blocks": 2, "depth": 3},
        {"norm": "batch"},
        {"norm": "group", "width": 8},
        {"network": "segresnet", "blocks": 1, "width": 8},
        {"network": "segresnet", "blocks": 1, "width": 8, "norm": "group", "dropout": 0.2},
    ],
)
def test_each_network_answers_with_a_logit_a_class_and_voxel(change: dict[str, Any]) -> None:
    made = network(config(**change), 0)
    assert made(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 3, 16, 16, 16)
    sizes = {key: change.get(key, SMALL[key]) for key in ("network", "width", "depth")}
    assert all(str(value) in architecture(config(**change)) for value in sizes.values())


def test_the_papers_network_has_no_pyramid_pooling_and_begins_with_a_resnets_encoder(tmp_path: Path) -> None:
    ahnet = config(network="ahnet", patch=(32, 32, 64))
    own = network(ahnet, 0)
    assert not list(own.psp.parameters())
    state = {  # of a ResNet-50: the third axis is taken off AHNet's own layers
        name.replace("bn0.", "bn1.").replace(".downsample.2.", ".downsample.1."): torch.rand(
            t.shape[:-1] if t.ndim == 5 else t.shape
        )
        for name, t in own.state_dict().items()
        if name.startswith(("layer", "bn0."))
    }
    state["conv1.weight"] = torch.rand(64, 3, 7, 7)
    torch.save(state, tmp_path / "resnet50.pth")
    begun = first_weights(config(network="ahnet", patch=(32, 32, 64), weights=tmp_path / "resnet50.pth"), 0)
    np.testing.assert_array_equal(begun["conv1.weight"][:, 0, ..., 2], state["conv1.weight"][:, 2])
    np.testing.assert_array_equal(begun["layer2.0.conv2.weight"][..., 0], state["layer2.0.conv2.weight"])
    np.testing.assert_array_equal(begun["layer3.0.downsample.2.weight"], state["layer3.0.downsample.1.weight"])
    np.testing.assert_array_equal(begun["final.conv.weight"], own.state_dict()["final.conv.weight"])


def test_fine_tuning_begins_with_a_checkpoint_and_a_new_last_layer_for_other_classes(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in first_weights(config(), 1).items()}, file)
    same = first_weights(config(weights=file), 2)
    assert all((array == first_weights(config(), 1)[name]).all() for name, array in same.items())
    others = first_weights(config(weights=file, classes=("a", "b", "c", "d")), 2)
    taken = [name for name, array in others.items() if array.shape == same[name].shape and (array == same[name]).all()]
    assert {name for name in others if name not in taken} == {name for name in others if name.startswith("model.2.")}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in first_weights(config(), 1).items()}, file)
    with pytest.raises(ConfigError, match=r"weights: run\.safetensors is of another network: .* of unet of 2 levels"):
        first_weights(config(weights=file, width=8), 0)
    with pytest.raises(ConfigError, match="weights: there is no file"):
        first_weights(config(weights=tmp_path / "gone.pth"), 0)
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        first_weights(config(weights=tmp_path / "x.pth"), 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch": (20, 16, 15)}, "patch is 20 × 16 × 15; unet needs multiples of 2 for each side"),
        ({"network": "ahnet", "patch": (48, 96, 96)}, "ahnet needs multiples of 32"),
        ({"network": "ahnet", "patch": (32, 32, 32)}, "largest side of patch is 32; ahnet needs at least 64"),
        ({"network": "segresnet"}, "a segresnet needs at least 1 a level"),
        ({"norm": "group", "width": 12}, "width is 12; group norm needs a multiple of 8"),
        ({"norm": "group", "blocks": 1}, "has no group norm for 3 answers; set blocks to 0"),
        ({"classes": ("a", "a")}, "each may be named once"),
        ({"classes": ()}, "at least 1 item"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"augmentation": {"flip": 2}}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(**change)


def test_the_papers_values_are_the_defaults() -> None:
    given = SegmentationConfig(classes=("spleen",), modality="ct")
    assert (given.network, given.patch, given.spacing_mm) == ("ahnet", (96, 96, 96), (1.0, 1.0, 1.0))
    assert (given.overlap, given.loss, given.learning_rate) == (0.25, "dice", 1e-4)
    assert given.augmentation.off
