"""The networks that segment: AHNet, U-Net and SegResNet of MONAI, with weights of local files."""

from collections.abc import Mapping

from torch import Tensor, nn

from agent_trainer.craft.weight_files import read_tensors
from agent_trainer.seeding import seeded
from agent_trainer.segmentation.config import SegmentationConfig
from cairn.errors import ConfigError

HEADS = {  # the last layers, of which a file may have others, for other classes; all else must fit
    "ahnet": ("final.conv.", "final.up."),
    "unet": ("model.2.",),
    "segresnet": ("conv_final.2.",),
}
RESNET = ("layer1.0.conv1.weight", "layer4.2.bn3.weight")  # that a ResNet-50 as torchvision names it has


def network(config: SegmentationConfig, seed: int) -> nn.Module:
    """Build a run's network with first weights of its own: nothing global is seeded.

    It gives logits float[b, K + 1, x, y, z] of float[b, 1, x, y, z], sides multiples of `config.step`.
    """
    with seeded(seed):
        return _built(config)


def _built(config: SegmentationConfig) -> nn.Module:
    outputs, levels = len(config.classes) + 1, config.depth
    norms: dict[str, dict[str, int | bool]] = {
        "instance": {"affine": True},
        "batch": {},
        "group": {"num_groups": config.groups},
    }
    norm = config.norm, norms[config.norm]
    built: nn.Module
    match config.network:
        case "ahnet":
            from monai.networks.nets.ahnet import AHNet  # noqa: PLC0415 - takes seconds

            built = AHNet(spatial_dims=3, in_channels=1, out_channels=outputs, psp_block_num=0)
        case "unet":
            from monai.networks.nets.unet import UNet  # noqa: PLC0415

            built = UNet(
                3,
                1,
                outputs,
                tuple(config.width * 2**level for level in range(levels)),
                (2,) * (levels - 1),
                num_res_units=config.blocks,
                norm=norm,
                dropout=config.dropout,
            )
        case "segresnet":
            from monai.networks.nets.segresnet import SegResNet  # noqa: PLC0415

            built = SegResNet(
                spatial_dims=3,
                init_filters=config.width,
                in_channels=1,
                out_channels=outputs,
                dropout_prob=config.dropout or None,
                norm=norm,
                blocks_down=(config.blocks,) * levels,
                blocks_up=(1,) * (levels - 1),
            )
    return built


def architecture(config: SegmentationConfig) -> str:
    """Describe in words all that decides which weights fit."""
    sizes = (
        ""
        if config.network == "ahnet"
        else (
            f" of {config.depth} levels from {config.width} channels, {config.blocks} residual units each, "
            f"{config.norm} norm"
        )
    )
    return f"{config.network}{sizes}, {len(config.classes)} classes and the background"


def last_layer(built: nn.Module, config: SegmentationConfig) -> tuple[str, ...]:
    """Name the layers that answer, which other classes need anew."""
    heads = (head.rstrip(".") for head in HEADS[config.network])
    names = [name for name, _ in built.named_parameters()]
    return tuple(head for head in heads if any(name.startswith(f"{head}.") for name in names))


def load_pretrained(built: nn.Module, config: SegmentationConfig) -> None:
    """Put the weights of a local file into the network; nothing is ever fetched.

    The last layer stays as it is when the file's is of other classes. Raises ConfigError when a file is not there,
    cannot be read, or is of another network.
    """
    if config.weights is None:
        return
    found: Mapping[str, Tensor] = read_tensors(config.weights, "weights")
    expected = built.state_dict()
    encoder_only = config.network == "ahnet" and all(name in found for name in RESNET)
    if encoder_only:
        found = _inflated(found)
    taken = 0
    for name, tensor in expected.items():
        given = found.get(name)
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
            taken += 1
        elif not name.startswith(HEADS[config.network]) and not name.endswith("num_batches_tracked"):
            if encoder_only and given is None:
                continue  # the decoder, which no ResNet has
            is_what = "not there" if given is None else f"of {tuple(given.shape)}"
            raise ConfigError(
                f"weights: {config.weights.name} is of another network: {name} is {is_what}, {tuple(tensor.shape)} was "
                f"expected, of {architecture(config)}"
            )
    if not taken:
        raise ConfigError(f"weights: {config.weights.name} has none of the weights of {architecture(config)}")


def _inflated(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a ResNet-50's convolutions a third axis and AHNet's names: Liu et al. 2018, §3.1.

    Its first convolution over three colours becomes one over three slices; the others are over one slice.
    """
    made = {}
    for name, tensor in found.items():
        if name == "conv1.weight":
            made[name] = tensor.permute(0, 2, 3, 1).unsqueeze(1)  # [64, 3, 7, 7] → [64, 1, 7, 7, 3]
        elif name.startswith("bn1."):
            made[name.replace("bn1.", "bn0.", 1)] = tensor
        elif name.startswith("layer"):
            place = name.replace(".downsample.1.", ".downsample.2.")
            made[place] = tensor.unsqueeze(-1) if tensor.ndim == 4 else tensor
    return made
