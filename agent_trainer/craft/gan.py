"""A small conditional GAN: more images of a class where there are few.

    L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y), y)),   L_G = -E D(G(z, y), y)      Lim & Ye 2017, hinge loss
    D(x, y) = φ(x)·e_y + ψ(φ(x))                                 Miyato & Koyama 2018, eq. 3: the class by projection

The generator is DCGAN-like (Radford et al. 2016): the class beside the noise, twice as large with each layer; the
discriminator is held to slopes of 1 by spectral norms (Miyato et al. 2018). With `augmentation` both the real and the
made images are augmented before the discriminator sees them, through which gradients pass (Zhao et al. 2020), so that
a small set is not learned by heart. Samples come from a moving average of the generator's weights.
"""

import copy
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_of
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from agent_trainer.craft.augmentation import Augmentation, augment
from agent_trainer.settings import Classes
from cairn.errors import ConfigError, Diverged, ImageError
from cairn.files import write_atomically

Pixels = npt.NDArray[np.uint8]
FIRST: Final = 4  # pixels a side that noise becomes
FORMAT: Final = "cairn-gan-1"


class GanConfig(BaseModel):
    """What a GAN makes and how it learns."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: Classes
    side: Literal[16, 32, 64] = 32  # pixels
    channels: Literal[1, 3] = 1
    latent: int = Field(64, ge=2, le=1024)  # numbers of noise
    width: int = Field(32, ge=4, le=256)  # channels of the largest layer; twice as many with each halving, at most 8×
    batch: int = Field(32, ge=2)
    updates: int = Field(3000, ge=1)  # of the discriminator and of the generator
    learning_rate: float = Field(2e-4, gt=0)  # the generator's: Adam with β = (0, 0.9)
    discriminator_rate: float = Field(8e-4, gt=0)  # the discriminator's, ahead of it: Heusel et al. 2017
    average: float = Field(0.995, ge=0, lt=1)  # share that the averaged generator keeps in an update
    augmentation: Augmentation = Augmentation(shift=0.5, flip=0.5, flip_axes=(1,))  # of what the discriminator sees


@dataclass(frozen=True)
class Progress:
    """How far it is: mean losses of the last updates, and the discriminator's means on real and on made images."""

    update: int
    discriminator: float
    generator: float
    on_real: float
    on_made: float


class Generator(nn.Module):  # type: ignore[misc] # torch is not followed
    """Noise and a class to an image."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        self.of_class = nn.Embedding(len(config.classes), config.latent)
        self.begin = nn.Linear(2 * config.latent, widths[0] * FIRST * FIRST)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for before, after in zip(widths, [*widths[1:], widths[-1]], strict=True):
            up = nn.Upsample(scale_factor=2, mode="nearest")  # and a convolution: no checkerboard
            layers += [up, nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Conv2d(widths[-1], config.channels, 3, padding=1), nn.Sigmoid())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return float32[b, channels, side, side] in [0, 1] of float32[b, latent] and int64[b]."""
        begun = self.begin(torch.cat([z, self.of_class(y)], 1))
        made: Tensor = self.rest(begun.view(len(z), -1, FIRST, FIRST))
        return made


class Discriminator(nn.Module):  # type: ignore[misc] # torch is not followed
    """How real an image of a class looks."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before: int = config.channels
        for width in _widths(config):
            layers += [spectral_norm(nn.Conv2d(before, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            before = width
        self.features = nn.Sequential(*layers)
        self.any = spectral_norm(nn.Linear(before, 1))
        self.of_class = spectral_norm(nn.Embedding(len(config.classes), before))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return float32[b] of float32[b, channels, side, side] in [0, 1] and int64[b]."""
        features = self.features(2 * x - 1).mean((2, 3))
        judged: Tensor = self.any(features)[:, 0] + (self.of_class(y) * features).sum(1)
        return judged


def _widths(config: GanConfig) -> list[int]:
    """Return the discriminator's channels, largest picture first; each layer halves the side, down to FIRST."""
    halvings = (config.side // FIRST).bit_length() - 1
    return [config.width * min(8, 2**place) for place in range(halvings)]


class Gan:
    """Both networks with their optimisers; `made` is the averaged generator."""

    def __init__(self, config: GanConfig, seed: int, device: str = "cpu") -> None:
        self.config, self.device, self.updates = config, torch.device(device), 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = Generator(config).to(self.device)
            self.discriminator = Discriminator(config).to(self.device)
        self.made = copy.deepcopy(self.generator).eval()
        self._rng = np.random.default_rng(seed)
        parts = ((self.discriminator, config.discriminator_rate), (self.generator, config.learning_rate))
        self._adam = [torch.optim.Adam(part.parameters(), rate, (0.0, 0.9)) for part, rate in parts]

    def train(self, images: Pixels, labels: npt.NDArray[np.int64], updates: int | None = None) -> Iterator[Progress]:
        """Learn from images; yields after each update.

        images  uint8[n, channels, side, side]
        labels  int64[n], places of the classes
        Classes come up equally often, however many images each has. Raises ImageError when images do not fit or a class
        has none, Diverged when a loss is not finite.
        """
        places = self._places(images, labels)
        real = torch.from_numpy(images).to(torch.float32).div_(255)
        for _ in range(self.config.updates if updates is None else updates):
            y = self._rng.integers(len(places), size=self.config.batch)
            chosen = [places[label][self._rng.integers(len(places[label]))] for label in y.tolist()]
            yield self._update(real[chosen].to(self.device), torch.from_numpy(y).to(self.device))

    def _update(self, x: Tensor, y: Tensor) -> Progress:
        judge, generator = self.discriminator.train(), self.generator.train()
        with torch.no_grad():
            fake = generator(self._noise(len(y)), y)
        on_real, on_made = judge(self._seen(x), y), judge(self._seen(fake), y)
        loss = (1 - on_real).clamp_min(0).mean() + (1 + on_made).clamp_min(0).mean()
        self._descend(0, loss)
        fooled = -judge(self._seen(generator(self._noise(len(y)), y)), y).mean()
        self._descend(1, fooled)
        self.updates += 1
        with torch.no_grad():
            keep = min(self.config.average, self.updates / (self.updates + 10))  # not the first weights for long
            for mine, new in zip(self.made.state_dict().values(), generator.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.mul_(keep).add_(new, alpha=1 - keep)
                else:
                    mine.copy_(new)
        told = (loss, fooled, on_real.mean(), on_made.mean())
        return Progress(self.updates, *(float(one.detach()) for one in told))

    def _descend(self, which: int, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise Diverged(f"update {self.updates + 1}: the loss is {float(loss):g}; lower learning_rate")
        self._adam[which].zero_grad()
        loss.backward()
        self._adam[which].step()

    def _noise(self, many: int) -> Tensor:
        drawn = self._rng.standard_normal((many, self.config.latent), np.float32)
        return torch.from_numpy(drawn).to(self.device)

    def _seen(self, x: Tensor) -> Tensor:
        changed, _ = augment(x, None, self.config.augmentation, self._rng)
        return changed

    def _places(self, images: Pixels, labels: npt.NDArray[np.int64]) -> list[list[int]]:
        wanted = (self.config.channels, self.config.side, self.config.side)
        if images.shape[1:] != wanted or len(images) != len(labels):
            raise ImageError(f"images are {images.shape} and labels {labels.shape}; expected each image to be {wanted}")
        places = [np.flatnonzero(labels == label).tolist() for label in range(len(self.config.classes))]
        if bare := [name for name, some in zip(self.config.classes, places, strict=True) if not some]:
            raise ImageError(f"no image is of the class {bare[0]}; expected some of each to learn from")
        return places


def sample(made: Generator, config: GanConfig, labels: npt.NDArray[np.int64], seed: int) -> Pixels:
    """Make an image a label: uint8[n, channels, side, side]. The same seed makes the same images."""
    rng = np.random.default_rng(seed)
    device = next(made.parameters()).device
    parts = []
    with torch.inference_mode():
        for at in range(0, len(labels), 256):
            y = torch.from_numpy(labels[at : at + 256]).to(device)
            z = torch.from_numpy(rng.standard_normal((len(y), config.latent), np.float32)).to(device)
            parts.append(made(z, y).mul(255).round_().to(torch.uint8).cpu().numpy())
    empty = np.empty((0, config.channels, config.side, config.side), np.uint8)
    return np.concatenate([empty, *parts])


def write_samples(made: Generator, config: GanConfig, out: Path, classes: Sequence[str], each: int, seed: int) -> int:
    """Write images of classes as PNG, and labels.csv, in which each is of no real patient: how many.

    Raises ConfigError for a class that the generator does not know and a folder that is not empty, OSError.
    """
    if strange := [name for name in classes if name not in config.classes]:
        raise ConfigError(f"{strange[0]} is no class of this generator; it knows {', '.join(config.classes)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out.name} is there and not empty; nothing is overwritten, name a new folder")
    rows = []
    for name in classes:
        place = config.classes.index(name)
        folder = out / "images" / str(place)  # a class's name may hold what a file's name may not
        folder.mkdir(parents=True)
        for number, pixels in enumerate(sample(made, config, np.full(each, place, np.int64), seed)):
            path = folder / f"{number}.png"
            Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(path)
            rows.append((f"{place}/{path.name}", name, f"made-{seed}-{place}-{number}", "train"))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("image", "label", "patient", "split"), *rows])
    with write_atomically(out / "labels.csv") as file:
        file.write(text.getvalue().encode())
    return len(rows)


def save(gan: Gan, path: Path, about: dict[str, str]) -> None:
    """Write the averaged generator, its config and what is told about its images, whole or not. Raises OSError."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in gan.made.state_dict().items()}
    metadata = {**about, "format": FORMAT, "config": gan.config.model_dump_json()}
    with write_atomically(path) as file:
        file.write(safetensors_of(tensors, metadata))


def load(path: Path) -> tuple[Generator, GanConfig, dict[str, str]]:
    """Read what `save` wrote. Raises ConfigError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if metadata.get("format") != FORMAT:
            raise ConfigError(f"{path.name} is no generator; expected the file that cairn craft gan train wrote")
        config = GanConfig.model_validate(json.loads(metadata["config"]))
        made = Generator(config).eval()
        made.load_state_dict(tensors)
    except (OSError, SafetensorError, ValidationError, KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{path.name} cannot be read as a generator; expected the file that cairn craft gan train wrote"
        ) from error
    return made, config, {name: text for name, text in metadata.items() if name not in ("format", "config")}
