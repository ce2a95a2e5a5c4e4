"""A site that learns from images without labels, and what its encoder is then worth."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from agent_trainer.algorithms import Place, Weights, algorithm
from agent_trainer.apga_practice import first_weights as first_classifier
from agent_trainer.config import DqnConfig
from agent_trainer.craft.transfer import Transfer
from agent_trainer.dqn_practice import first_weights as first_agent
from agent_trainer.labelled.settings import read_labelled
from agent_trainer.labelled.sources import load_labelled
from agent_trainer.pretraining.config import PretrainConfig, read_config
from agent_trainer.pretraining.images import Found, Walks, Whole
from agent_trainer.pretraining.practice import PRETRAIN, PretrainPractice, first_weights, merge_validation
from cairn.errors import ConfigError, Diverged, ImageError
from tests.agent_trainer.apga_sites import draw, tiny

METHODS = ("autoencoder", "rotation", "jigsaw", "masked")
SMALL: dict[str, Any] = {
    "side": 16, "channels": 1, "small_channels": (4, 8), "patch": 4, "grid": 2, "batch": 6, "learning_rate": 0.01,
    "width": 4,
}  # fmt: skip
AGENT = {"tasks": ("liver",), "box": 12, "history": 2, "channels": (4, 6), "kernels": (3, 3)}


def small(**settings: Any) -> PretrainConfig:
    return PretrainConfig(**{**SMALL, **settings})


def blobs(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw a disc or a ring somewhere in noise: uint8[n, 1, 24, 24], and which of them it is."""
    rng = np.random.default_rng(seed)
    found, kinds, grid = rng.normal(90, 22, (count, 1, 24, 24)), np.arange(count) % 2, np.arange(24)
    for image, kind in zip(found, kinds, strict=True):
        y, x = rng.integers(6, 18, 2)
        away = np.hypot(grid[:, None] - y, grid[None] - x)
        image[0] += 60 * ((away < 4.5) if kind == 0 else ((away < 5.7) & (away > 3.4)))
    return found.clip(0, 255).astype(np.uint8), kinds


def practice(folder: Path, config: PretrainConfig, pixels: npt.NDArray[np.uint8], seed: int = 0) -> PretrainPractice:
    cut = min(20, len(pixels) // 2)
    return PretrainPractice(Found(Whole(pixels[cut:]), Whole(pixels[:cut])), config, seed, "cpu", folder)


def train(site: PretrainPractice, updates: int) -> dict[str, float]:
    said: dict[str, float] = {}
    for sums in site.train(updates):
        said = sums.numbers()
    return said


def probed(site: PretrainPractice) -> float:
    """Fit a linear classifier by ridge regression to 40 images' features; its accuracy on 400 others."""
    (pixels, kinds), (others, answers) = blobs(40, 1), blobs(400, 2)
    known, asked = site.learner.features(pixels), site.learner.features(others)
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    x, z = (np.c_[(some - mean) / deviation, np.ones(len(some))] for some in (known, asked))
    w = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ (2 * kinds - 1))
    return float(((z @ w > 0) == answers).mean())


@pytest.mark.parametrize(("method", "margin"), [("autoencoder", 0.08), ("masked", 0.05)])
def test_few_labels_say_more_of_pre_trained_features_than_of_random_ones(
    tmp_path: Path, method: str, margin: float
) -> None:
    config = small(method=method, side=24, small_channels=(8, 12, 16), patch=6, batch=32, learning_rate=3e-3, width=16)
    before, after = [], []
    for seed in range(3):
        site = practice(tmp_path / str(seed), config, blobs(400, 0)[0], seed)
        before.append(probed(site))
        train(site, 150)
        after.append(probed(site))
    assert np.mean(after) > np.mean(before) + margin, f"{before} before, {after} behind"


@pytest.mark.parametrize("method", METHODS)
def test_every_task_is_learned_and_measured_on_images_set_aside(tmp_path: Path, method: str) -> None:
    shaded = np.tile(np.linspace(0, 250, 16).astype(np.uint8)[:, None], (40, 1, 1, 16))
    shaded[..., :8] //= 2  # darker on the left, and brighter below: no turn looks like another
    shaded += np.random.default_rng(0).integers(0, 5, shaded.shape).astype(np.uint8)
    site = practice(tmp_path, small(method=method, flips=False), shaded)
    begun = site.validate()
    said = train(site, 40)
    ended = site.validate()
    assert said["updates"] == 40
    assert said["pretext"] == said["loss"] > 0
    assert ended["validation/n"] == 20
    assert ended["validation/pretext"] < 0.8 * begun["validation/pretext"]
    assert ("accuracy" in said) == ("validation/accuracy" in ended) == (method in ("rotation", "jigsaw"))
    assert site.validate() == ended, "the same draws each time"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_dqn_sees_with_is_pre_trained_on_crops_of_its_scenes(tmp_path: Path, method: str) -> None:
    config = PretrainConfig(method=method, encoder="dqn", agent=AGENT, grid=2, patch=3, batch=8, width=4)
    scenes = {"kind": "generated", "tasks": ["liver", "spleen"], "images": 14, "size": 40}
    site = PRETRAIN.begin(config, Place({"scenes": [scenes]}, 1, "cpu", tmp_path))
    shown = site.found.train.batch(np.arange(5), np.random.default_rng(0))
    assert (shown.dtype, shown.shape) == (np.uint8, (5, 2, 12, 12))
    before = site.weights()
    site.load(before)
    for _ in site.train(3):
        pass
    path = tmp_path / "eyes.safetensors"
    save_file(site.weights(), path)
    run = DqnConfig(**AGENT, hidden=(8,), transfer=Transfer(weights=path, mode="frozen"))
    given = first_agent(run, 0)
    for name in ("convolutions.0.weight", "convolutions.1.bias"):
        assert np.array_equal(given[name], site.weights()[name])
        assert not np.array_equal(given[name], before[name])


def test_the_crops_of_a_walk_are_of_one_image_a_step_apart() -> None:
    image = np.arange(40 * 40, dtype=np.uint16).reshape(1, 40, 40)
    both = [(image % 251).astype(np.uint8), (image // 7 % 251).astype(np.uint8)]
    config = DqnConfig(**{**AGENT, "history": 3}, envs=1)
    shown = Walks(both, config).batch(np.zeros(50, np.int64), np.random.default_rng(0)).astype(int)
    for state in shown:
        for older, newer in pairwise(state):
            moves = [older[1:] - newer[:-1], older[:-1] - newer[1:], older[:, 1:] - newer[:, :-1],
                     older[:, :-1] - newer[:, 1:], older - newer]  # fmt: skip
            assert any(not move.any() for move in moves), "one of four directions, or held at the image's edge"
    with pytest.raises(ImageError, match="channels"):
        Walks([both[0], np.zeros((4, 40, 40), np.uint8)], config)


def test_a_pre_trained_encoder_is_what_a_classifier_begins_with(tmp_path: Path) -> None:
    path = tmp_path / "chest.safetensors"
    given = first_weights(small(method="jigsaw"), 5)
    save_file(given, path)
    made = first_classifier(tiny(transfer={"weights": path}), 0)
    fresh = first_classifier(tiny(), 0)
    for name, array in made.items():
        encoder = name.startswith("classifier.features.")
        assert np.array_equal(array, given[name] if encoder else fresh[name]), name


def test_a_restart_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config, (pixels, _) = small(method="masked", side=24), blobs(60, 0)
    one = practice(tmp_path / "one", config, pixels)
    train(one, 3)
    one.load(one.weights(), 0.1)
    one.save()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "pretrain.safetensors").write_bytes((tmp_path / "one" / "pretrain.safetensors").read_bytes())
    other = practice(tmp_path / "two", config, pixels)
    for site in (one, other):
        train(site, 3)
    assert all(np.array_equal(array, other.weights()[name]) for name, array in one.weights().items())
    assert practice(tmp_path / "two", small(method="masked", side=24, batch=5), pixels).learner.updates == 0, (
        "another run"
    )


def test_a_step_that_diverges_leaves_everything_as_it_was(tmp_path: Path) -> None:
    site = practice(tmp_path, small(method="autoencoder", side=24), blobs(30, 0)[0])
    with torch.no_grad():
        site.learner.network.pretext[-1].bias.fill_(torch.nan)
    before = site.weights()
    with pytest.raises(Diverged, match="update 1 was refused"):
        train(site, 1)
    assert all(np.array_equal(array, before[name], equal_nan=True) for name, array in site.weights().items())


def test_fedprox_holds_to_the_round_s_weights(tmp_path: Path) -> None:
    moved = []
    for mu in (0.0, 100.0):
        site = practice(tmp_path / str(mu), small(method="autoencoder", side=24, learning_rate=1e-3), blobs(30, 0)[0])
        begun = site.weights()
        site.load(begun, mu)
        train(site, 10)
        moved.append(float(np.abs(site.weights()["pretext.0.weight"] - begun["pretext.0.weight"]).mean()))
    assert moved[1] < moved[0] / 2


def test_figures_of_sites_are_means_over_their_images_and_few_images_tell_nothing(tmp_path: Path) -> None:
    site = practice(tmp_path, small(method="autoencoder", side=24), blobs(16, 0)[0])
    assert site.validate() == {}, "eight images are set aside"
    told = merge_validation(
        [{"validation/n": 10.0, "validation/pretext": 1.0}, {"validation/n": 30.0, "validation/pretext": 2.0}, {},
         {"validation/n": 5.0, "validation/pretext": 50.0}, {"validation/n": 20.0, "validation/pretext": float("nan")}]
    )  # fmt: skip
    assert told == {"validation/n": 40.0, "validation/pretext": 1.75}
    assert merge_validation([{}]) == {}


def test_labels_are_not_looked_at_and_a_plain_folder_is_for_pre_training_alone(tmp_path: Path) -> None:
    draw(tmp_path / "plain", [0] * 12, 1)
    draw(tmp_path / "sorted" / "any word", [0] * 12, 2)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "sorted" / "any word" / "broken.png")
    (tmp_path / "sorted" / "any word" / "broken.png").write_bytes(b"no image")
    tables = [
        {"kind": "plain", "images": str(tmp_path / "plain")},
        {"kind": "folders", "images": str(tmp_path / "sorted")},
    ]
    site = PRETRAIN.begin(small(), Place({"labelled": tables}, 0, "cpu", tmp_path / "run"))
    assert site.examples + len(site.found.validation) == 24
    assert len(site.found.validation) > 0
    assert ["broken.png" in problem for problem in site.problems] == [True]
    sources = read_labelled(json.dumps(tables), tmp_path)
    assert len(load_labelled(sources, ("any word", "other"), 0.0).train) == 13, "of the sorted folder alone"
    with pytest.raises(ConfigError, match="no image of the groups wrist"):
        PRETRAIN.begin(small(groups=("wrist",)), Place({"labelled": tables}, 0, "cpu", tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "colour"}, "method: "),
        ({"encoder": "small", "images": "scenes"}, "which the encoder dqn alone learns from"),
        ({"encoder": "dqn", "agent": {"box": 10}}, "is used up before the last convolution"),
        ({"encoder": "densenet121", "side": 16}, "needs at least 32"),
        ({"method": "jigsaw", "grid": 2, "permutations": 30}, "four tiles have 24 orders"),
        ({"method": "masked", "side": 32, "patch": 20}, "at most half of the 32 pixels"),
        ({"epochs": 3}, "known are agent, batch"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        read_config(json.dumps(settings))
    assert "\n" not in str(raised.value)


def test_the_seam_knows_pre_training(tmp_path: Path) -> None:
    assert algorithm("pretrain") is PRETRAIN
    same: Weights = PRETRAIN.first_weights(small(), 3)
    assert all(np.array_equal(array, PRETRAIN.first_weights(small(), 3)[name]) for name, array in same.items())
