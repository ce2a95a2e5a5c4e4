"""Pre-training through a site's rounds: what the middle sends and gets, with two sites in this process."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from agent_trainer.apga_practice import first_weights as first_classifier
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.practice import PRETRAIN
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import flatten, layout_of, unflatten
from agent_trainer.rounds.models import Models
from agent_trainer.rounds.site_work import SiteSettings, SiteWork
from agent_trainer.rounds.validation import merged_metrics
from agent_trainer.rounds.wire import Order
from cairn.figures import algorithm_of, in_words
from tests.agent_trainer.apga_sites import draw, tiny
from tests.agent_trainer.rounds.test_site_work import Edge

CONFIG = PretrainConfig(
    method="autoencoder", side=16, channels=1, small_channels=(4, 8), batch=6, learning_rate=0.01, width=4,
    round_updates=8, validation_share=0.4,
)  # fmt: skip
WEIGHTS = PRETRAIN.first_weights(CONFIG, 3)
LAYOUT = layout_of(WEIGHTS)


def site(folder: Path, number: int) -> SiteWork:
    draw(folder / "images", [0, 1] * 24, number)
    edge = Edge()
    edge.talk = EdgeTalk(edge)
    (folder / "spool").mkdir()
    plain = {"kind": "plain", "images": str(folder / "images")}
    settings = SiteSettings(("eyes",), {"labelled": [plain]}, "cpu", folder / "site", folder / "spool")
    return SiteWork(settings, Models(folder / "models"), edge.talk, number)


def order(number: int, **changes: Any) -> Order:
    values = {
        "run": "eyes", "number": number, "algorithm": "pretrain", "settings": CONFIG.model_dump_json(), "seed": 3,
        "layout": LAYOUT, "evaluate": True, "deadline_s": 120.0,
    }  # fmt: skip
    return Order(**(values | changes))


def test_two_sites_pre_train_one_encoder_and_a_classifier_begins_with_it(tmp_path: Path) -> None:
    sites = [site(tmp_path / str(number), number) for number in range(2)]
    weights, losses = flatten(WEIGHTS), []
    for number in range(1, 5):
        answers = [one.train(order(number), weights) for one in sites]
        told = [metrics for metrics, _ in answers]
        losses.append(PRETRAIN.merge_validation(told)["validation/pretext"])
        share = np.array([metrics["examples"] for metrics in told])
        weights = np.average([vector for _, vector in answers], axis=0, weights=share).astype(np.float32)
        assert merged_metrics(told)["updates"] == 16
        assert all(algorithm_of(metrics) == "pretrain" for metrics in told)
    assert losses[-1] < 0.85 * losses[0], "most of it is noise, which nothing can draw again"
    last = sites[0].evaluate(order(5), weights)
    assert in_words(last)[0].startswith("pretext loss ")
    save_file(unflatten(weights, LAYOUT), tmp_path / "eyes.safetensors")
    begun = first_classifier(tiny(transfer={"weights": tmp_path / "eyes.safetensors"}), 0)
    trained = unflatten(weights, LAYOUT)["classifier.features.0.weight"]
    np.testing.assert_array_equal(begun["classifier.features.0.weight"], trained)
