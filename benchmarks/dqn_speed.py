"""Steps, updates and whole training against Stable-Baselines3's DQN: same environment, same network, one thread each.

Both take turns, round after round, and each one's best turn counts; a second is one of the processor's. The
other gets as many environments as ours has searches, in its own DummyVecEnv, and the same updates for as many steps.
The replay holds so much that hardly any Q of the target network is remembered; `update_remembered` is with so little
that nearly all are, as they come to be between two changes of the target network.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from agent_trainer.config import PADDING, DqnConfig
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.environment import Searches
from agent_trainer.landmark_env import LandmarkEnv
from agent_trainer.scenes.generated import generated_scenes
from agent_trainer.scenes.settings import Generated
from agent_trainer.scenes.sources import Scenes
from benchmarks.dqn_ceph import SMALL, train

Line = dict[str, Any]
ORGAN = "heart"
SETTINGS: dict[str, dict[str, Any]] = {"small": SMALL, "paper": {"steps_per_update": 8}}
TURNS, UPDATES = 3, {"small": 40, "paper": 8}
STEPS = 20  # of all searches, in a turn
HELD, FEW = 20_000, 640  # transitions before the first update
AGAINST = "stable_baselines3"


class Convolutions(BaseFeaturesExtractor):  # type: ignore[misc]  # its library is not looked into
    """The layers of `QNetwork` as Stable-Baselines3 wants them; its own code puts the fully connected ones behind."""

    def __init__(self, space: spaces.Box, config: DqnConfig) -> None:
        super().__init__(space, config.channels[-1] * config.feature_side() ** 2)
        layers: list[nn.Module] = []
        before = config.history
        for channels, kernel in zip(config.channels, config.kernels, strict=True):
            layers += [nn.Conv2d(before, channels, kernel, padding=PADDING), nn.MaxPool2d(2), nn.ReLU()]
            before = channels
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features of states that are already in [0, 1]."""
        found: Tensor = self.layers(observations)
        return found


def speed(wanted: str) -> Iterator[Line]:
    """Measure one network: "small", as in `SMALL`, or the "paper" one."""
    torch.set_num_threads(1)
    base = DqnConfig(
        tasks=(ORGAN,), **{**SETTINGS[wanted], "warm_up": HELD, "capacity": 2 * HELD, "epsilon_steps": HELD}
    )
    scenes = generated_scenes(Generated(tasks=(ORGAN,), images=20), 2)
    theirs = baseline(base, scenes)
    with tempfile.TemporaryDirectory() as folder:
        ours = DqnPractice(Scenes(tuple(scenes), ()), base, 0, "cpu", Path(folder) / "many")
        train(ours, 1)
        few = DqnPractice(
            Scenes(tuple(scenes), ()), base.model_copy(update={"warm_up": FEW}), 0, "cpu", Path(folder) / "few"
        )
        train(few, 1)
        searches = Searches(scenes, base, np.random.default_rng(0))
        searches.reset(np.zeros(base.envs, np.int64))
        rng, count = np.random.default_rng(0), UPDATES[wanted]
        environments = theirs.get_env()
        assert environments is not None
        environments.reset()

        def step_ours() -> None:
            for _ in range(STEPS):
                made = searches.step(rng.integers(0, base.actions, base.envs))
                searches.states()
                ended = np.flatnonzero(made.done | made.truncated)
                if len(ended):
                    searches.reset(np.zeros(len(ended), np.int64), agents=ended)

        def step_theirs() -> None:
            for _ in range(STEPS):
                environments.step(rng.integers(0, base.actions, base.envs))

        def update(mine: DqnPractice) -> None:
            for _ in range(count):
                batch = mine.replay.sample(base.batch)
                mine.replay.update(batch.index, mine.learner.update(batch).td_error)

        def train_theirs() -> None:
            theirs.learn(count * int(base.steps_per_update), reset_num_timesteps=False)

        steps, loop = STEPS * base.envs, count * int(base.steps_per_update)
        works: dict[str, tuple[Callable[[], None], Callable[[], None], int, str]] = {
            "environment": (step_ours, step_theirs, steps, "steps/s"),
            "update": (lambda: update(ours), lambda: theirs.train(count, base.batch), count, "updates/s"),
            "update_remembered": (lambda: update(few), lambda: theirs.train(count, base.batch), count, "updates/s"),
            "training": (lambda: train(ours, count), train_theirs, loop, "steps/s"),
        }
        for name, (mine, other, items, unit) in works.items():
            rates = best(mine, other, items)
            also = {"ratio": rates[0] / rates[1], "against": AGAINST, "theirs": rates[1]}
            yield {"name": f"dqn/speed/{wanted}/{name}", "value": rates[0], "unit": unit, **also}


def baseline(config: DqnConfig, scenes: list[Any]) -> Any:
    """Make Stable-Baselines3's DQN with the same numbers, and let it warm up."""
    made = DQN(
        "CnnPolicy",
        DummyVecEnv([lambda: LandmarkEnv(scenes, config) for _ in range(config.envs)]),
        learning_rate=config.learning_rate,
        buffer_size=config.capacity,
        learning_starts=HELD,
        batch_size=config.batch,
        gamma=config.gamma,
        train_freq=1,  # a step of all environments
        gradient_steps=config.envs // int(config.steps_per_update),
        target_update_interval=config.target_every * int(config.steps_per_update),
        exploration_initial_eps=config.epsilon_end,
        exploration_final_eps=config.epsilon_end,
        max_grad_norm=config.clip_norm,
        policy_kwargs={
            "features_extractor_class": Convolutions,
            "features_extractor_kwargs": {"config": config},
            "net_arch": list(config.hidden),
            "activation_fn": nn.LeakyReLU,
        },
        device="cpu",
        seed=0,
    )
    return made.learn(HELD + config.envs)


def best(ours: Callable[[], None], theirs: Callable[[], None], items: int) -> tuple[float, float]:
    """Return the best items a second of both, taking turns."""
    rates = [0.0, 0.0]
    for _ in range(TURNS):
        for which, work in enumerate((ours, theirs)):
            began = time.process_time()
            work()
            rates[which] = max(rates[which], items / (time.process_time() - began))
    return rates[0], rates[1]
