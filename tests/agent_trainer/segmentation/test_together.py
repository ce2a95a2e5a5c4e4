"""Several processes of a site learn a segmentation as one would."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_trainer.algorithms import Place
from agent_trainer.processes import Helpers
from agent_trainer.segmentation.practice import SegmentationPractice, begin
from agent_trainer.together import Part, shares
from cairn.errors import Diverged, TrainingError
from tests.agent_trainer.segmentation.test_practice import MADE, config, train
from tests.agent_trainer.side_by_side import both_learn

AWAY = ("model.0.conv.bias", "model.1.submodule.conv.bias")


def site(folder: Path, processes: int, device: str = "cpu") -> SegmentationPractice:
    settings = config(batch=3, loss="dice-ce")
    return begin(settings, Place({"volumes": [MADE]}, 0, device, folder, processes))


def differ(one: SegmentationPractice, other: SegmentationPractice) -> float:
    """Return the largest difference of a weight, but for those that a norm takes away: they go where rounding leads."""
    theirs = other.weights()
    told = {name: array for name, array in one.weights().items() if name not in AWAY}
    assert len(told) == len(theirs) - len(AWAY)
    return max(float(np.abs(array - theirs[name]).max()) for name, array in told.items())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = site(tmp_path / "alone", 1), site(tmp_path / "together", 2)
    start, _ = both_learn(alone, together, 4, rel=1e-3)
    assert differ(together, alone) < 1e-5
    assert max(float(np.abs(array - start[name]).max()) for name, array in together.weights().items()) > 1e-2

    federation = {name: array * np.float32(0.9) for name, array in together.weights().items()}
    for practice in (alone, together):
        practice.load(federation)
        train(practice, 2)
    assert differ(together, alone) < 1e-5, "the next round begins with the federation's weights in both"

    images, labels = together.batch()
    step = together._begin_step()
    with pytest.raises(Diverged, match="update 7 was refused: the loss is nan"):
        step(images * torch.nan, labels)
    step(images, labels)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_process_that_ends_while_gradients_are_added_up_leaves_the_others_weights_as_they_were(
    tmp_path: Path, norm: str
) -> None:
    practice = begin(config(norm=norm), Place({"volumes": [MADE]}, 0, "cpu", tmp_path))
    before = practice.weights()

    def cut_off(_: torch.Tensor) -> None:
        raise TrainingError("process 2 of the 2 of this training ended with code 1")

    with pytest.raises(TrainingError, match="process 2 of the 2"):
        practice.learner.step(*practice.batch(), Part(0, 1, 2, cut_off))
    assert all((array == before[name]).all() for name, array in practice.weights().items())
    assert practice.learner.updates == 0


@pytest.mark.gpu
def test_two_processes_on_a_gpu_learn_what_one_learns(tmp_path: Path) -> None:
    alone, together = site(tmp_path / "alone", 1, "cuda"), site(tmp_path / "together", 2, "cuda")
    train(alone, 4)
    train(together, 4)
    assert differ(together, alone) < 2e-3


def test_a_process_that_does_not_start_is_a_sentence_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^process 2 of the 2 of this training did not start; if this "):
        Helpers("agent_trainer.no_such_program", {}, 2, "cpu", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_dealt_out_evenly_and_nobody_gets_nothing() -> None:
    assert shares(7, 3) == [3, 2, 2]
    for batch in range(1, 9):
        for processes in range(1, 9):
            dealt = shares(batch, min(batch, processes))
            assert sum(dealt) == batch
            assert len(dealt) == min(batch, processes)
            assert all(later <= sooner for sooner, later in pairwise(dealt))
            assert dealt[-1] > 0
