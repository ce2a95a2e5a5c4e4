"""The two networks of APGA: a classifier, by MONAI or small, and a masker, a U-Net with a VGG11's encoder or small."""

import math
from typing import Final

import torch
from torch import Tensor, nn

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.craft.weight_files import read_tensors
from agent_trainer.seeding import seeded
from cairn.errors import ConfigError

CLASSIFIER, MASKER = "classifier", "masker"
HEADS: Final = ("class_layers.out.", "head.")  # a classifier's last layer, of MONAI's and of the small one
GROUPS = 4  # of group norm, where the width allows it
FILTERS = 32  # of the decoder's narrowest layer; TernausNet
VGG11 = (64, 128, (256, 256), (512, 512), (512, 512))  # convolutions of a VGG11, a pool behind each group


def networks(config: ApgaConfig, seed: int) -> nn.ModuleDict:
    """Build the networks of a run with first weights of their own: nothing global is seeded."""
    with seeded(seed):
        built = {CLASSIFIER: _classifier(config)}
        if config.masks:
            built[MASKER] = _masker(config)
    for layer in built[CLASSIFIER].modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None if config.norm_momentum == "cumulative" else config.norm_momentum
    return nn.ModuleDict(built).to(memory_format=torch.channels_last)


def architecture(config: ApgaConfig) -> str:
    """Describe in words all that decides which weights fit."""
    sizes = (
        f" of {', '.join(map(str, config.small_channels))} with {config.small_norm} norm"
        if config.classifier == "small"
        else ""
    )
    masker = f", masker {config.masker}" if config.masks else ""
    return (
        f"classifier {config.classifier}{sizes}{masker}, {config.channels} channel"
        f"{'s' if config.channels > 1 else ''}, {len(config.classes)} classes"
    )


def grad_cam_layer(config: ApgaConfig) -> str:
    """Name the classifier's layer that Grad-CAM looks at: the last with a place in the image."""
    return "features" if config.classifier == "small" else "class_layers.relu"


def last_layer(config: ApgaConfig) -> tuple[str, ...]:
    """Name the classifier's layer that answers, which other classes need anew."""
    return ("head",) if config.classifier == "small" else ("class_layers.out",)


def described(classifier: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the classifier's last layer sees, float[b, d], and what it answers, float[b, classes]."""
    if isinstance(classifier, SmallClassifier):
        features = classifier.features(x).mean((2, 3))
        return features, classifier.head(classifier.dropout(features))
    *before, last = classifier.class_layers
    features = nn.Sequential(*before)(classifier.features(x))
    return features, last(features)


def _classifier(config: ApgaConfig) -> nn.Module:
    if config.classifier == "small":
        return SmallClassifier(
            config.channels, config.small_channels, len(config.classes), config.small_norm, config.dropout
        )
    from monai.networks.nets.densenet import DenseNet121, DenseNet169  # noqa: PLC0415 - takes seconds

    network = DenseNet169 if config.classifier == "densenet169" else DenseNet121
    built: nn.Module = network(
        spatial_dims=2, in_channels=config.channels, out_channels=len(config.classes), dropout_prob=config.dropout
    )
    return built


def _masker(config: ApgaConfig) -> nn.Module:
    if config.masker == "vgg11-unet":
        return VggUNet(config.channels)
    from monai.networks.nets.unet import UNet  # noqa: PLC0415 - takes seconds

    return UNet(
        spatial_dims=2,
        in_channels=config.channels,
        out_channels=1,
        channels=(8, 16, 32),
        strides=(2, 2),
        norm="instance",
    )


class SmallClassifier(nn.Module):  # type: ignore[misc] # torch is not followed
    """Convolutions 3×3 with a norm, ReLU and max-pool, then the mean over the image and one linear layer.

    channels  of the images
    widths    of the convolutions
    norm      "batch" or "group"
    dropout   share of the numbers before the last layer that learning leaves out
    """

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int, norm: str, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in widths:
            convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
            steady = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(GROUPS, width), width)
            layers += [convolution, steady, nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: float[b, channels, h, w] → float[b, classes]."""
        answers: Tensor = self.head(self.dropout(self.features(x).mean((2, 3))))
        return answers


class VggUNet(nn.Module):  # type: ignore[misc] # torch is not followed
    """U-Net whose encoder is that of a VGG11 (TernausNet: Iglovikov & Shvets 2018, figure 1).

    Its layers carry TernausNet's names, and the encoder's places are a VGG11's, so that weights of either fit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for group in VGG11:
            for width in group if isinstance(group, tuple) else (group,):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.encoder = nn.Sequential(*layers)
        self.center = _Up(512, 16 * FILTERS, 8 * FILTERS)
        self.dec5 = _Up(512 + 8 * FILTERS, 16 * FILTERS, 8 * FILTERS)
        self.dec4 = _Up(512 + 8 * FILTERS, 16 * FILTERS, 4 * FILTERS)
        self.dec3 = _Up(256 + 4 * FILTERS, 8 * FILTERS, 2 * FILTERS)
        self.dec2 = _Up(128 + 2 * FILTERS, 4 * FILTERS, FILTERS)
        self.dec1 = _Conv(64 + FILTERS, FILTERS)
        self.final = nn.Conv2d(FILTERS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: float[b, channels, h, w] → float[b, 1, h, w]; both sides multiples of 32."""
        across: list[Tensor] = []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                across.append(x)
            x = layer(x)
        x = self.center(x)
        for up in (self.dec5, self.dec4, self.dec3, self.dec2, self.dec1):
            x = up(torch.cat([x, across.pop()], 1))
        logits: Tensor = self.final(x)
        return logits


class _Conv(nn.Module):  # type: ignore[misc] # torch is not followed
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.relu(self.conv(x))
        return found


class _Up(nn.Module):  # type: ignore[misc] # torch is not followed
    """A convolution, and one that doubles height and width."""

    def __init__(self, before: int, middle: int, width: int) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(middle, width, 3, stride=2, padding=1, output_padding=1)
        self.block = nn.Sequential(_Conv(before, middle), up, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(x)
        return found


def load_pretrained(built: nn.ModuleDict, config: ApgaConfig) -> None:
    """Put the weights of local files into the networks; nothing is ever fetched.

    A classifier's last layer stays as it is when the file's is of other classes; of a masker a file may hold the
    encoder alone. An image of one channel takes the sum over the file's three.
    Raises ConfigError when a file is not there, cannot be read, or is of another network.
    """
    for name, path in ((CLASSIFIER, config.classifier_weights), (MASKER, config.masker_weights)):
        if path is not None and name in built:
            _put(
                built[name],
                read_tensors(path, f"{name}_weights"),
                f"{name}_weights: {path.name}",
                masker=name == MASKER,
            )


def _put(network: nn.Module, found: dict[str, Tensor], what: str, *, masker: bool) -> None:
    expected = network.state_dict()
    if masker and not any(name.startswith("encoder.") for name in found):  # a VGG11 calls its encoder "features"
        found = {
            name.replace("features.", "encoder.", 1): t for name, t in found.items() if name.startswith("features.")
        }
        expected = {name: tensor for name, tensor in expected.items() if name.startswith("encoder.")}
    for name, tensor in expected.items():
        given = found.get(name)
        if given is not None and given.ndim == 4 and given.shape[1] == 3 and tensor.shape[1] == 1:
            given = given.sum(1, keepdim=True)
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
        elif not name.startswith(HEADS) and not name.endswith("num_batches_tracked"):
            is_what = "not there" if given is None else f"of {tuple(given.shape)}"
            raise ConfigError(f"{what} is of another network: {name} is {is_what}, {tuple(tensor.shape)} was expected")
