"""A classifier leaves as graphs that answer as the run was measured, and a card that says what they take and give."""

import numpy as np
import onnxruntime
import pytest

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import Networks
from agent_trainer.exports import apga, attention
from agent_trainer.exports.card import ModelCard, SiteCard, describe
from agent_trainer.exports.files import export, read_weights
from cairn.errors import TrainingError

MASKED = ApgaConfig(
    classes=("ill", "well"), side=32, channels=1, classifier="small", masker="small", small_channels=(4, 8),
    mask_at_inference=True,
)  # fmt: skip
PATCHES = AttentionConfig(classes=("ill", "well"), channels=1, patch=12, patches=4, filters=4, attention_filters=4)
CARD = ModelCard(
    run="chest",
    round=3,
    rounds=4,
    strategy="fedavg",
    data="frontal chest X-rays",
    licence="CC-BY-4.0",
    sites=(
        SiteCard("north", 30, {"": {"n": 8, "balanced_accuracy": 0.875}}, {"ill": 10, "well": 20}),
        SiteCard("", 12, {}, {"well": 12}),
    ),
    pooled={"": {"n": 8, "balanced_accuracy": 0.75}},
)


def runs(path, **inputs):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


def test_an_apga_classifier_answers_in_onnx_as_at_the_sites_with_masks_and_without(tmp_path):
    learner = Learner(MASKED, seed=3)
    made = export(tmp_path / "model", "apga", learner.weights(), MASKED, CARD)
    assert [path.name for path in made.onnx] == ["model.onnx", "without_masks.onnx"]
    assert made.difference < 1e-4
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), np.uint8)
    for path, masked in zip(made.onnx, (True, False), strict=True):
        (found,) = runs(path, images=images)
        np.testing.assert_allclose(found, learner.probabilities(images, masked=masked), atol=1e-5)
    assert read_weights(made.weights, "apga", MASKED).keys() == learner.weights().keys()
    with pytest.raises(TrainingError, match="is of another architecture"):
        read_weights(made.weights, "attention", PATCHES)


def test_an_attention_run_leaves_where_to_look_and_what_is_there_as_two_graphs_of_any_size(tmp_path):
    networks = Networks(PATCHES, seed=3).eval()
    made = export(tmp_path / "model", "attention", networks.weights(), PATCHES, CARD)
    assert [path.name for path in made.onnx] == ["attention.onnx", "classifier.onnx"]
    rng = np.random.default_rng(0)
    (where,) = runs(made.onnx[0], reduced=rng.integers(0, 256, (2, 1, 9, 31), np.uint8))
    assert where.shape == (2, 9, 31)
    np.testing.assert_allclose(where.sum((1, 2)), 1, rtol=1e-5)
    patches = rng.integers(0, 256, (3, 7, 1, 12, 12), np.uint8)
    even = np.full((3, 7), 1 / 7, np.float32)
    probabilities, votes = runs(made.onnx[1], patches=patches, weights=even)
    np.testing.assert_allclose(np.linalg.norm(votes, axis=-1), 1, rtol=1e-5)
    odds = np.exp(votes.mean(1))
    np.testing.assert_allclose(probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-5)


def test_a_classifiers_card_has_a_row_a_site_one_for_all_and_the_balance_of_classes():
    text = describe(apga.about(MASKED), CARD, 1e-7)
    for said in (
        "A classifier of whole images (ill, well), with adversarial policy-gradient augmentation, trained by 2 sites",
        "- **Classes**: ill, well, in this order",
        "`without_masks.onnx` answers by the image alone",
        "| Site | Images | of ill | of well |",
        "| north | 30 | 10 | 20 |",
        "| site 2 | 12 | 0 | 12 |",
        "| all sites | 42 | 10 | 32 |",
        "| Site | n | balanced_accuracy |",
        "| north | 8 | 0.875 |",
        "| all sites | 8 | 0.75 |",
    ):
        assert said in text


def test_the_card_of_an_attention_run_says_how_patches_are_weighed_and_what_no_graph_has():
    assert "`weights` float32[batch, patches], a_k / Σ a_j each" in describe(attention.about(PATCHES), CARD, 0)
    other = PATCHES.model_copy(update={"sampling": "conditional", "prior": "mixed"})
    text = describe(attention.about(other), CARD, 0)
    assert text.count("**Not in the graphs**") == 2


def test_weights_of_another_classifier_are_refused_and_nothing_is_written(tmp_path):
    other = MASKED.model_copy(update={"small_channels": (4, 4)})
    with pytest.raises(TrainingError, match="the weights are not of these networks"):
        export(tmp_path / "model", "apga", Learner(other, seed=0).weights(), MASKED, CARD)
    assert not (tmp_path / "model").exists()
