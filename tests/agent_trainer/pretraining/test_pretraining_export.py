"""An encoder leaves as a graph that gives the features of the run, and as weights that a classifier begins with."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent_trainer.apga_practice import first_weights
from agent_trainer.exports import pretrain
from agent_trainer.exports.card import ModelCard, describe
from agent_trainer.exports.files import export, read_weights
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.learner import Learner
from tests.agent_trainer.apga_sites import tiny

CARD = ModelCard(run="eyes", round=3, rounds=4, strategy="fedavg", data="chest X-rays", licence="CC-BY-4.0")
SMALL = PretrainConfig(method="jigsaw", grid=2, side=16, channels=1, small_channels=(4, 8))
AGENT = PretrainConfig(
    method="masked", encoder="dqn", patch=3, agent={"box": 12, "history": 2, "channels": (4, 6), "kernels": (3, 3)}
)


@pytest.mark.parametrize("config", [SMALL, AGENT])
def test_an_encoder_gives_in_onnx_the_features_that_it_gives_here(tmp_path: Path, config: PretrainConfig) -> None:
    learner = Learner(config, seed=3)
    made = export(tmp_path / "model", "pretrain", learner.weights(), config, CARD)
    images = np.random.default_rng(0).integers(0, 256, (3, *config.shape), np.uint8)
    session = onnxruntime.InferenceSession(made.onnx[0], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, learner.features(images), atol=1e-5)
    assert read_weights(made.weights, "pretrain", config).keys() == learner.weights().keys()


def test_an_export_is_what_transfer_takes_and_the_card_says_so(tmp_path: Path) -> None:
    learner = Learner(SMALL, seed=3)
    made = export(tmp_path / "model", "pretrain", learner.weights(), SMALL, CARD)
    begun = first_weights(tiny(transfer={"weights": made.weights, "mode": "frozen"}), 0)
    for name, array in learner.weights().items():
        assert name.startswith("pretext.") or np.array_equal(begun[name], array), name
    text = describe(pretrain.about(SMALL), CARD, 0)
    assert "by telling apart the orders in which tiles of images were laid, trained by" in text
    assert "`transfer.weights` of that run is `weights.safetensors`" in text
