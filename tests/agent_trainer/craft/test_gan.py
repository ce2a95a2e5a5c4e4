"""A conditional GAN: its images are of their class, and what goes wrong is said."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from agent_trainer.commands.craft import app
from agent_trainer.craft.gan import Gan, GanConfig, load, sample, save
from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders
from agent_trainer.labelled.sources import load_labelled
from cairn.errors import ConfigError, ImageError

TINY = GanConfig(
    classes=("disc", "bar"),
    side=16,
    latent=16,
    width=16,
    batch=32,
    learning_rate=5e-4,
    discriminator_rate=2e-3,
    average=0.98,
)


def shapes(many: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Discs and upright bars of any place and brightness, on noise: uint8[n, 1, 16, 16]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(many) % 2
    y, x = np.mgrid[:16, :16]
    images = rng.normal(40, 10, (many, 1, 16, 16))
    for image, label in zip(images, labels, strict=True):
        cy, cx = rng.integers(5, 11, 2)
        disc, bar = (y - cy) ** 2 + (x - cx) ** 2 < 14, (np.abs(x - cx) < 1) & (np.abs(y - 8) < 7)
        image[0][bar if label else disc] += rng.uniform(120, 180)
    return images.clip(0, 255).astype(np.uint8), labels


def classifier(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> nn.Module:
    """Learn to tell real discs from bars."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
        )
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        adam.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model


def right(model: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> float:
    return float((model(torch.from_numpy(images).float() / 255).argmax(1).numpy() == labels).mean())


def test_images_made_of_a_class_are_taken_for_it_by_a_classifier_of_real_ones(tmp_path: Path) -> None:
    images, labels = shapes(120, 0)
    judge = classifier(images, labels)
    assert right(judge, *shapes(200, 1)) > 0.97
    gan = Gan(TINY, seed=0)
    asked = np.arange(200) % 2
    before = right(judge, sample(gan.made, TINY, asked, 0), asked)
    for progress in gan.train(images, labels, 250):
        assert abs(progress.on_real) < 50
    made = sample(gan.made, TINY, asked, 0)
    assert before < 0.7
    assert right(judge, made, asked) > 0.9
    # Nor are they one image a class, though so few updates make them more alike than real ones are.
    for label in (0, 1):
        spread, real = (some.astype(float).std(0).mean() for some in (made[asked == label], images[labels == label]))
        assert spread > 0.25 * real
    save(gan, tmp_path / "gan.safetensors", {"seed": "0"})
    again, config, about = load(tmp_path / "gan.safetensors")
    assert (config, about) == (TINY, {"seed": "0"})
    assert np.array_equal(sample(again, config, asked, 0), made)
    assert not np.array_equal(sample(again, config, asked, 1), made)


def test_the_commands_learn_from_those_who_train_and_make_images_that_never_validate(tmp_path: Path) -> None:
    images, labels = shapes(24, 0)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "cells" / TINY.classes[label] / f"{number:02}_.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    model, out = tmp_path / "gan.safetensors", tmp_path / "made"
    asked = ["gan", "train", str(tmp_path / "cells"), str(model), "--updates", "2", "--patient", "^([0-9]+)_"]
    told = CliRunner().invoke(app, [*asked, "--set", "side=16", "--set", "width=4", "--json"])
    assert told.exit_code == 0, told.output
    assert 12 <= json.loads(told.stdout)["images"] < 24
    made = CliRunner().invoke(app, ["gan", "sample", str(model), str(out), "--each", "5"])
    assert made.exit_code == 0, made.output
    assert 'validation = "none"' in made.output
    source = LabelledFiles(images=out / "images", labels=out / "labels.csv", validation="none")
    real = LabelledFolders(images=tmp_path / "cells")
    both = load_labelled((real, source), TINY.classes, 0.3)
    assert sum(one.patient.startswith("made-") for one in both.train) == 10
    assert not any(one.patient.startswith("made-") for one in both.validation)
    for again, said in ((["sample", str(model), str(out)], "nothing is overwritten"), (asked[1:], "name a new file")):
        failed = CliRunner().invoke(app, ["gan", *again])
        assert isinstance(failed.exception, ConfigError)
        assert said in str(failed.exception)
    strange = CliRunner().invoke(app, ["gan", "sample", str(model), str(tmp_path / "other"), "--class", "star"])
    assert "star is no class of this generator; it knows bar, disc" in str(strange.exception)


def test_one_seed_gives_the_same_networks() -> None:
    images, labels = shapes(20, 0)
    made = []
    for seed in (3, 3, 4):
        gan = Gan(TINY, seed)
        for _ in gan.train(images, labels, 2):
            pass
        made.append(sample(gan.made, TINY, labels, 0))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


@pytest.mark.parametrize(("side", "channels"), [(16, 3), (32, 1), (64, 3)])
def test_images_have_the_size_that_is_asked(side: int, channels: int) -> None:
    config = GanConfig.model_validate({"classes": ["a", "b", "c"], "side": side, "channels": channels, "width": 4})
    gan = Gan(config, 0)
    images = np.random.default_rng(0).integers(0, 256, (6, channels, side, side), np.uint8)
    progress = next(gan.train(images, np.arange(6) % 3, 1))
    assert progress.update == 1
    assert sample(gan.made, config, np.arange(5) % 3, 0).shape == (5, channels, side, side)


def test_images_that_do_not_fit_and_files_of_others_are_refused(tmp_path: Path) -> None:
    images, labels = shapes(8, 0)
    with pytest.raises(ImageError, match="no image is of the class bar"):
        next(Gan(TINY, 0).train(images, np.zeros(8, np.int64), 1))
    with pytest.raises(ImageError, match=r"expected each image to be \(1, 16, 16\)"):
        next(Gan(TINY, 0).train(images[..., :8], labels, 1))
    (tmp_path / "gan.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be read as a generator"):
        load(tmp_path / "gan.safetensors")
