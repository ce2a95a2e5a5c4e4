"""What agents see on a device is to the bit what they see in memory, at every scale and over every edge."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from agent_trainer import device_sight
from agent_trainer.config import DqnConfig
from agent_trainer.device_sight import DeviceSight, placed
from agent_trainer.dqn import Learner
from agent_trainer.environment import Searches
from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.scene import Scene
from agent_trainer.sight import HostSight


def config(axes: int = 2, **changed: Any) -> DqnConfig:
    return DqnConfig(channels=(4,), kernels=(3,), hidden=(8,), axes=axes, pool=(3,) * axes, **changed)


def scene(size: tuple[int, ...] = (20, 15), channels: int = 1, seed: int = 0) -> Scene:
    image = np.random.default_rng(seed).integers(1, 256, (channels, *size)).astype(np.uint8)
    return Scene(f"scene {seed}", "landmark", image, (1.0,) * len(size), np.array(size) // 2 * 1.0)


def follow(size: tuple[int, ...], channels: int, box: int, device: torch.device) -> None:
    """Walk two times the same searches, one seen from memory and one from a device, and compare every crop."""
    scenes = [scene(tuple(n + i for n in size), channels=channels, seed=i) for i in range(3)]
    settings = config(len(size), box=box, scales=(3, 2, 1), step_limit=25, start_margin=0)
    here = Searches(scenes, settings, np.random.default_rng(1))
    there = Searches(scenes, settings, np.random.default_rng(1), place=partial(DeviceSight, device=device))
    rng = np.random.default_rng(3)
    which = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(there.reset(which), here.reset(which))
    levels = set()
    for _ in range(60):
        actions = rng.integers(0, here.actions, len(which))
        step, other = here.step(actions), there.step(actions)
        np.testing.assert_array_equal(other.done, step.done)
        np.testing.assert_array_equal(there.frames(), here.frames())
        np.testing.assert_array_equal(there.seen.cpu().numpy(), here.seen)
        levels.update(here.scales.tolist())
        ended = np.flatnonzero(step.done | step.truncated)
        if len(ended):
            starts = np.stack([rng.integers(0, scenes[w].size) for w in which[ended]])
            starts[0] = [0, np.array(scenes[which[ended[0]]].size) - 1][rng.integers(2)]  # a corner
            np.testing.assert_array_equal(*(each.reset(which[ended], starts, ended) for each in (there, here)))
    assert levels == {1, 2, 3}
    np.testing.assert_array_equal(there.states(np.array([5, 0])), here.states(np.array([5, 0])))
    np.testing.assert_array_equal(there.states(), here.states())


@pytest.mark.parametrize("box", [9, 8])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [(20, 15), (7, 11), (9, 8, 7)])
def test_what_agents_see_by_torch_is_what_they_see_in_memory(size: tuple[int, ...], channels: int, box: int) -> None:
    follow(size, channels, box, torch.device("cpu"))


def test_an_agent_acts_alike_on_what_lies_in_memory_and_on_a_tensor() -> None:
    learner, states = (
        Learner(config(box=9), 1, 4, seed=0),
        np.random.default_rng(0).integers(0, 256, (9, 4, 9, 9), np.uint8),
    )
    task = np.zeros(9, np.int64)
    here, there = (
        learner.act(seen, task, 0.4, np.random.default_rng(1)) for seen in (states, torch.from_numpy(states))
    )
    np.testing.assert_array_equal(there, here)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(20, 15), (9, 8, 7)])
def test_what_agents_see_on_a_gpu_is_what_they_see_in_memory(size: tuple[int, ...]) -> None:
    for channels in (1, 4):
        follow(size, channels, 9, torch.device("cuda"))


@pytest.mark.gpu
def test_images_that_a_gpu_has_no_room_for_are_cut_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops([scene().image], 9, (1,))
    cuda = torch.device("cuda")
    assert placed(crops, 1, config(box=9).state_shape, cuda)[1] == ""
    monkeypatch.setattr(device_sight, "SHARE", 0.0)
    sight, said = placed(crops, 1, config(box=9).state_shape, cuda)
    assert isinstance(sight, HostSight)
    assert said.startswith("the images to search take 0.0 GB at all scales, and the GPU has ")
