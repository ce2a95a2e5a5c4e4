"""Augmentation where trainers use it: what they then know, restarts, and settings that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_trainer.algorithms import algorithm
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_views import Changing, View
from agent_trainer.craft.augmentation import Augmentation
from agent_trainer.dqn import Batch
from agent_trainer.dqn_practice import toned
from agent_trainer.patches import in_memory
from cairn.errors import ConfigError
from tests.agent_trainer.apga_sites import site, tiny

BOTH = [0, 1] * 11
PLAIN: dict[str, Any] = {"method": "none"}  # group norm would bear other light without augmentation


def trained(folder: Path, updates: int, seed: int = 0, **augmentation: Any) -> ApgaPractice:
    config = tiny(**PLAIN, augmentation=augmentation)
    practice = site(folder, config, BOTH, seed=seed)
    for _ in practice.train(updates):
        pass
    return practice


def right_elsewhere(practice: ApgaPractice) -> float:
    """The share of right answers at a site whose scanner adds a tenth to a third to every pixel."""
    lighter = np.concatenate([practice.held_out.astype(np.int64) + more for more in (25, 50, 80)])
    answers = practice.answers(np.clip(lighter, 0, 255).astype(np.uint8)).argmax(1)
    return float((answers == np.tile(practice.held_out_labels, 3)).mean())


def test_a_classifier_that_learned_with_intensity_shifts_bears_another_scanner(tmp_path: Path) -> None:
    without = [right_elsewhere(trained(tmp_path / f"without{seed}", 80, seed)) for seed in range(3)]
    shifts = {"intensity_shift": 1.0, "intensity_amount": 0.4}
    with_them = [right_elsewhere(trained(tmp_path / f"with{seed}", 80, seed, **shifts)) for seed in range(3)]
    assert max(without) < 0.75
    assert min(with_them) > 0.9


def test_a_site_that_augments_goes_on_after_a_restart_as_if_there_had_been_none(tmp_path: Path) -> None:
    chances = {"flip": 0.5, "noise": 0.5, "elastic": 0.5, "elastic_smoothness": 0.2}
    straight = trained(tmp_path / "a", 6, **chances)
    trained(tmp_path / "b", 3, **chances).save()
    after = trained(tmp_path / "b", 3, **chances)
    assert all(np.array_equal(value, after.weights()[name]) for name, value in straight.weights().items())
    without = trained(tmp_path / "c", 6).weights()
    assert any(not np.array_equal(value, without[name]) for name, value in straight.weights().items())


def test_patches_are_changed_as_they_are_cut_and_the_map_is_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 40), np.uint8)
    image = in_memory(pixels)
    low = image.reduced(10, 10)
    plain = View(image, low)
    settings = Augmentation(flip=1, flip_axes=(1,))
    changed = View(Changing(image, settings, np.random.default_rng(0)), low)
    cells = np.array([33, 57])
    assert np.array_equal(changed.patches(cells, 8), plain.patches(cells, 8)[..., ::-1])
    assert bool((changed.map_input() == plain.map_input()).all())


def test_an_agent_sees_its_step_in_the_same_light_before_and_after() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 9), np.uint8)
    one = np.zeros(4)
    batch = Batch(frames[:, :2], one, one, one, one, frames[:, 1:], one, one)  # type: ignore[arg-type]
    seen = toned(batch, Augmentation(intensity_shift=1, contrast=1), np.random.default_rng(1))
    assert not np.array_equal(seen.s_tm1, batch.s_tm1)
    assert np.array_equal(seen.s_tm1[:, 1], seen.s_t[:, 0])  # the frame that both states share
    assert toned(batch, Augmentation(), np.random.default_rng(1)) is batch


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("dqn", {"augmentation": {"flip": 0.5}}, "augmentation.flip would move what the agent sees"),
        ("apga", {"classes": ["a", "b"], "augmentation": {"flip_axes": [2]}}, "names axis 2; the images have axes 0"),
        ("attention", {"classes": ["a", "b"], "augmentation": {"flip_axes": [2]}}, "the images have axes 0 to 1"),
        ("apga", {"classes": ["a", "b"], "augmentation": {"blur": 1}}, "augmentation.blur: .*known are contrast, "),
        ("dqn", {"augmentation": {"noise": 2}}, "augmentation.noise: .*less than or equal to 1"),
    ],
)
def test_augmentation_that_a_run_cannot_have_is_said_in_a_sentence(name: Any, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        algorithm(name).read_config(json.dumps(settings))


def test_the_papers_own_changes_of_the_attention_stay_beside_the_table() -> None:
    config = AttentionConfig(classes=("a", "b"), augmentation=Augmentation(rotate=0.5))
    assert (config.flips, config.contrast, config.zoom) == (True, 0.2, 1.2)
