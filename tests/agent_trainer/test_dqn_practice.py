"""What a site keeps of a DQN run over a restart."""

from pathlib import Path

import numpy as np
import pytest

from agent_trainer.config import DqnConfig
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.scenes.generated import generated_scenes
from agent_trainer.scenes.settings import Generated
from agent_trainer.scenes.sources import Scenes

CONFIG = DqnConfig(
    tasks=("heart",), box=8, channels=(4,), kernels=(3,), hidden=(8,), batch=4, pool=(2, 2), envs=4, warm_up=8,
    capacity=100, steps_per_update=4,
)  # fmt: skip
SCENES = Scenes(tuple(generated_scenes(Generated(tasks=("heart",), images=2), 2)), ())


def practice(folder: Path, seed: int = 0) -> DqnPractice:
    return DqnPractice(SCENES, CONFIG, seed, "cpu", folder)


def test_a_restarted_site_goes_on_with_its_learner_and_its_exploration(tmp_path: Path) -> None:
    made = practice(tmp_path)
    for _ in made.train(3):
        pass
    made.save()
    restarted = practice(tmp_path)
    assert restarted._steps == made._steps > 0
    assert restarted.learner.updates == 3
    weights = made.weights()
    assert all(np.array_equal(weights[name], array) for name, array in restarted.weights().items())


def test_another_run_of_the_same_name_or_a_broken_state_begins_anew(tmp_path: Path) -> None:
    made = practice(tmp_path)
    for _ in made.train(1):
        pass
    made.save()
    other = practice(tmp_path, seed=1)
    assert (other._steps, other.learner.updates) == (0, 0)
    (tmp_path / "learner.pt").write_bytes(b"\x00" * 64)
    assert practice(tmp_path)._steps == 0


@pytest.mark.gpu
def test_agents_on_a_gpu_see_there(tmp_path: Path) -> None:
    made = DqnPractice(SCENES, CONFIG, 0, "cuda", tmp_path)
    *_, done = made.train(3)
    assert done.numbers()["updates"] == 3
    assert made._searches.seen.device.type == "cuda"
    assert made.problems == ()
