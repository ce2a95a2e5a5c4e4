"""A site that learns with APGA or one of its baselines: masks, rounds, restarts and what goes wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_trainer import saved_state
from agent_trainer.algorithms import Place, algorithm
from agent_trainer.apga_practice import APGA, ApgaPractice, first_weights
from agent_trainer.labelled.sources import Example, Labelled
from agent_trainer.module_weights import as_weights
from cairn.errors import Diverged, ImageError, TrainingError
from tests.agent_trainer.apga_sites import CLASSES, draw, site, tiny

METHODS = ("apga", "none", "cutout", "gradcam", "end-to-end")
BOTH = [0, 1] * 11


def train(practice: ApgaPractice, updates: int) -> dict[str, float]:
    """Train, and return the last numbers said."""
    said: dict[str, float] = {}
    for progress in practice.train(updates):
        said = progress.numbers()
    return said


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_tell_bright_corners(tmp_path: Path, method: str) -> None:
    practice = site(tmp_path, tiny(method=method, lambda_zeros=0.01, small_norm="group"), BOTH)
    said = train(practice, 30)
    assert said["updates"] == 30
    assert practice.figures()["pretrained"] == 1
    assert ("masked_loss" in said) == (method != "none")
    assert ("reward" in said) == (method == "apga")
    assert ("kept" in said) == (method in ("apga", "end-to-end"))
    assert practice.validate()["validation/accuracy"] == 1
    assert practice.figures()["images/bright"] == 6


def test_pre_training_leaves_the_masker_as_it_is(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(pretrain_updates=4), BOTH)
    before = practice.weights()
    assert "reward" not in train(practice, 4)
    after = practice.weights()
    moved = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"classifier"}
    assert "reward" in train(practice, 1)


def test_pre_training_ends_by_itself_when_the_loss_falls_no_more(tmp_path: Path) -> None:
    settings = tiny(pretrain_updates=500, pretrain_window=2, pretrain_patience=2, learning_rate=1e-9)
    practice = site(tmp_path, settings, BOTH)
    train(practice, 30)
    assert practice.figures()["pretrained"] == 1


def test_the_updates_make_masks_that_hurt_more_probable(tmp_path: Path) -> None:
    """On real networks: after a step with R > b the erasing of the same pixels has become more probable."""
    practice = site(tmp_path, tiny(lambda_zeros=0.0, learning_rate=1e-4, pretrain_updates=20), BOTH)
    train(practice, 20)
    learner = practice.learner
    pixels = practice.images[:6]
    before = learner.mask(pixels).astype(np.float64)
    erased = before > 0.5
    learner.baseline = -10.0  # so that this mask hurts more than was usual
    learner.step(pixels, practice.labels[:6], np.random.default_rng(0))
    after = learner.mask(pixels).astype(np.float64)

    def log_probability(p: Any) -> float:
        return float(np.log(np.where(erased, p, 1 - p)).sum())

    assert log_probability(after) > log_probability(before)


@pytest.mark.parametrize(("pull", "kept"), [(-50.0, "zero"), (50.0, "one")])
def test_collapsed_masks_are_told_and_brought_back(tmp_path: Path, pull: float, kept: str) -> None:
    practice = site(tmp_path, tiny(pretrain_updates=0, learning_rate=1e-4), BOTH)
    weights = practice.weights()
    weights["masker.model.2.conv.bias"][:] = pull
    practice.load(weights)
    train(practice, 4)
    assert practice.figures()["masks/collapses"] == 1
    assert f"collapsed to all {kept}" in practice.problems[0]
    said = train(practice, 1)
    assert 0.2 < said["kept"] < 0.8, "after the remedy the masks divide the image again"
    assert practice.figures()["masks/collapses"] == 1
    assert practice.figures()["masks/restarts"] == 0


def pulled(folder: Path, pull: float) -> ApgaPractice:
    """Make a site whose masks have collapsed, and one of whose images is broken."""
    draw(folder / "images", BOTH)
    (folder / "images" / "0.png").write_bytes(b"no image")
    examples = [Example(f"{i}.png", folder / "images" / f"{i}.png", label, f"{i}") for i, label in enumerate(BOTH)]
    practice = ApgaPractice(
        Labelled(tuple(examples), ()), tiny(pretrain_updates=0, learning_rate=1e-4), 0, "cpu", folder / "run"
    )
    if not practice.learner.updates:
        weights = practice.weights()
        weights["masker.model.2.conv.bias"][:] = pull
        practice.load(weights)
    return practice


def test_a_collapse_is_the_first_of_the_problems_and_is_kept_over_a_restart(tmp_path: Path) -> None:
    practice = pulled(tmp_path, -50.0)
    assert "0.png" in practice.problems[0]
    train(practice, 3)
    assert "collapsed to all zero" in practice.problems[0]
    assert len(practice.problems) == 2
    practice.save()
    again = pulled(tmp_path, -50.0)
    assert again.learner.updates == 3
    assert again.problems == practice.problems


def test_collapsed_masks_are_brought_back_when_the_round_is_cut_short_and_the_same_way_each_time(
    tmp_path: Path,
) -> None:
    left = []
    for name in ("a", "b"):
        practice = pulled(tmp_path / name, 50.0)
        for progress in practice.train(100):
            if progress.updates == 4:
                break
        assert practice.figures()["masks/collapses"] == 1
        assert "collapsed to all one" in practice.problems[0]
        kept = float((practice.learner.mask(practice.images) > 0.5).mean())
        assert 0.2 < kept < 0.8, "what is handed over has masks that divide the image"
        left.append(practice.weights())
    assert same(*left)


def test_a_masker_that_says_the_same_of_all_pixels_begins_anew(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(pretrain_updates=0, learning_rate=1e-9), BOTH)
    weights = practice.weights()
    for name, array in weights.items():
        if name.startswith("masker."):
            array[...] = 0
    weights["masker.model.2.conv.bias"][:] = -3
    practice.load(weights)
    train(practice, 2)
    assert practice.figures()["masks/restarts"] == 1
    assert 0.2 < train(practice, 1)["kept"] < 0.8


def test_masks_that_divide_the_image_are_left_alone(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(pretrain_updates=0, learning_rate=1e-4), BOTH)
    weights = practice.weights()
    kept = float((practice.learner.mask(practice.images) > 0.5).mean())
    assert 0.05 < kept < 0.95
    train(practice, 3)
    assert practice.figures()["masks/collapses"] == 0
    assert abs(float(practice.weights()["masker.model.2.conv.bias"][0] - weights["masker.model.2.conv.bias"][0])) < 0.01


@pytest.mark.parametrize("method", ["apga", "gradcam"])
def test_a_new_practice_in_the_same_folder_goes_on_as_if_nothing_had_been(tmp_path: Path, method: str) -> None:
    config = tiny(method=method)
    through, first = site(tmp_path / "a", config, BOTH), site(tmp_path / "b", config, BOTH)
    train(through, 5)
    train(through, 4)
    train(first, 5)
    first.save()
    again = site(tmp_path / "b", config, BOTH)
    assert again.figures()["pretrained"] == 1
    train(again, 4)
    assert same(through.weights(), again.weights())


def test_a_restart_in_the_middle_of_pre_training_goes_on_with_it(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(pretrain_updates=6), BOTH)
    train(practice, 4)
    practice.save()
    again = site(tmp_path, tiny(pretrain_updates=6), BOTH)
    assert "reward" not in train(again, 2)
    assert "reward" in train(again, 1)


def test_a_saved_state_of_another_method_is_passed_over(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    train(practice, 4)
    practice.save()
    other = site(tmp_path, tiny(method="cutout"), BOTH)
    assert other.learner.updates == 0
    with pytest.raises(TrainingError, match="of another run"):
        other.learner.read(tmp_path / "run" / "apga.safetensors")


@pytest.mark.parametrize(("settings", "seed"), [({}, 1), ({"lambda_zeros": 0.2}, 0)])
def test_a_saved_state_of_another_seed_or_other_settings_is_passed_over(
    tmp_path: Path, settings: dict[str, Any], seed: int
) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    train(practice, 4)
    practice.save()
    assert site(tmp_path, tiny(), BOTH).learner.updates == 4
    assert site(tmp_path, tiny(**settings), BOTH, seed=seed).learner.updates == 0


def without_last(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors.pop("live.5")


def of_another_shape(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["live.5"] = torch.zeros(7, 7)


def without_frozen(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors.pop("pretrained.head.bias")


def of_another_phase(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    state["pretraining"] = {"phase": 3}


def without_updates(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    state.pop("updates")


def without_queue(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors.pop("queue")


def with_draws_of_another_kind(state: dict[str, Any], tensors: dict[str, Any]) -> None:
    state["caller"]["rng"] = {"bit_generator": "MT19937"}


SPOILT = [
    without_last, of_another_shape, without_frozen, of_another_phase, without_updates, without_queue,
    with_draws_of_another_kind,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=[spoil.__name__ for spoil in SPOILT])
def test_a_saved_state_of_another_shape_is_passed_over_as_a_whole(tmp_path: Path, spoil: Any) -> None:
    config = tiny(method="gradcam")
    begun = site(tmp_path, config, BOTH).weights()
    practice = site(tmp_path, config, BOTH)
    train(practice, 5)
    practice.save()
    path, run = tmp_path / "run" / "apga.safetensors", saved_state.digest(0, config)
    tensors, state = saved_state.read(path, run)
    spoil(state, tensors)
    saved_state.write(path, run, tensors, state)
    again = site(tmp_path, config, BOTH)
    assert again.learner.updates == 0
    assert same(again.weights(), begun)
    train(again, 4)
    assert again.figures()["pretrained"] == 1


def test_without_pre_training_grad_cam_looks_through_the_weights_that_the_run_begins_with(tmp_path: Path) -> None:
    config = tiny(method="gradcam", pretrain_updates=0)
    begun = first_weights(config, 99)
    practice = site(tmp_path, config, BOTH)
    assert not np.array_equal(practice.weights()["classifier.head.weight"], begun["classifier.head.weight"])
    practice.load(begun)
    train(practice, 2)
    assert practice.learner._pretrained is not None
    practice.load(first_weights(config, 5))
    train(practice, 2)
    frozen = as_weights(practice.learner._pretrained)
    assert same(frozen, {name.removeprefix("classifier."): array for name, array in begun.items()})
    practice.save()
    again = site(tmp_path, config, BOTH)
    assert again.learner._pretrained is not None
    assert same(as_weights(again.learner._pretrained), frozen)
    train(practice, 2)
    train(again, 2)
    assert same(practice.weights(), again.weights())


def test_grad_cam_does_not_look_through_weights_from_which_the_first_step_diverged(tmp_path: Path) -> None:
    config = tiny(method="gradcam", pretrain_updates=0)
    practice = site(tmp_path, config, BOTH)
    with torch.no_grad():
        practice.learner.networks["classifier"].get_parameter("head.bias").fill_(torch.nan)
    with pytest.raises(Diverged):
        train(practice, 1)
    begun = first_weights(config, 99)
    practice.load(begun)
    train(practice, 1)
    assert practice.learner._pretrained is not None
    frozen = as_weights(practice.learner._pretrained)
    assert np.array_equal(frozen["head.bias"], begun["classifier.head.bias"])


def test_a_broken_saved_state_is_passed_over(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    practice.save()
    (tmp_path / "run" / "apga.safetensors").write_bytes(b"half a file")
    assert site(tmp_path, tiny(), BOTH).learner.updates == 0


def test_the_average_of_two_sites_is_loaded_by_both(tmp_path: Path) -> None:
    sites = [site(tmp_path / str(i), tiny(), BOTH, seed=i) for i in range(2)]
    begun = first_weights(tiny(), 7)
    for practice in sites:
        practice.load(begun)
        train(practice, 5)
    weights = [practice.weights() for practice in sites]
    mean = {name: np.asarray((array + weights[1][name]) / 2, np.float32) for name, array in weights[0].items()}
    for practice in sites:
        practice.load(mean)
        assert same(practice.weights(), mean)
        train(practice, 1)
        assert np.isfinite(practice.validate()["validation/auc"])
    assert not same(weights[0], weights[1])


def test_statistics_of_batch_norm_travel_and_a_variance_below_zero_becomes_zero(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    train(practice, 2)
    weights = practice.weights()
    assert weights["classifier.features.1.num_batches_tracked"] == 2
    assert weights["classifier.features.1.running_var"].dtype == np.float32
    weights["classifier.features.1.running_var"] -= 5
    weights["classifier.features.1.num_batches_tracked"] -= 5
    practice.load(weights)
    assert not practice.weights()["classifier.features.1.running_var"].any()
    assert practice.weights()["classifier.features.1.num_batches_tracked"] == 0
    assert np.isfinite(practice.answers(practice.held_out)).all()


def test_fedprox_holds_both_networks_to_the_round_s_weights(tmp_path: Path) -> None:
    moved = []
    for mu in (0.0, 1000.0):
        practice = site(tmp_path / str(mu), tiny(pretrain_updates=0, learning_rate=1e-3), BOTH)
        begun = practice.weights()
        practice.load(begun, mu)
        train(practice, 10)
        after = practice.weights()
        parts = ("classifier.features.0.weight", "masker.model.0.conv.weight")
        moved.append([float(np.abs(after[name] - begun[name]).mean()) for name in parts])
    assert all(held < free / 2 for free, held in zip(*moved, strict=True))


def test_weights_of_another_shape_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    before = practice.weights()
    with pytest.raises(TrainingError, match=r"classifier\.head\.weight is \(3, 8\), \(2, 8\) was expected"):
        practice.load(
            first_weights(tiny(classes=("a", "b", "c")), 0) | {"classifier.head.bias": before["classifier.head.bias"]}
        )
    with pytest.raises(TrainingError, match=r"masker.* is not there"):
        practice.load({name: array for name, array in before.items() if name.startswith("classifier.")})
    assert same(practice.weights(), before)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    before = practice.weights()
    broken = {**before, "classifier.head.bias": np.array([np.nan, 0], np.float32)}
    with pytest.raises(Diverged, match="not all finite"):
        practice.load(broken)
    assert same(practice.weights(), before)


@pytest.mark.parametrize("network", ["classifier", "masker"])
def test_a_step_that_diverges_leaves_everything_as_it_was(tmp_path: Path, network: str) -> None:
    """The masker's loss comes after the classifier's first step: that step is taken back too."""
    practice = site(tmp_path, tiny(), BOTH)
    train(practice, 5)
    with torch.no_grad():
        practice.learner.networks[network].get_parameter(
            "head.bias" if network == "classifier" else "model.2.conv.bias"
        ).fill_(torch.nan)
    before = practice.weights()
    with pytest.raises(Diverged, match=f"loss of the {network}"):
        train(practice, 1)
    after = practice.weights()
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    assert practice.learner.updates == 5


@pytest.mark.parametrize("balance", ["none", "weights", "sampler"])
def test_a_site_of_one_class_trains(tmp_path: Path, balance: str) -> None:
    practice = site(tmp_path, tiny(balance=balance), [1] * 16)
    said = train(practice, 6)
    assert np.isfinite(list(said.values())).all()
    assert practice.validate()["validation/accuracy"] == 1
    assert practice.figures()["images/dark"] == 0


def test_a_site_with_fewer_images_than_a_batch_trains(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), [0, 1], held_out=0)
    assert train(practice, 5)["updates"] == 5
    assert practice.validate() == {}


def test_class_weights_count_the_rare_class_as_much_as_the_common_one(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(balance="weights"), [0] * 9 + [1] * 3, held_out=0)
    assert practice.learner._weigh is not None
    assert practice.learner._weigh.tolist() == pytest.approx([12 / 18, 2])


def test_masks_at_inference_are_averaged_with_the_image_as_it_is(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), BOTH)
    train(practice, 6)
    pixels = practice.held_out
    kept = practice.learner.mask(pixels) > 0.5
    x = practice.learner.scaled(pixels)
    classifier = practice.learner.networks["classifier"].eval()
    with torch.inference_mode():
        alone = torch.softmax(classifier(x), 1)
        masked = torch.softmax(classifier(x * torch.tensor(kept)[:, None]), 1)
    assert practice.learner.probabilities(pixels).tolist() == alone.tolist()
    both = practice.learner.probabilities(pixels, masked=True)
    assert both == pytest.approx(((alone + masked) / 2).numpy())
    asked = site(tmp_path / "asked", tiny(mask_at_inference=True), BOTH)
    asked.load(practice.weights())
    assert asked.answers(pixels) == pytest.approx(both)


def test_images_that_cannot_be_read_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    examples = draw(tmp_path / "images", [0, 1, 0, 1])
    examples[0].path.write_bytes(b"no image")
    practice = ApgaPractice(Labelled(examples, ()), tiny(), 0, "cpu", tmp_path / "run")
    assert practice.examples == 3
    assert len(practice.problems) == 1
    for example in examples:
        example.path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 4 images"):
        ApgaPractice(Labelled(examples, ()), tiny(), 0, "cpu", tmp_path / "run")


def test_three_classes_are_learned(tmp_path: Path) -> None:
    config = tiny(classes=("a", "b", "c"), small_norm="group")
    practice = site(tmp_path, config, [0, 1] * 4 + [1, 0], held_out=2)
    train(practice, 6)
    assert practice.answers(practice.held_out).shape == (2, 3)


def test_the_seam_begins_a_few_shot_run_of_one_group_at_a_site(tmp_path: Path) -> None:
    draw(tmp_path / "all" / "wrist" / "bad", [1] * 12, 1)
    draw(tmp_path / "all" / "wrist" / "good", [0] * 12, 2)
    draw(tmp_path / "all" / "elbow" / "good", [0] * 12, 3)
    rows = [
        f"{part}/{word}/{i}.png,{word},{part}"
        for part, word in (("wrist", "bad"), ("wrist", "good"), ("elbow", "good"))
        for i in range(12)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,group", *rows]), encoding="utf-8")
    table = {
        "kind": "files",
        "images": str(tmp_path / "all"),
        "labels": str(tmp_path / "labels.csv"),
        "classes": {"dark": "good", "bright": "bad"},
    }
    settings = tiny(groups=("wrist",), shots=3, validation_share=0.5).model_dump_json()
    config = APGA.read_config(settings)
    place = Place({"labelled": [table]}, 3, "cpu", tmp_path / "run")
    practice = APGA.begin(config, place)
    practice.load(APGA.first_weights(config, 0))
    assert practice.examples == 6
    assert [practice.figures()[f"images/{name}"] for name in CLASSES] == [3, 3]
    for _ in practice.train(4):
        pass
    own = practice.validate()
    assert 10 <= own["validation/n"] <= 18, "of the wrist alone"
    merged = APGA.merge_validation([own, own])
    assert merged["validation/n"] == 2 * own["validation/n"]
    assert algorithm("apga") is APGA


def test_real_chest_radiographs_train_through_the_paper_s_networks(real_data: Path, tmp_path: Path) -> None:
    config = APGA.read_config(
        tiny(
            classes=("No_findings", "Pneumonia"), classifier="densenet121", masker="vgg11-unet", side=32, batch=4,
            shots=4, pretrain_updates=1,
        ).model_dump_json()
    )  # fmt: skip
    table = {"kind": "folders", "images": str(real_data / "cxr_nih224"), "patient": "^([0-9]+)_", "validation": None}
    labelled = Place({"labelled": [table]}, 0, "cpu", tmp_path)
    practice = APGA.begin(config.model_copy(update={"validation_share": 0.02}), labelled)
    assert practice.examples == 8
    said: dict[str, float] = {}
    for progress in practice.train(2):
        said = progress.numbers()
    assert np.isfinite(list(said.values())).all()
    assert practice.validate()["validation/n"] >= 2
