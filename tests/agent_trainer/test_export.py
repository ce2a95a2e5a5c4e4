"""A model leaves as weights that say what they are, a card for people, and ONNX that computes the same."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from agent_trainer.config import DqnConfig, read_config
from agent_trainer.dqn import Learner
from agent_trainer.exports import dqn
from agent_trainer.exports.card import ModelCard, SiteCard, describe
from agent_trainer.exports.files import export, read_weights, write_weights
from agent_trainer.exports.graphs import check_onnx, to_onnx
from agent_trainer.networks import QNetwork
from cairn.errors import TrainingError

FLAT = DqnConfig(tasks=("sella", "nasion"), box=25, channels=(4, 6), kernels=(5, 3), hidden=(16,), scales=(4, 1))
SOLID = DqnConfig(axes=3, box=12, pool=(2, 2, 2), channels=(4, 6), kernels=(5, 3), hidden=(16,), duelling=True)
CARD = ModelCard(
    run="ceph",
    round=12,
    rounds=20,
    strategy="fedavg",
    data="lateral X-rays of heads, 1 mm pixels",
    licence="CC-BY-4.0",
    sites=(
        SiteCard(
            "north", 50, {"sella": {"n": 10, "mean_mm": 2.34567}, "nasion": {"n": 9, "mean_mm": 3.0, "sdr_2": 0.5}}
        ),
        SiteCard("", 40),
    ),
    privacy={"masking": "on", "noise": "none"},
)


def learner(config: DqnConfig = FLAT) -> Learner:
    return Learner(config, len(config.tasks), config.actions, seed=4)


def weights_file(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(write_weights("dqn", learner().weights(), FLAT, CARD))
    return path


@pytest.mark.parametrize("config", [FLAT, SOLID], ids=["2D", "3D and duelling"])
def test_the_onnx_model_gives_torchs_q_for_any_batch(tmp_path, config):
    made = learner(config)
    written = export(tmp_path / "model", "dqn", made.weights(), config, CARD)
    assert written.difference < 1e-4
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "MODEL_CARD.md",
        "model.onnx",
        "weights.safetensors",
    ]
    assert read_weights(written.weights, "dqn", config).keys() == made.weights().keys()
    assert written.card.read_text(encoding="utf-8") == describe(dqn.about(config), CARD, written.difference)
    session = onnxruntime.InferenceSession(written.onnx[0], providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch in (1, 3, 17):
        states = rng.integers(0, 256, (batch, *config.state_shape), np.uint8)
        task = rng.integers(0, len(config.tasks), batch)
        (q,) = session.run(["q"], {"states": states, "task": task})
        assert np.allclose(q, made.q_values(states, task), atol=1e-4)


def test_the_onnx_model_names_its_axes_and_nothing_of_this_machine(tmp_path):
    graph = to_onnx(dqn.graph_of(QNetwork(FLAT, 4, 2)))
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model)
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"states": ["batch", 4, 25, 25], "task": ["batch"], "q": ["batch", 4]}
    assert b"agent_trainer" not in graph
    assert b".py" not in graph


def test_an_onnx_model_that_computes_another_q_is_refused():
    graph = to_onnx(dqn.graph_of(QNetwork(FLAT, 4, 2, seed=1)))
    with pytest.raises(TrainingError, match="ONNX model's Q differs from torch's by up to"):
        check_onnx(graph, dqn.graph_of(QNetwork(FLAT, 4, 2, seed=2)))


def test_the_weights_come_back_and_their_header_says_what_they_are(tmp_path):
    made, path = learner(), weights_file(tmp_path)
    found = read_weights(path, "dqn", FLAT)
    assert found.keys() == made.weights().keys()
    assert all(np.array_equal(found[name], array) for name, array in made.weights().items())
    with safe_open(path, "np") as file:
        about = file.metadata()
    assert (about["run"], about["round"], about["algorithm"]) == ("ceph", "12", "dqn")
    assert read_config(about["settings"]) == FLAT
    assert json.loads(about["card"])["licence"] == "CC-BY-4.0"
    assert json.loads(about["card"])["privacy"] == {"masking": "on", "noise": "none"}


def test_a_checkpoint_of_another_architecture_is_refused_naming_both(tmp_path):
    path = weights_file(tmp_path)
    with pytest.raises(TrainingError, match=r"found 2D, .*hidden 16,.* expected 2D, .*hidden 32,"):
        read_weights(path, "dqn", FLAT.model_copy(update={"hidden": (32,)}))


def test_settings_that_do_not_shape_the_network_may_differ(tmp_path):
    assert read_weights(weights_file(tmp_path), "dqn", FLAT.model_copy(update={"gamma": 0.5, "tasks": ("a", "b")}))


def test_weights_of_another_network_than_their_settings_say_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TrainingError, match="the weights are not of the network 3D"):
        export(tmp_path / "model", "dqn", learner().weights(), SOLID, CARD)
    assert not (tmp_path / "model").exists()


def test_what_is_no_weights_file_is_refused(tmp_path):
    (tmp_path / "noise").write_bytes(b"\x00" * 64)
    with pytest.raises(TrainingError, match="noise is no weights file"):
        read_weights(tmp_path / "noise", "dqn", FLAT)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other")
    with pytest.raises(TrainingError, match="other does not say of which network it is"):
        read_weights(tmp_path / "other", "dqn", FLAT)


def test_the_card_says_data_sites_rounds_measures_privacy_and_licence():
    text = describe(dqn.about(FLAT), CARD, 1e-7)
    for said in (
        "# ceph, round 12",
        "sella, nasion",
        "CC-BY-4.0",
        "lateral X-rays of heads",
        "20 rounds, joined by fedavg",
        "| north | 50 |",
        "| site 2 | 40 |",
        "| Site | Landmark | n | mean_mm | sdr_2 |",
        "| north | sella | 10 | 2.346 |  |",
        "| north | nasion | 9 | 3 | 0.5 |",
        "- **masking**: on",
        "Not a medical device",
        '"gamma": 0.9',
    ):
        assert said in text


def test_a_card_without_measures_says_so():
    text = describe(dqn.about(FLAT), ModelCard("a", 1, 1, "fedavg", "none", "none"), 0)
    assert "None were reported." in text
    assert "Nothing was stated." in text
