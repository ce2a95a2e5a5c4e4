"""Weights from elsewhere, and which layers then train: in APGA's classifier and in a DQN."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from agent_trainer.algorithms import Weights
from agent_trainer.apga_networks import CLASSIFIER, last_layer, networks
from agent_trainer.apga_practice import ApgaPractice, first_weights, remarks
from agent_trainer.config import DqnConfig
from agent_trainer.craft.transfer import Transfer, begin_with, freeze, hold_still, load_encoder
from agent_trainer.dqn import Batch, Learner
from agent_trainer.dqn_practice import first_weights as first_agent
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import Learner as Segmenter
from cairn.errors import ConfigError
from tests.agent_trainer.apga_sites import site, tiny

BOTH = [0, 1] * 11
HEAD = ("head",)
ENCODER = "classifier.features."


def changed(practice: ApgaPractice, before: Weights) -> set[str]:
    """Name the layers whose weights or statistics are no longer the same bits."""
    after = practice.weights()
    return {name.rpartition(".")[0] for name in before if not np.array_equal(before[name], after[name])}


def train(practice: ApgaPractice, updates: int) -> None:
    for _ in practice.train(updates):
        pass


@pytest.mark.parametrize("method", ["none", "apga", "cutout", "gradcam", "end-to-end"])
def test_frozen_layers_and_their_statistics_stay_the_same_bits_with_every_method(tmp_path: Path, method: str) -> None:
    practice = site(tmp_path, tiny(method=method, transfer={"mode": "frozen"}), BOTH)
    before = practice.weights()
    train(practice, 8)
    assert {name for name in changed(practice, before) if name.startswith(CLASSIFIER)} == {"classifier.head"}
    assert practice.figures()["train/share"] == pytest.approx(18 / 366)


def test_selective_fine_tuning_trains_the_layers_named_and_the_last_one(tmp_path: Path) -> None:
    chosen = {"mode": "selective", "train": ["features.[45]"]}
    practice = site(tmp_path, tiny(method="none", transfer=chosen), BOTH)
    before = practice.weights()
    train(practice, 4)
    assert changed(practice, before) == {f"{ENCODER}4", f"{ENCODER}5", "classifier.head"}


def test_two_stages_switch_at_their_update_and_the_rate_falls_there(tmp_path: Path) -> None:
    stages = {"mode": "two-stage", "frozen_updates": 3, "later_rate": 0.01}
    practice = site(tmp_path, tiny(method="none", transfer=stages), BOTH)
    before = practice.weights()
    train(practice, 3)
    assert changed(practice, before) == {"classifier.head"}
    middle = practice.weights()
    train(practice, 1)
    assert f"{ENCODER}0" in changed(practice, middle)
    moved = [np.abs(a[f"{ENCODER}0.weight"] - middle[f"{ENCODER}0.weight"]).max() for a in (practice.weights(),)]
    assert 0 < moved[0] <= 1.01 * practice.config.learning_rate * 0.01, "Adam's first step is as long as the rate"


def test_a_restart_between_the_stages_goes_on_in_the_right_one(tmp_path: Path) -> None:
    stages = tiny(method="none", transfer={"mode": "two-stage", "frozen_updates": 3})
    practice = site(tmp_path, stages, BOTH)
    train(practice, 2)
    practice.save()
    again = site(tmp_path, stages, BOTH)
    again.load(practice.weights())
    before = again.weights()
    train(again, 1)
    assert changed(again, before) == {"classifier.head"}
    train(again, 1)
    assert f"{ENCODER}0" in changed(again, before)


def test_fedprox_holds_what_trains_and_asks_nothing_of_the_rest(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(method="none", transfer={"mode": "frozen"}), BOTH)
    practice.load(practice.weights(), 0.5)
    before = practice.weights()
    train(practice, 3)
    assert changed(practice, before) == {"classifier.head"}


def test_dropout_among_still_layers_is_off_and_before_the_last_layer_it_is_on() -> None:
    classifier = networks(tiny(dropout=0.5), 0)[CLASSIFIER].train()
    hold_still(classifier, freeze(classifier, Transfer(mode="frozen"), 0, HEAD))
    assert not any(layer.training for layer in classifier.features.modules())
    assert classifier.dropout.training


def test_an_encoder_is_found_behind_the_word_that_its_file_puts_before_its_names(tmp_path: Path) -> None:
    given = networks(tiny(), 7)[CLASSIFIER]
    for prefix in ("", "classifier.", "module.", "model.encoder."):
        path = tmp_path / "weights.safetensors"
        save_tensors({prefix + name: t.contiguous() for name, t in given.state_dict().items()}, path)
        built = networks(tiny(), 0)[CLASSIFIER]
        head = built.head.weight.clone()
        loaded = load_encoder(built, path, HEAD)
        assert torch.equal(built.features[0].weight, given.features[0].weight)
        assert torch.equal(built.head.weight, head), "the last layer begins anew"
        assert len(loaded.taken) == len(given.features.state_dict())
        assert set(loaded.absent) == {"head.weight", "head.bias"}
        load_encoder(built, path, HEAD, keep_last=True)
        assert torch.equal(built.head.weight, given.head.weight)


def test_a_state_dict_of_torch_is_read_and_three_channels_become_the_one_of_grey_images(tmp_path: Path) -> None:
    given = networks(tiny(channels=3), 7)[CLASSIFIER]
    torch.save({"state_dict": given.state_dict()}, tmp_path / "weights.pt")
    built = networks(tiny(), 0)[CLASSIFIER]
    load_encoder(built, tmp_path / "weights.pt", HEAD)
    assert torch.equal(built.features[0].weight, given.features[0].weight.sum(1, keepdim=True))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Harm()}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        load_encoder(networks(tiny(), 0)[CLASSIFIER], tmp_path / "weights.pt", HEAD)
    assert not (tmp_path / "ran").exists()


def save(path: Path, weights: Weights) -> Path:
    save_file(weights, path)
    return path


def test_a_file_that_cannot_serve_is_one_sentence_that_says_what_fits(tmp_path: Path) -> None:
    def error(path: Path, **settings: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            first_weights(tiny(transfer={"weights": path, **settings}), 0)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "there is no file" in error(tmp_path / "none.safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    assert "holds no weights that can be read" in error(tmp_path / "text.pt")
    wide = save(tmp_path / "wide.safetensors", first_weights(tiny(small_channels=(4, 16)), 0))
    said = error(wide)
    assert "7 of 12 tensors fit (features.0.weight, features.1.weight" in said
    assert "features.4.weight is (16, 4, 3, 3) for (8, 4, 3, 3)" in said
    other = save(tmp_path / "other.safetensors", {"convolutions.0.weight": np.zeros((4, 1, 3, 3), np.float32)})
    assert "none of its tensors fits; expected features.0.weight" in error(other)
    broken = first_weights(tiny(), 0)
    broken[f"{ENCODER}0.weight"][0] = np.nan
    assert "not finite" in error(save(tmp_path / "nan.safetensors", broken))
    part = {name: a for name, a in first_weights(tiny(), 0).items() if name.startswith(f"{ENCODER}0")}
    short = save(tmp_path / "short.safetensors", part)
    assert "would stay random" in error(short, mode="frozen")
    assert first_weights(tiny(transfer={"weights": short}), 0).keys() == first_weights(tiny(), 0).keys()


def test_what_settings_cannot_mean_is_refused() -> None:
    for wrong in (
        {"mode": "selective"},
        {"train": ["head"]},
        {"mode": "two-stage"},
        {"mode": "frozen", "frozen_updates": 5},
        {"later_rate": 0.5},
    ):
        with pytest.raises(ValidationError):
            Transfer.model_validate(wrong)
    with pytest.raises(ValidationError, match="both name a file"):
        tiny(classifier_weights="a.pt", transfer={"weights": "b.pt"})
    built = networks(tiny(), 0)[CLASSIFIER]
    with pytest.raises(ConfigError, match=r"no layer is called feature\.0; there are features\.0, features\.1"):
        begin_with(built, Transfer(mode="selective", train=("feature.0",)), HEAD)


def test_a_run_s_log_says_which_layers_train(tmp_path: Path) -> None:
    path = save(tmp_path / "chest.safetensors", first_weights(tiny(), 0))
    (said,) = remarks(tiny(transfer={"weights": path, "mode": "frozen"}))
    assert said == (
        "begins with chest.safetensors; 1 of 5 layers train, 18 of 366 parameters (4.9%): head; still: features.0, "
        "features.1, features.4, features.5"
    )
    (said,) = remarks(tiny(transfer={"mode": "two-stage", "frozen_updates": 20, "later_rate": 0.1}))
    assert said.startswith("its first weights are drawn; in the first 20 updates of a site 1 of 5 layers train")
    assert said.endswith("then every layer, at 0.1 of the learning rate")
    assert remarks(tiny()) == ()


def test_a_dense_net_s_last_layer_is_known() -> None:
    config = tiny(classifier="densenet121", side=32, masker="vgg11-unet")
    report = freeze(networks(config, 0)[CLASSIFIER], Transfer(mode="frozen"), 0, last_layer(config))
    assert [layer.name for layer in report.trains] == ["class_layers.out"]
    assert report.share < 0.001


AGENT = DqnConfig(box=12, channels=(4, 6), kernels=(3, 3), hidden=(8,), duelling=True, batch=4, history=2)


def batch(rng: np.random.Generator) -> Batch:
    states = rng.integers(0, 256, (2, 4, *AGENT.state_shape), np.uint8)
    ones = np.ones(4, np.float32)
    return Batch(states[0], np.zeros(4, np.int64), np.arange(4), ones, 0.9 * ones, states[1], ones, np.arange(4))


def agent(**transfer: Any) -> DqnConfig:
    return AGENT.model_copy(update={"transfer": Transfer(**transfer)})


def test_a_dqn_s_convolutions_come_from_a_file_and_stay_while_what_is_behind_them_learns(tmp_path: Path) -> None:
    path = save(tmp_path / "eyes.safetensors", first_agent(AGENT, 5))
    config = agent(weights=path, mode="frozen")
    weights = first_agent(config, 0)
    given = first_agent(AGENT, 5)
    assert np.array_equal(weights["convolutions.1.weight"], given["convolutions.1.weight"])
    assert not np.array_equal(weights["hidden.0.weight"], given["hidden.0.weight"])
    learner = Learner(config, 1, 4, seed=0)
    learner.load(weights)
    for seed in range(3):
        learner.update(batch(np.random.default_rng(seed)))
    after = learner.weights()
    still = {name.split(".")[0] for name in weights if np.array_equal(weights[name], after[name])}
    assert still == {"convolutions"}


def test_a_dqn_restored_in_its_second_stage_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = agent(mode="two-stage", frozen_updates=2)
    one, other = (Learner(config, 1, 4, seed=0) for _ in range(2))
    for seed in range(4):
        if seed == 3:
            one.save(tmp_path / "state")
            other.restore(tmp_path / "state")
        one.update(batch(np.random.default_rng(seed)))
    other.update(batch(np.random.default_rng(3)))
    assert all(np.array_equal(array, other.weights()[name]) for name, array in one.weights().items())
    other.restore(tmp_path / "state")
    assert int(other._adam.state[other._parameters["convolutions.0.weight"]]["step"]) == 1
    assert int(other._adam.state[other._parameters["last.weight"]]["step"]) == 3


def test_a_segmentation_s_last_layer_trains_first_and_then_all_of_it() -> None:
    config = SegmentationConfig(
        classes=("spleen",), modality="mr", network="segresnet", width=4, depth=2, patch=(8, 8, 8), norm="batch",
        transfer={"mode": "two-stage", "frozen_updates": 2},
    )  # fmt: skip
    learner = Segmenter(config, seed=0)
    before = learner.weights()
    images, labels = torch.rand(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8))
    for update in range(3):
        learner.step(images, labels)
        moved = {name for name, array in learner.weights().items() if not np.array_equal(array, before[name])}
        assert ({name.split(".")[0] for name in moved} == {"conv_final"}) == (update < 2)
    assert "convInit.conv.weight" in moved
