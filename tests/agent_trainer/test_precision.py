"""Mixed precision and torch.compile: what each learner makes of them, with a GPU and without."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner as ApgaLearner
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_learner import AttentionLearner
from agent_trainer.attention_views import View, map_shape
from agent_trainer.compiling import Forward
from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch
from agent_trainer.dqn import Learner as DqnLearner
from agent_trainer.patches import in_memory
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import Learner as SegmentationLearner

LEARNERS = ("dqn", "apga", "attention", "segmentation")
CPU = torch.device("cpu")
Weights = dict[str, Any]


def dqn(device: str, settings: dict[str, Any]) -> tuple[DqnLearner, Callable[[], float]]:
    config = DqnConfig(
        box=16, channels=(8, 8), kernels=(3, 3), hidden=(32,), batch=16, learning_rate=3e-3, duelling=True, **settings
    )
    rng, made = np.random.default_rng(0), DqnLearner(config, 1, config.actions, seed=0, device=device)
    states = rng.integers(0, 256, (2, 16, *config.state_shape), np.uint8)
    actions, rewards = rng.integers(0, 4, 16), rng.normal(size=16).astype(np.float32)
    ones, task = np.ones(16, np.float32), np.zeros(16, np.int64)
    batch = Batch(states[0], task, actions, rewards, ones * np.float32(0.5), states[1], ones, task)
    return made, lambda: made.update(batch).loss


def apga(device: str, settings: dict[str, Any]) -> tuple[ApgaLearner, Callable[[], float]]:
    config = ApgaConfig(
        classes=("dark", "bright"), side=16, channels=1, classifier="small", masker="small", small_channels=(8, 8),
        small_norm="group", pretrain_updates=5, learning_rate=0.01, **settings,
    )  # fmt: skip
    rng, made = np.random.default_rng(0), ApgaLearner(config, seed=0, device=device)
    labels = np.arange(12) % 2
    pixels = rng.integers(0, 120, (12, 1, 16, 16), np.uint8)
    pixels[labels == 1, :, :8, :8] += 120
    return made, lambda: made.step(pixels, labels, rng).original


def attention(device: str, settings: dict[str, Any]) -> tuple[AttentionLearner, Callable[[], float]]:
    config = AttentionConfig(
        classes=("dark", "bright"), channels=1, reduction=4, patch=8, patches=4, attention_filters=2, filters=8,
        layers=2, batch=4, replicas=2, learning_rate=0.01, **settings,
    )  # fmt: skip
    rng, made = np.random.default_rng(0), AttentionLearner(config, seed=0, device=device)
    labels, views = np.arange(4) % 2, []
    for label in labels:
        image = in_memory(rng.integers(0, 120, (1, 40, 40), np.uint8) + np.uint8(120 * label))
        views.append(View(image, image.reduced(*map_shape(config, 40, 40))))
    return made, lambda: made.update(views, labels).loss


def segmentation(device: str, settings: dict[str, Any]) -> tuple[SegmentationLearner, Callable[[], float]]:
    config = SegmentationConfig(
        classes=("ball",), modality="mr", network="unet", width=4, depth=2, blocks=0, patch=(16, 16, 16),
        learning_rate=0.01, **settings,
    )  # fmt: skip
    made, generator = SegmentationLearner(config, seed=0, device=device), torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 16, 16, 16, generator=generator)
    labels = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    labels[:, 4:12, 4:12, 4:12] = 1
    images[:, 0] += labels
    return made, lambda: made.step(images / 2, labels).loss


MAKERS: dict[str, Callable[[str, dict[str, Any]], tuple[Any, Callable[[], float]]]] = {
    "dqn": dqn, "apga": apga, "attention": attention, "segmentation": segmentation
}  # fmt: skip


def trained(name: str, updates: int, device: str = "cpu", **settings: Any) -> tuple[Any, list[float]]:
    made, step = MAKERS[name](device, settings)
    return made, [step() for _ in range(updates)]


def weights(made: Any) -> Weights:
    return dict(made.weights())


@pytest.mark.parametrize("name", LEARNERS)
def test_mixed_precision_without_cuda_is_float32_and_the_site_is_told(name: str) -> None:
    mixed, told = trained(name, 3, precision="mixed")
    plain, expected = trained(name, 3)
    assert mixed.remarks == (
        "mixed precision was asked for, and this machine trains without CUDA; it trains in float32",
    )
    assert plain.remarks == ()
    assert told == expected
    assert all((array == weights(plain)[key]).all() for key, array in weights(mixed).items())


@pytest.mark.gpu
@pytest.mark.parametrize("name", LEARNERS)
def test_mixed_precision_on_a_gpu_keeps_weights_in_float32_and_learns_as_float32_does(name: str) -> None:
    mixed, told = trained(name, 40, "cuda", precision="mixed")
    plain, expected = trained(name, 40, "cuda")
    assert mixed.remarks == ()
    assert np.isfinite(told).all()
    assert {array.dtype for array in weights(mixed).values()} == {np.dtype(np.float32)}
    assert {array.shape for array in weights(mixed).values()} == {array.shape for array in weights(plain).values()}
    assert expected[-1] < 0.9 * expected[0], "there was something to learn"
    assert abs(told[-1] - expected[-1]) < 0.05 * expected[0], "after 40 updates, of the loss at the start"


@pytest.mark.gpu
@pytest.mark.parametrize("name", LEARNERS)
def test_compiled_networks_on_a_gpu_learn_as_uncompiled_ones_do(name: str) -> None:
    compiled, told = trained(name, 3, "cuda", compile=True)
    plain, expected = trained(name, 3, "cuda")
    assert compiled.remarks == ()
    assert weights(compiled).keys() == weights(plain).keys()
    np.testing.assert_allclose(told, expected, rtol=0.02)


# ---- torch.compile on a CPU


@pytest.fixture
def inductor() -> Iterator[Any]:
    """Torch's compiler in this process alone, without what pays only for many kernels; what it made is forgotten."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script_method.*", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
    config = importlib.import_module("torch._inductor.config")
    plain = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": False}
    with config.patch(plain):
        yield config
    torch.compiler.reset()


@pytest.mark.usefixtures("inductor")
def test_a_compiled_network_answers_as_before_with_the_same_gradients_and_keeps_its_weights_names() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    names, forward, x = list(network.state_dict()), Forward(network, CPU, wanted=True), torch.rand(4, 3)
    plain, compiled = network(x), forward(x)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), list(network.parameters())) for y in (compiled, plain)))
    assert forward.remark == ""
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(("variable", "value"), [("CXX", "no-such-compiler"), ("PATH", "")])
def test_without_a_compiler_networks_run_uncompiled_and_the_site_is_told(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, value)
    made, told = trained("segmentation", 2, compile=True)
    (remark,) = made.remarks
    assert remark.startswith("compile was asked for, and this machine has no compiler (")
    assert remark.endswith("); networks run uncompiled")
    assert told == trained("segmentation", 2)[1]


def test_an_agents_own_convolutions_stay_as_they_are_on_a_cpu() -> None:
    made, told = trained("dqn", 2, compile=True)
    assert made.remarks == (
        "compile was asked for, and on a CPU this agent's convolutions are code of its own, which stays; "
        "networks run uncompiled",
    )
    assert told == trained("dqn", 2)[1]


def test_a_network_that_cannot_be_compiled_answers_all_the_same(inductor: Any) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    forward = Forward(network, CPU, wanted=True)
    assert forward.remark == ""
    x = torch.ones(1, 3)
    with inductor.patch({"cpp.cxx": (None, "false")}):  # is there, and compiles nothing
        assert torch.equal(forward(x), network(x))
    assert forward.remark.startswith("compile was asked for, and it failed here (")
    assert torch.equal(forward(2 * x), network(2 * x)), "and is not tried again"


def test_settings_at_their_defaults_are_not_written_so_that_older_sites_understand_a_run() -> None:
    assert not {"precision", "compile"} & DqnConfig().model_dump(mode="json").keys()
    assert DqnConfig(precision="mixed", compile=True).model_dump(mode="json")["precision"] == "mixed"
    written = DqnConfig(precision="mixed", compile=True).model_dump_json()
    assert DqnConfig.model_validate_json(written).compile
