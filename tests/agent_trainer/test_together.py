"""Agents that several processes of a site train learn what one process would, whatever becomes of the others."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.together import Part
from cairn.errors import Diverged, TrainingError
from tests.agent_trainer.test_dqn import batch_of
from tests.agent_trainer.test_dqn_practice import CONFIG, SCENES

SHARED = CONFIG.model_copy(
    update={"batch": 5, "duelling": True, "double": True, "target_every": 3, "replay": "prioritised", "clip_norm": 0.3}
)


def site(folder: Path, processes: int, device: str = "cpu", config: DqnConfig = SHARED) -> DqnPractice:
    return DqnPractice(SCENES, config, 0, device, folder, processes)


def learn(practice: DqnPractice, updates: int) -> dict[str, float]:
    *_, done = practice.train(updates)
    return done.numbers()


def helpers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [child for child in mine if "agent_trainer.together" in " ".join(child.cmdline())]


def differ(one: DqnPractice, other: DqnPractice) -> float:
    theirs = other.weights()
    return max(float(np.abs(array - theirs[name]).max()) for name, array in one.weights().items())


def some(seed: int) -> Batch:
    return batch_of(seed, SHARED.batch, SHARED)


def test_two_processes_learn_what_one_learns_and_one_that_is_killed_ends_the_round_with_a_sentence(
    tmp_path: Path,
) -> None:
    alone, together = site(tmp_path / "alone", 1), site(tmp_path / "together", 2)
    start = together.weights()
    for practice in (alone, together):
        practice.load(start, proximal_mu=0.1)
    expected, told = learn(alone, 5), learn(together, 5)
    assert {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()} == told
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


@pytest.mark.gpu
def test_two_processes_on_a_gpu_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = site(tmp_path / "alone", 1, "cuda"), site(tmp_path / "together", 2, "cuda")
    update, theirs = (practice._begin_updates() for practice in (alone, together))
    for seed in range(4):
        np.testing.assert_allclose(theirs(some(seed)).td_error, update(some(seed)).td_error, atol=1e-3)
    assert differ(together, alone) < 1e-3
