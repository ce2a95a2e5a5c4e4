"""Images of different looks: tables of levels by hand, CORAL by hand, what stays at a site, and what each recovers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from agent_trainer.algorithms import Place
from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.apga_networks import CLASSIFIER, described, networks
from agent_trainer.apga_practice import begin
from agent_trainer.classification import count, measures
from agent_trainer.craft.domains import (
    Domain,
    coral_loss,
    covariance,
    keep_own,
    level_counts,
    local_names,
    looked,
    reference_of,
    tables,
)
from cairn.errors import ConfigError
from tests.agent_trainer.apga_sites import site, tiny

FOUR = np.array([[[[0, 0], [100, 200]]]], np.uint8)


def test_standardised_levels_by_hand() -> None:
    # μ = 75, σ² = (2·75² + 25² + 125²) / 4 = 6875, σ = 82.916; 256·(0.5 + 0.2·(v - 75)/82.916) = 81.7, 143.4, 205.2
    found = looked(FOUR, Domain(look="standardise"))
    assert found.ravel().tolist() == [82, 82, 143, 205]


def test_a_histogram_matched_by_hand() -> None:
    # Mid-ranks of 0, 100 and 200 are 1/4, 5/8 and 7/8; on a reference that rises evenly from 100 to 180: 120, 150, 170.
    found = looked(FOUR, Domain(look="histogram", reference=(100, 180)))
    assert found.ravel().tolist() == [120, 120, 150, 170]


def test_an_even_image_is_only_moved() -> None:
    flat = np.full((1, 1, 4, 4), 9, np.uint8)
    assert set(looked(flat, Domain(look="standardise")).ravel().tolist()) == {128}
    assert np.array_equal(looked(flat, Domain()), flat)


@pytest.mark.parametrize("look", ["standardise", "histogram"])
def test_a_look_undoes_a_change_of_contrast_and_brightness(look: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(120, 25, (1, 3, 40, 40)).clip(30, 210).astype(np.uint8)
    changed = np.rint(0.6 * image + 30).astype(np.uint8)
    settings = Domain(look=look)
    before = np.abs(image.astype(int) - changed).mean()
    after = np.abs(looked(image, settings).astype(int) - looked(changed, settings)).mean()
    assert after < 0.15 * before


def test_a_histogram_also_undoes_a_gamma_and_standardising_does_not() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64)).astype(np.uint8)
    changed = np.rint(255 * (image / 255) ** 2.2).astype(np.uint8)

    def apart(settings: Domain) -> float:
        return float(np.abs(looked(image, settings).astype(int) - looked(changed, settings)).mean())

    assert apart(Domain(look="histogram")) < 3
    assert apart(Domain(look="standardise")) > 10


def test_an_image_of_the_references_histogram_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(120, 30, (1, 1, 100, 100)).clip(0, 255).astype(np.uint8)
    reference = reference_of(level_counts(image), 257)
    found = looked(image, Domain(look="histogram", reference=reference))
    assert np.abs(found.astype(int) - image).mean() < 1


def test_the_reference_of_sites_together_is_that_of_their_counts_sum() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(low, low + 60, (5, 1, 8, 8)).astype(np.uint8) for low in (0, 150))
    both = level_counts(one) + level_counts(other)
    assert (both == level_counts(np.concatenate([one, other]))).all()
    reference = reference_of(both, 5)
    assert reference[0] == one.min()
    assert reference[2] == one.max()  # half of the pixels are the first site's
    assert reference[4] == other.max()


def test_tables_do_not_fall_so_that_no_order_of_levels_is_lost() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 20, 20)).astype(np.uint8)
    for look in ("standardise", "histogram"):
        found = tables(images, Domain(look=look)).astype(int)
        assert found.shape == (4, 3, 256)
        assert (np.diff(found, axis=2) >= 0).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"look": "histogram", "reference": (5,)}, "two or more levels"),
        ({"look": "histogram", "reference": (5, 3)}, "do not fall"),
        ({"look": "histogram", "reference": (0, 300)}, "from 0 to 255"),
        ({"reference": (0, 255)}, 'set look to "histogram"'),
    ],
)
def test_a_reference_that_is_none_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Domain(**settings)


def test_the_coral_loss_by_hand() -> None:
    # Covariances: of the first [[2, 0], [0, 0]], of the second [[0, 0], [0, 8]]; ‖·‖² = 4 + 64, over 4·2² is 4.25.
    first, second = torch.tensor([[0.0, 1], [2, 1]]), torch.tensor([[3.0, 0], [3, 4]])
    assert covariance(first).tolist() == [[2, 0], [0, 0]]
    assert float(coral_loss(first, second)) == pytest.approx(4.25)
    assert float(coral_loss(first, first + 5)) == 0


def test_local_names_are_those_of_normalisations_or_of_a_pattern() -> None:
    held = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    assert local_names(held, ()) == frozenset()
    norms = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias"}
    assert local_names(held, ("norm",)) == norms
    assert local_names(held, ("*running*",)) == {"1.running_mean", "1.running_var"}
    with pytest.raises(ConfigError, match=r"no weight is called bn; give a pattern such as 0\.weight"):
        local_names(held, ("bn",))
    own, other = ({"a": np.full(1, k, np.float32), "b": np.full(1, k, np.float32)} for k in (1, 2))
    assert {name: float(array[0]) for name, array in keep_own(other, own, {"b"}).items()} == {"a": 2, "b": 1}


def test_a_site_keeps_its_normalisations_once_it_has_learned_also_over_a_restart(tmp_path: Path) -> None:
    settings = tiny(method="none", domain={"keep_local": ["norm"]})
    practice = site(tmp_path, settings, [0, 1] * 11)
    first = {name: array + 0.25 for name, array in practice.weights().items()}
    practice.load(first)
    taken = practice.weights()
    assert all(np.array_equal(taken[name], first[name]) for name in first if not name.endswith("tracked"))
    for _ in practice.train(3):
        pass
    practice.save()
    own = practice.weights()
    for again in (practice, site(tmp_path, settings, [0, 1] * 11)):
        again.load(first)
        found = again.weights()
        for name, array in first.items():
            local = name.startswith(("classifier.features.1.", "classifier.features.5."))
            assert np.array_equal(found[name], own[name] if local else array), name


def test_both_networks_are_described_as_they_answer() -> None:
    for settings in ({}, {"classifier": "densenet121", "side": 32, "method": "none"}):
        built = networks(tiny(**settings), 0)[CLASSIFIER].eval()
        x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        features, answers = described(built, x)
        assert features.ndim == 2
        torch.testing.assert_close(answers, built(x))


# What each remedy recovers, on discs that are brighter (1) or darker (0) in the middle than at the rim.

SIDE = 24
PLAIN = {
    "classes": ("hollow", "full"), "method": "none", "side": SIDE, "channels": 1, "classifier": "small",
    "small_channels": (6, 12), "learning_rate": 0.005, "batch": 16, "pretrain_updates": 0,
    "norm_momentum": 0.3,
}  # fmt: skip


def discs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw faint discs with noise, whose class is what the middle is like, and bright bars that mean nothing."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    middle = (np.hypot(x, y) < SIDE / 5).astype(float)
    labels = rng.integers(0, 2, n)
    levels = 0.5 + 0.10 * (2 * labels[:, None, None] - 1) * middle + 0.06 * rng.standard_normal((n, SIDE, SIDE))
    levels += 0.1 * rng.random((n, 1, 1))
    return (255 * levels).clip(0, 255), labels


def scanned(levels: np.ndarray, contrast: float, offset: float, gamma: float = 1.0) -> np.ndarray:
    return (255 * (offset + contrast * (levels / 255) ** gamma)).clip(0, 255).astype(np.uint8)[:, None]


def learned(config: ApgaConfig, parts: list[tuple[np.ndarray, np.ndarray]], seed: int, target: np.ndarray | None = None,
            rounds: int = 6, updates: int = 15) -> list[Learner]:  # fmt: skip
    """Train sites of arrays by FedAvg in equal shares; they end with the mean, but for what stays with each."""
    sites = [Learner(config, seed=seed) for _ in parts]
    rng = np.random.default_rng(seed)
    local = local_names(sites[0].networks, config.domain.keep_local)
    merged = sites[0].weights()
    for _ in range(rounds):
        for learner, (pixels, labels) in zip(sites, parts, strict=True):
            learner.load(keep_own(merged, learner.weights(), local) if learner.updates else merged)
            for _ in range(updates):
                chosen = rng.integers(0, len(labels), config.batch)
                others = None if target is None else target[rng.integers(0, len(target), config.batch)]
                learner.step(looked(pixels[chosen], config.domain), labels[chosen], rng, others)
        own = [learner.weights() for learner in sites]
        merged = {name: np.mean([one[name] for one in own], axis=0, dtype=np.float32) for name in merged}
    for learner, one in zip(sites, own, strict=True):
        learner.load(keep_own(merged, one, local))
    return sites


def right(learner: Learner, pixels: np.ndarray, labels: np.ndarray) -> float:
    found = learner.probabilities(looked(pixels, learner.config.domain))
    return measures(count(found, labels), learner.config.classes)["balanced_accuracy"]


def test_a_look_recovers_what_another_scanner_costs() -> None:
    """Learned on one scanner, tested on one that inverts nothing but is darker, flatter and of another gamma."""
    found: dict[str, list[float]] = {"same": [], "none": [], "standardise": [], "histogram": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        (levels, labels), (test, truth) = discs(rng, 120), discs(rng, 200)
        here, there = scanned(levels, 1.0, 0.0), scanned(test, 0.35, 0.05, 1.8)
        for look in ("none", "standardise", "histogram"):
            (learner,) = learned(ApgaConfig(**PLAIN, domain={"look": look}), [(here, labels)], seed)
            found[look].append(right(learner, there, truth))
            if look == "none":
                found["same"].append(right(learner, scanned(test, 1.0, 0.0), truth))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert means["same"] > 0.75, means
    assert means["none"] < means["same"] - 0.2, means
    for look in ("standardise", "histogram"):
        assert means[look] > means["same"] - 0.08, means


def test_local_normalisations_beat_averaged_ones_where_two_sites_differ_in_contrast() -> None:
    gains = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        looks = ((1.0, 0.0), (0.15, 0.8))
        parts = [(scanned(levels, *look), labels) for look in looks for levels, labels in [discs(rng, 120)]]
        tests = [(scanned(levels, *look), labels) for look in looks for levels, labels in [discs(rng, 200)]]
        kept = {}
        for name, patterns in (("averaged", ()), ("local", ("norm",))):
            config = ApgaConfig(**PLAIN, domain={"keep_local": patterns})
            sites = learned(config, parts, seed, rounds=4)
            kept[name] = np.mean([right(s, *test) for s, test in zip(sites, tests, strict=True)])
        gains.append(kept["local"] - kept["averaged"])
    assert np.mean(gains) > 0.05, gains


def test_the_coral_loss_brings_two_looks_together_without_a_label_of_the_other() -> None:
    """Over three seeds: features in use, and right answers on the other look."""
    apart: dict[float, list[float]] = {0.0: [], 100.0: []}
    answered: dict[float, list[float]] = {0.0: [], 100.0: []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        (levels, labels), (others, _), (test, truth) = discs(rng, 120), discs(rng, 120), discs(rng, 200)
        here, there = scanned(levels, 1.0, 0.0), scanned(others, 0.5, 0.2)
        for weight in (0.0, 100.0):
            config = ApgaConfig(**PLAIN, domain={"coral": weight})
            (learner,) = learned(config, [(here, labels)], seed, target=there if weight else None)
            network = learner.networks[CLASSIFIER].eval()
            with torch.no_grad():
                first, second = (described(network, learner.scaled(pixels))[0] for pixels in (here, there))
            spread = float(covariance(first).square().sum()) / (4 * first.shape[1] ** 2)
            apart[weight].append(float(coral_loss(first, second)) / spread)
            answered[weight].append(right(learner, scanned(test, 0.5, 0.2), truth))
    assert np.mean(apart[100.0]) < 0.5 * np.mean(apart[0.0]), apart
    assert np.mean(answered[100.0]) > np.mean(answered[0.0]) + 0.05, answered


def test_a_site_without_images_of_the_other_look_learns_without_the_coral_loss(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(method="none", domain={"coral": 1.0}), [0, 1] * 11)
    (sums,) = practice.train(1)
    assert sums.updates == 1


def test_a_sites_images_of_the_other_look_are_those_under_the_word_of_the_settings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for word in (*tiny().classes, "target", "other"):
        (tmp_path / "images" / word).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 200, (16, 16), np.uint8)).save(
                tmp_path / f"images/{word}/{word}{number}.png"
            )
    config = tiny(method="apga", pretrain_updates=1, domain={"coral": 1.0})
    place = Place({"labelled": [{"kind": "folders", "images": str(tmp_path / "images")}]}, 0, "cpu", tmp_path / "run")
    practice = begin(config, place)
    assert practice.examples + len(practice.held_out) == 16
    assert len(practice._target) == 8
    *_, sums = practice.train(3)
    assert sums.updates == 3


def test_fine_tuning_at_the_target_takes_a_few_labelled_images() -> None:
    """A run of one site from another run's weights."""
    before, after = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        (levels, labels), (few, words), (test, truth) = discs(rng, 120), discs(rng, 16), discs(rng, 200)
        there, tests = scanned(few, 0.35, 0.05, 1.8), scanned(test, 0.35, 0.05, 1.8)
        config = ApgaConfig(**PLAIN)
        (learner,) = learned(config, [(scanned(levels, 1.0, 0.0), labels)], seed)
        before.append(right(learner, tests, truth))
        for _ in range(30):
            chosen = rng.integers(0, len(words), config.batch)
            learner.step(there[chosen], words[chosen], rng)
        after.append(right(learner, tests, truth))
    assert np.mean(after) > np.mean(before) + 0.1, (before, after)
