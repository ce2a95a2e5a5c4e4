"""The two networks: sizes, gradients, and pretrained weights from local files."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from safetensors.torch import save_file
from torch import nn

from agent_trainer.apga_config import ApgaConfig, read_config
from agent_trainer.apga_networks import VggUNet, load_pretrained, networks
from agent_trainer.apga_practice import first_weights
from cairn.errors import ConfigError
from tests.agent_trainer.apga_sites import tiny


def test_the_vgg_masker_gives_a_logit_a_pixel_and_its_encoder_is_a_vgg11() -> None:
    masker = VggUNet(3)
    assert masker(torch.zeros(1, 3, 64, 32)).shape == (1, 1, 64, 32)
    assert sum(p.numel() for p in masker.encoder.parameters()) == 9_220_480  # of a VGG11's convolutions
    places = [i for i, layer in enumerate(masker.encoder) if isinstance(layer, nn.Conv2d)]
    assert places == [0, 3, 6, 8, 11, 13, 16, 18]


def test_every_parameter_of_the_vgg_masker_learns() -> None:
    masker = VggUNet(1)
    masker(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in masker.parameters())


def test_the_same_seed_gives_the_same_networks_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (networks(tiny(), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["masker.model.0.conv.weight"], other["masker.model.0.conv.weight"])


def test_the_paper_s_networks_are_the_default() -> None:
    config = ApgaConfig(classes=("a", "b", "c"))
    built = networks(config, 0)
    assert isinstance(built["masker"], VggUNet)
    # DenseNet-169: 14,149,480 with 1000 classes; 3 classes take 997 · 1665 fewer
    assert sum(p.numel() for p in built["classifier"].parameters()) == 14_149_480 - 997 * 1665
    assert (config.side, config.batch, config.learning_rate) == (224, 25, 1e-4)
    assert (config.lambda_zeros, config.baseline_decay) == (0.1, 0.5)


def test_a_method_without_masks_federates_no_masker() -> None:
    assert all(name.startswith("classifier.") for name in first_weights(tiny(method="cutout"), 0))
    assert {name.split(".")[0] for name in first_weights(tiny(), 0)} == {"classifier", "masker"}


def test_missing_pretrained_weights_are_named_and_nothing_is_fetched(tmp_path: Path) -> None:
    config = tiny(classifier_weights=tmp_path / "densenet169.pth")
    with pytest.raises(
        ConfigError, match=r"classifier_weights: there is no file .*densenet169.pth; nothing is fetched"
    ):
        first_weights(config, 0)


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("no weights")
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        first_weights(tiny(masker_weights=tmp_path / "notes.pt"), 0)


def test_pretrained_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    given = networks(tiny(small_channels=(4, 4)), 0)["classifier"].state_dict()
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match=r"features\.4\.weight is of \(4, 4, 3, 3\), \(8, 4, 3, 3\) was expected"):
        first_weights(tiny(classifier_weights=tmp_path / "small.safetensors"), 0)


def test_a_classifier_of_other_classes_gives_all_but_its_last_layer(tmp_path: Path) -> None:
    given = networks(tiny(classes=("a", "b", "c")), 5)["classifier"].state_dict()
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, tmp_path / "small.safetensors")
    made = first_weights(tiny(classifier_weights=tmp_path / "small.safetensors"), 0)
    assert torch.equal(torch.tensor(made["classifier.features.0.weight"]), given["features.0.weight"])
    assert made["classifier.head.weight"].shape == (2, 8)


def test_a_densenet_with_torchvision_s_names_of_three_channels_fits_one_of_one(tmp_path: Path) -> None:
    config = tiny(classifier="densenet121", side=32)
    given = DenseNet121(spatial_dims=2, in_channels=3, out_channels=2).state_dict()
    theirs = {name.replace(".layers.", "."): t for name, t in given.items() if not name.startswith("class_layers.")}
    torch.save({f"module.{name}": tensor for name, tensor in theirs.items()}, tmp_path / "densenet121.pth")
    built = networks(config, 0)
    load_pretrained(built, config.model_copy(update={"classifier_weights": tmp_path / "densenet121.pth"}))
    made = built["classifier"].state_dict()
    name = "features.denseblock1.denselayer1.layers.conv1.weight"
    assert torch.equal(made[name], given[name])
    assert torch.equal(made["features.conv0.weight"], given["features.conv0.weight"].sum(1, keepdim=True))


def test_a_vgg11_gives_a_masker_its_encoder_and_a_ternausnet_all_of_it(tmp_path: Path) -> None:
    config = tiny(masker="vgg11-unet", side=32, channels=3)
    given = VggUNet(3)
    vgg11 = {f"features.{name}": tensor for name, tensor in given.encoder.state_dict().items()}
    for file, held, whole in (("vgg11.pth", vgg11, False), ("ternaus.pt", {"model": given.state_dict()}, True)):
        torch.save(held, tmp_path / file)
        built = networks(config, 0)
        load_pretrained(built, config.model_copy(update={"masker_weights": tmp_path / file}))
        made = built["masker"].state_dict()
        assert torch.equal(made["encoder.18.weight"], given.encoder[18].weight)
        assert torch.equal(made["final.weight"], given.final.weight) == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"side": 100, "masker": "vgg11-unet"}, "needs a multiple of 32"),
        ({"classes": ("a", "a")}, "each may be named once"),
        ({"side": 16, "method": "none", "classifier": "densenet121"}, "needs at least 32"),
        ({"small_channels": (1, 1, 1, 1, 1)}, "used up before the last"),
        ({"method": "cutout", "mask_at_inference": True}, "needs a masker"),
        ({"std": (0.0, 1.0, 1.0)}, "std over 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**settings)


def test_an_unknown_setting_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"APGA settings: lamda.*known are .*lambda_zeros"):
        read_config('{"classes": ["a", "b"], "lamda": 1}')
    assert read_config(tiny().model_dump_json()) == tiny()
