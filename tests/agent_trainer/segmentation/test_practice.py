"""A site learns to outline structures, goes on after a restart, and never ends for a broken volume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_trainer.algorithms import Place, algorithm
from agent_trainer.segmentation.config import SegmentationConfig, read_config
from agent_trainer.segmentation.learner import Learner
from agent_trainer.segmentation.practice import SegmentationPractice, begin
from agent_trainer.volumes.settings import VolumeFiles
from agent_trainer.volumes.sources import Volumes, load_volumes
from cairn.errors import ConfigError, Diverged, ImageError, TrainingError
from tests.agent_trainer.volumes.scans import write

SMALL: dict[str, Any] = {
    "classes": ("ball", "box"), "modality": "mr", "network": "unet", "width": 4, "depth": 2, "blocks": 0,
    "patch": (16, 16, 16), "learning_rate": 0.01, "foreground": 0.9, "batch": 2,
}  # fmt: skip
MADE = {"kind": "generated", "volumes": 6, "size": 20}


def config(**change: Any) -> SegmentationConfig:
    return SegmentationConfig(**{**SMALL, **change})


def begun(folder: Path, seed: int = 0, **change: Any) -> SegmentationPractice:
    return begin(config(**change), Place({"volumes": [MADE]}, seed, "cpu", folder))


def train(practice: SegmentationPractice, updates: int) -> dict[str, float]:
    sums = None
    for sums in practice.train(updates):  # noqa: B007 - the last
        pass
    assert sums is not None
    return sums.numbers()


def alike(one: SegmentationPractice, other: SegmentationPractice) -> bool:
    return all((array == other.weights()[name]).all() for name, array in one.weights().items())


@pytest.mark.timeout(240)
def test_a_small_unet_learns_both_parts_of_the_hippocampus_in_seconds(real_data: Path, tmp_path: Path) -> None:
    given = config(
        classes=("anterior", "posterior"), patch=(32, 32, 32), width=8, depth=3, batch=4, learning_rate=3e-3,
        validation_share=0.2,
    )  # fmt: skip
    folder = real_data / "hippocampus"
    source = VolumeFiles(
        images=folder / "images", labels=folder / "labels", classes={"anterior": 1, "posterior": 2}, modality="mr"
    )
    found = load_volumes([source], given.classes, "mr", given.validation_share)
    few = Volumes(found.train[:16], found.validation[:8])
    practice = SegmentationPractice(few, given, 0, "cpu", tmp_path)
    before = practice.validate()["validation/dice"]
    told = train(practice, 90)
    after = practice.validate()
    assert before < 0.2
    assert after["validation/dice"] > 0.6
    assert min(after["validation/dice/anterior"], after["validation/dice/posterior"]) > 0.5
    assert 0 < told["loss"] < 0.8
    assert practice.figures() == {"images/anterior": 16, "images/posterior": 16}


def test_a_restart_goes_on_bit_for_bit_with_dropout_and_augmentation(tmp_path: Path) -> None:
    change = {"dropout": 0.3, "augmentation": {"flip": 0.5, "noise": 0.5}}
    whole, parts = begun(tmp_path / "whole", **change), begun(tmp_path / "parts", **change)
    weights = whole.weights()
    for practice in (whole, parts):
        practice.load(weights, proximal_mu=0.1)
    train(whole, 7)
    train(parts, 4)
    parts.save()
    again = begun(tmp_path / "parts", **change)
    assert alike(parts, again)
    train(again, 3)
    assert alike(whole, again)
    other = begun(tmp_path / "parts", seed=1, **change)
    assert other.learner.updates == 0, "the state of another run is not taken"


def test_two_runs_of_one_seed_are_the_same_and_nothing_global_is_seeded(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    one, other, third = (begun(tmp_path / str(n), seed) for n, seed in enumerate((5, 5, 6)))
    for practice in (one, other, third):
        train(practice, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert alike(one, other)
    assert not alike(one, third)


def test_broken_volumes_are_problems_and_the_rest_is_learned_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[4:8, 4:8, 4:8] = 1
        write(tmp_path / "images" / f"{number}.nii.gz", rng.random((16, 16, 16), np.float32))
        write(tmp_path / "labels" / f"{number}.nii.gz", labels)
    write(tmp_path / "labels" / "3.nii.gz", np.full((16, 16, 16), 9, np.uint8))
    write(tmp_path / "images" / "5.nii.gz", np.full((16, 16, 16), np.nan, np.float32))
    (tmp_path / "images" / "6.nii.gz").write_bytes(b"cut off")
    source = {
        "kind": "files", "images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "modality": "mr",
        "classes": {"ball": 1},
    }  # fmt: skip
    place = Place({"volumes": [source]}, 0, "cpu", tmp_path / "run")
    practice = begin(config(classes=("ball",)), place)
    assert practice.examples + len(practice.held_out) == 5
    for start in ("3: its labels have the values 9", "5: 4096 voxels are NaN", "6.nii.gz: cannot be read"):
        assert any(problem.startswith(start) for problem in practice.problems), start
    assert train(practice, 2)["updates"] == 2
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"cut off")
    with pytest.raises(ImageError, match=r"none of the . volumes to learn from can be read.* the first problem: "):
        begin(config(classes=("ball",)), place)


def test_a_site_without_volumes_cannot_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source of volumes is set"):
        begin(config(), Place({}, 0, "cpu", tmp_path))


def test_a_step_that_diverges_leaves_everything_as_it_was(tmp_path: Path) -> None:
    practice = begun(tmp_path, norm="batch")
    train(practice, 1)
    before = practice.weights()
    images, labels = practice.batch()
    with pytest.raises(Diverged, match="update 2 was refused: the loss is nan"):
        practice.learner.step(images * torch.nan, labels)
    assert all((array == before[name]).all() for name, array in practice.weights().items())
    practice.learner.step(images, labels)


def test_the_proximal_term_holds_weights_to_the_rounds(tmp_path: Path) -> None:
    far = []
    for mu in (0.0, 100.0):
        practice = begun(tmp_path / str(mu), learning_rate=1e-3)
        start = practice.weights()
        practice.load(start, mu)
        train(practice, 20)
        far.append(sum(float(np.square(array - start[name]).sum()) for name, array in practice.weights().items()))
    assert far[1] < 0.5 * far[0]


def test_normalisations_stay_at_a_site_when_the_run_says_so(tmp_path: Path) -> None:
    practice = begun(tmp_path, norm="batch", keep_local=("norm",))
    federation = {name: array + 1 for name, array in practice.weights().items()}
    train(practice, 1)
    own = practice.weights()
    practice.load(federation)
    same = {name for name, array in practice.weights().items() if (array == own[name]).all()}
    assert same == {name for name in own if ".adn.N." in name}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    practice, other = begun(tmp_path / "a"), begun(tmp_path / "b", width=8)
    with pytest.raises(TrainingError, match="the weights are not of these networks"):
        practice.load(other.weights())


def test_windows_give_each_voxel_probabilities_that_sum_to_one_whatever_the_volumes_size() -> None:
    learner = Learner(config(), seed=0)
    rng = np.random.default_rng(0)
    for shape in ((40, 17, 16), (9, 30, 5)):
        found = learner.probabilities(rng.random(shape, np.float32))
        assert found.shape == (3, *shape)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_volumes_that_memory_does_not_hold_are_learned_from_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = begun(tmp_path / "held")
    monkeypatch.setattr("agent_trainer.segmentation.practice.IN_MEMORY", 50_000)
    read = begun(tmp_path / "read")
    assert isinstance(read.learn[-1].image, np.memmap)
    for practice in (held, read):
        train(practice, 2)
    assert alike(held, read)
    assert read.validate() == held.validate()


def test_the_rounds_find_segmentation_by_its_name() -> None:
    found = algorithm("segmentation")
    text = config().model_dump_json()
    assert found.read_config(text) == read_config(text)
    with pytest.raises(ConfigError, match="the run's segmentation settings: modality"):
        found.read_config('{"classes": ["a"], "modality": "xray"}')
