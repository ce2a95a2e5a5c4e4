"""What several processes of a site train together is what one process would, whatever becomes of the others."""

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from agent_trainer.algorithms import Place, Practice, algorithm
from agent_trainer.apga_learner import Learner as ApgaLearner
from agent_trainer.apga_practice import APGA
from agent_trainer.attention_practice import ATTENTION
from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch
from agent_trainer.dqn_practice import DQN, DqnPractice
from agent_trainer.together import Deal, Part, shares
from cairn.errors import Diverged, ImageError, TrainingError
from tests.agent_trainer import test_attention_practice as of_attention
from tests.agent_trainer.apga_sites import CLASSES, draw, tiny
from tests.agent_trainer.side_by_side import both_learn, learn
from tests.agent_trainer.test_dqn import batch_of
from tests.agent_trainer.test_dqn_practice import CONFIG

BIAS = "masker.model.2.conv.bias"
SHARED = CONFIG.model_copy(
    update={"batch": 5, "duelling": True, "double": True, "target_every": 3, "replay": "prioritised", "clip_norm": 0.3}
)


def site(folder: Path, processes: int, device: str = "cpu", config: DqnConfig = SHARED) -> DqnPractice:
    scenes = {"kind": "generated", "tasks": ["heart"], "images": 4, "size": 48}
    practice = DQN.begin(config, Place({"scenes": [scenes]}, 0, device, folder, processes))
    assert isinstance(practice, DqnPractice)
    return practice


def helpers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [child for child in mine if "agent_trainer.together" in " ".join(child.cmdline())]


def differ(one: Practice | ApgaLearner, other: Practice | ApgaLearner) -> float:
    """Return the largest difference of a weight, but for those that a norm takes away: they go where rounding leads."""
    theirs = other.weights()
    told = {name: array for name, array in one.weights().items() if name == BIAS or not name.endswith(".conv.bias")}
    return max(float(np.abs(array - theirs[name]).max()) for name, array in told.items())


def some(seed: int) -> Batch:
    return batch_of(seed, SHARED.batch, SHARED)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_one_that_is_killed_ends_the_round_with_a_sentence(
    tmp_path: Path,
) -> None:
    alone, together = site(tmp_path / "alone", 1), site(tmp_path / "together", 2)
    start, _ = both_learn(alone, together, 5, rel=1e-4)
    assert differ(together, alone) < 1e-5
    assert max(float(np.abs(array - start[name]).max()) for name, array in together.weights().items()) > 2e-4

    federation = {name: array * np.float32(0.9) for name, array in together.weights().items()}
    for practice in (alone, together):
        practice.load(federation)
        learn(practice, 2)
    assert differ(together, alone) < 1e-5, "the next round begins with the federation's weights in both"

    both = [practice._begin_updates() for practice in (alone, together)]
    for update in both:
        with pytest.raises(Diverged, match="update 8 was refused: loss nan"):
            update(replace(some(1), r_t=np.array([0, 0, 0, 0, np.nan], np.float32)))  # of the other process's rows
    mine, theirs = (update(some(2)) for update in both)
    np.testing.assert_allclose(theirs.td_error, mine.td_error, atol=1e-5)
    assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
    assert theirs.grad_norm == pytest.approx(mine.grad_norm, rel=1e-4)
    assert differ(together, alone) < 1e-5, "what was refused changed nothing in either process"

    before, (helper,) = together.weights(), helpers()
    os.kill(helper.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"^process 2 of the 2 of this training was killed by signal 9; the next "):
        learn(together, 1)
    assert all((array == before[name]).all() for name, array in together.weights().items())
    assert helpers() == []
    assert learn(together, 1)["updates"] == 1, "with a new one"
    (helper,) = helpers()
    del together, practice, both, update
    helper.wait(10)


def test_a_process_that_ends_while_gradients_are_added_up_leaves_the_others_weights_as_they_were(
    tmp_path: Path,
) -> None:
    practice = site(tmp_path, 1)
    before = practice.weights()

    def cut_off(_: torch.Tensor) -> None:
        raise TrainingError("process 2 of the 2 of this training ended with code 1")

    with pytest.raises(TrainingError, match="process 2 of the 2"):
        practice.learner.update(some(0), Part(0, 5, 10, cut_off))
    assert all((array == before[name]).all() for name, array in practice.weights().items())
    assert practice.learner.updates == 0


def bright_corners(folder: Path) -> dict[str, str]:
    """Write images and their labels, and return the table that a site's settings have."""
    examples = draw(folder / "images", [0, 1, 1] * 5)
    lines = (f"{example.name},{CLASSES[example.label]}\n" for example in examples)
    (folder / "labels.csv").write_text("image,label\n" + "".join(lines))
    return {"kind": "files", "images": str(folder / "images"), "labels": str(folder / "labels.csv")}


class Parts:
    """Processes as threads: each exchanges tensors with the others when all are there."""

    def __init__(self, *learners: Any) -> None:
        self.learners, self._all, self._given = learners, threading.Barrier(len(learners)), {}
        self._pool = ThreadPoolExecutor(len(learners))

    def _add_up(self, rank: int, tensor: torch.Tensor) -> None:
        self._given[rank] = tensor.clone()
        self._all.wait(10)
        tensor.copy_(torch.stack([self._given[other] for other in range(len(self.learners))]).sum(0))
        self._all.wait(10)

    def step(self, *given: Any) -> Any:
        """Do what `Together.step` does; returns what the first one told."""
        others: list[Future[Any]] = []

        def deal(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Part]:
            of = len(tensors[0])
            dealt = shares(of, len(self.learners))
            parts = [Part(sum(dealt[:k]), rows, of, partial(self._add_up, k)) for k, rows in enumerate(dealt)]
            rows = list(zip(*(tensor.split(dealt) for tensor in tensors), strict=True))
            others.extend(
                self._pool.submit(learner.learn_part, rows[k], parts[k])
                for k, learner in enumerate(self.learners[1:], 1)
            )
            return list(rows[0]), parts[0]

        try:
            return self.learners[0].step(*given, deal=deal)
        finally:
            self.others = [other.exception(10) for other in others]


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("method", ["apga", "cutout", "gradcam", "end-to-end"])
def test_every_method_of_apga_can_be_learned_in_parts(method: str, norm: str) -> None:
    config = tiny(method=method, small_norm=norm, pretrain_updates=2, pretrain_window=2, batch=7, learning_rate=0.003)
    alone, *parts = (ApgaLearner(config, seed=0) for _ in range(4))
    pixels, labels = np.random.default_rng(0).integers(0, 256, (7, 1, 16, 16), np.uint8), np.arange(7) % 2
    one, several, together = np.random.default_rng(1), np.random.default_rng(1), Parts(*parts)
    for _ in range(6):
        mine, theirs = alone.step(pixels, labels, one), together.step(pixels, labels, several)
        assert together.others == [None, None]
        if norm == "group":
            assert theirs.right == mine.right
            for name in ("original", "masked", "reward", "baseline"):
                told = tuple(getattr(step, name) for step in (mine, theirs))
                assert told == (None, None) or told[0] == pytest.approx(told[1], rel=1e-4, abs=1e-5)
            assert (theirs.kept is None) == (mine.kept is None)
            assert theirs.kept is None or torch.equal(theirs.kept, mine.kept)
    first, *others = (part.weights() for part in parts)
    assert all((array == first[name]).all() for other in others for name, array in other.items())
    if norm == "group":
        assert differ(parts[0], alone) < 1e-5


def test_apga_in_parts_takes_a_step_back_in_all_of_them(tmp_path: Path) -> None:
    config = tiny(small_norm="batch", pretrain_updates=0)
    parts = [ApgaLearner(config, seed=0) for _ in range(2)]
    before = parts[0].weights()
    pixels, rng = np.zeros((6, 1, 16, 16), np.uint8), np.random.default_rng(0)
    parts[1]._weigh = torch.tensor([np.nan, 1.0])  # of one part alone
    with pytest.raises(Diverged, match="update 1 was refused: the loss of the classifier is nan"):
        (together := Parts(*parts)).step(pixels, np.zeros(6, np.int64), rng)
    assert [type(error) for error in together.others] == [Diverged]
    for part in parts:
        assert all((array == before[name]).all() for name, array in part.weights().items())
        assert part.updates == 0


def test_apga_with_a_coral_loss_learns_in_one_process_and_says_so(tmp_path: Path) -> None:
    config = tiny(domain={"coral": 1.0, "target": "elsewhere"})
    assert APGA.alone(config) == (
        "apga with domain.coral learns in one, as that compares covariances of the whole batch"
    )
    assert APGA.alone(tiny()) == ""
    practice = APGA.begin(config, Place({"labelled": [bright_corners(tmp_path)]}, 0, "cpu", tmp_path / "run", 2))
    assert learn(practice, 1)["updates"] == 1
    assert helpers() == []


@pytest.mark.slow
def test_attention_that_two_processes_learn_is_that_of_one(tmp_path: Path) -> None:
    table = of_attention.site(tmp_path / "data", of_attention.MIXED)
    config = of_attention.tiny(batch=3, patches=3, replicas=1, baseline="moving", balance="weights", learning_rate=0.01)
    alone, together = (
        ATTENTION.begin(config, Place({"labelled": [table]}, 0, "cpu", tmp_path / f"{n}", n)) for n in (1, 2)
    )
    start, _ = both_learn(alone, together, 4, rel=1e-4)
    assert differ(together, alone) < 1e-5
    moved = {name for name, array in together.weights().items() if np.abs(array - start[name]).max() > 1e-3}
    assert {name.split(".")[0] for name in moved} == {"attention", "classifier"}
    for practice in (alone, together):
        weigh, practice._weigh = practice._weigh, np.full(2, np.nan, np.float32)
        with pytest.raises(Diverged, match="update 5 was refused: loss nan"):
            learn(practice, 1)
        practice._weigh = weigh
        practice.load(start)
        learn(practice, 2)
    assert differ(together, alone) < 1e-5, "what was refused changed nothing in either process"

    def unreadable(_: Deal) -> None:
        raise ImageError("p0.png: truncated")

    def out_of_memory(deal: Deal) -> None:
        deal([torch.zeros(9, 1, 8, 8, dtype=torch.uint8)])
        raise MemoryError

    with pytest.raises(ImageError):
        together._together.step(unreadable)
    assert len(helpers()) == 1, "nothing was dealt out yet"
    with pytest.raises(MemoryError):
        together._together.step(out_of_memory)
    assert helpers() == [], "it would have waited for what does not come"


@pytest.mark.slow
def test_apga_that_two_processes_learn_is_that_of_one(tmp_path: Path) -> None:
    config = tiny(small_norm="group", batch=5, balance="weights", learning_rate=0.003, collapse_window=8)
    table = bright_corners(tmp_path)
    alone, together = (APGA.begin(config, Place({"labelled": [table]}, 0, "cpu", tmp_path / f"{n}", n)) for n in (1, 2))
    start, told = both_learn(alone, together, 6, rel=1e-3, abs=1e-5)
    assert {"reward", "masked_loss", "kept"} <= told.keys(), "pre-training is over"
    assert differ(together, alone) < 1e-5
    for practice in (alone, together):
        practice.load({name: array + np.float32(60) * (name == BIAS) for name, array in start.items()})
        practice.learner.pretraining.over = True
        learn(practice, 10)
        assert practice.figures()["masks/collapses"] == 1, "after eight updates"
    assert differ(together, alone) < 3e-4, "masks that were brought back here are brought back in the other process"


@pytest.mark.gpu
def test_two_processes_on_a_gpu_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = site(tmp_path / "alone", 1, "cuda"), site(tmp_path / "together", 2, "cuda")
    update, theirs = (practice._begin_updates() for practice in (alone, together))
    for seed in range(4):
        np.testing.assert_allclose(theirs(some(seed)).td_error, update(some(seed)).td_error, atol=1e-3)
    assert differ(together, alone) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["apga", "attention"])
def test_classifiers_that_two_processes_learn_on_a_gpu_are_those_of_one(tmp_path: Path, name: str) -> None:
    """As near as a GPU's own rounding leaves them: a mask or a draw may be another."""
    config: Any = tiny(small_norm="group", learning_rate=1e-3)
    if name == "attention":
        config = of_attention.tiny(batch=6, classes=CLASSES, patch=4, reduction=2)
    table = bright_corners(tmp_path)
    alone, together = (
        algorithm(name).begin(config, Place({"labelled": [table]}, 0, "cuda", tmp_path / f"{n}", n)) for n in (1, 2)
    )
    for practice in (alone, together):
        practice.load(alone.weights())
    expected, told = learn(alone, 6), learn(together, 6)
    assert told["updates"] == expected["updates"]
    assert told["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert differ(together, alone) < 0.02
