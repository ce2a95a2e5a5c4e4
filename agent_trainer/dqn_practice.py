"""What a site holds of a DQN run between rounds: learner, replay and searches, and the loop that trains them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from agent_trainer.algorithms import Algorithm, Place, Weights
from agent_trainer.config import DqnConfig, read_config
from agent_trainer.craft import transfer
from agent_trainer.craft.augmentation import Augmentation, augment_pixels
from agent_trainer.device_sight import placed
from agent_trainer.dqn import Batch, Learner, Update, dealt
from agent_trainer.environment import Searches
from agent_trainer.evaluation import evaluate, merge_validation, named
from agent_trainer.loading import each
from agent_trainer.networks import QNetwork, last_layers
from agent_trainer.replay import Replay
from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.sources import Scenes, load_scenes, read_sources
from agent_trainer.sight import Sight
from agent_trainer.together import several
from cairn.errors import CairnError

STATE: Final = "learner.pt"


@dataclass
class Sums:
    """Sums over a round so far; `found` counts the episodes that ended at their landmark."""

    updates: int = 0
    loss: float = 0.0
    steps: int = 0
    reward: float = 0.0
    episodes: int = 0
    found: int = 0

    def numbers(self) -> dict[str, float]:
        """Say them as means; one that nothing is known of is left out."""
        of_updates = {"loss": self.loss / self.updates} if self.updates else {}
        of_steps = {"reward": self.reward / self.steps} if self.steps else {}
        of_episodes = {"found": self.found / self.episodes} if self.episodes else {}
        return {"updates": float(self.updates), "steps": float(self.steps), **of_updates, **of_steps, **of_episodes}


def toned(batch: Batch, settings: Augmentation, rng: np.random.Generator) -> Batch:
    """Change the values that an agent saw: each transition's for itself, alike before and after its step."""
    if settings.off:
        return batch
    both = augment_pixels(np.concatenate([batch.s_tm1, batch.s_t], 1), settings, rng)
    before, after = np.split(both, 2, 1)
    return replace(batch, s_tm1=np.ascontiguousarray(before), s_t=np.ascontiguousarray(after))


class DqnPractice:
    """A run at this site; see `algorithms.Practice`. `train` goes on where it stopped.

    folder  for the learner's state after each round, so that a restart keeps the optimiser and ε, and for frames
    seed    of exploration, starts and draws
    processes  that learn together, each from its share of a batch; this one acts and keeps the replay
    """

    def __init__(
        self, scenes: Scenes, config: DqnConfig, seed: int, device: str, folder: Path, processes: int = 1
    ) -> None:
        self.scenes, self.config, self._folder = scenes, config, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._rng = np.random.default_rng(seed)
        self.learner = Learner(config, len(config.tasks), config.actions, device=device, seed=seed)
        self._together = several(self.learner, "dqn", config, seed, device, folder, processes)
        self._remark = ""  # on where the agents see

        def sight(crops: Crops, channels: int, shape: tuple[int, ...]) -> Sight:
            found, self._remark = placed(crops, channels, shape, torch.device(device))
            return found

        self._searches = Searches(scenes.train, config, self._rng, place=sight)
        shape = (self._searches.channels, *config.state_shape[1:])
        self.replay = Replay(config.capacity, shape, config, rng=self._rng, folder=folder)
        # Changing values takes time, in which a GPU can learn; a CPU's cores are taken.
        on_gpu = torch.device(device).type == "cuda"
        self._ahead = on_gpu and not (config.augmentation.off or self.replay.by_errors)
        self._agents = np.arange(config.envs)
        self.replay.begin(self._searches.reset(self._chosen(config.envs)), self._agents)
        self._steps = 0  # in the environment, over all rounds
        self._acted = 0  # … since this object was made, with an empty replay
        self._owed = 0.0  # updates that the steps made allow
        self._restore()

    @property
    def examples(self) -> int:
        """Scenes learned from."""
        return len(self.scenes.train)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on the scenes that cannot be used, and on what this machine cannot do."""
        return (*self.scenes.problems, *self.learner.remarks, *filter(None, [self._remark]))

    def weights(self) -> Weights:
        """Copy the policy network's weights."""
        return self.learner.weights()

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights; see `Learner.load`."""
        self.learner.load(weights, proximal_mu)

    def validate(self) -> dict[str, float]:
        """Search the scenes set aside."""
        return named(evaluate(self.scenes.validation, self.config, self.learner.q_values))

    def figures(self) -> dict[str, float]:
        """Describe the replay."""
        stats = self.replay.stats()
        unique = {} if stats.unique_share is None else {"replay/unique_share": stats.unique_share}
        of_all = {"replay/effective": stats.effective, "replay/fill": stats.fill, "replay/bytes": float(stats.bytes)}
        share = {"train/share": self.learner.staged.report.share} if self.config.transfer.still else {}
        return {**unique, **of_all, **share}

    def train(self, updates: int) -> Iterator[Sums]:
        """Act and learn until so many updates are made; yields after every step of all agents.

        Raises Diverged, with the weights from before the update, and TrainingError when another process has ended.
        """
        sums, learn = Sums(), self._begin_updates()
        while sums.updates < updates:
            self._act(sums)
            if self._acted < self.config.warm_up:
                yield sums
                continue
            self._owed += self.config.envs / self.config.steps_per_update
            with each(self._batch, min(int(self._owed), updates - sums.updates), ahead=self._ahead) as batches:
                for batch in batches:
                    self._owed -= 1
                    made = learn(batch)
                    self.replay.update(batch.index, made.td_error)
                    sums.updates += 1
                    sums.loss += made.loss
            self._owed = min(self._owed, 1.0)
            yield sums

    def _batch(self) -> Batch:
        return toned(self.replay.sample(self.config.batch), self.config.augmentation, self._rng)

    def _begin_updates(self) -> Callable[[Batch], Update]:
        """Return what learns from a batch: alone, or with other processes that now have the same weights."""
        together, learner = self._together, self.learner
        if together is None:
            return learner.update
        together.begin()
        return lambda batch: together.step(lambda deal: learner.learn_part(*deal(dealt(batch))))

    def _act(self, sums: Sums) -> None:
        searches, agents = self._searches, self._agents
        tasks = searches.tasks
        actions = self.learner.act(searches.seen, tasks, self.config.epsilon(self._steps), self._rng)
        step = searches.step(actions)
        discount = np.where(step.done, np.float32(0), np.float32(self.config.gamma))
        reward = step.reward / np.float32(self.config.reward_unit_mm)
        self.replay.add(agents, tasks, actions, reward, discount, searches.frames())
        ended = np.flatnonzero(step.done | step.truncated)
        if len(ended):
            self.replay.begin(searches.reset(self._chosen(len(ended)), agents=ended), ended)
        self._steps += len(agents)
        self._acted += len(agents)
        sums.steps += len(agents)
        sums.reward += float(step.reward.sum())  # mm
        sums.episodes += len(ended)
        sums.found += int(step.done.sum())

    def _chosen(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return self._rng.integers(len(self.scenes.train), size=count)

    def save(self) -> None:
        """Keep the learner's state and how far exploration is. Raises OSError."""
        self.learner.save(self._folder / STATE, {"steps": self._steps})

    def _restore(self) -> None:
        # What cannot be read is a new run, or a state of another one: begin anew.
        with suppress(OSError, CairnError):
            self._steps = int(self.learner.restore(self._folder / STATE)["steps"])


def first_weights(config: DqnConfig, seed: int) -> Weights:
    """Make the weights that a run begins with, those of the convolutions from a file where the config names one.

    Raises ConfigError.
    """
    learner = Learner(config, len(config.tasks), config.actions, seed=seed)
    transfer.begin_with(learner.online, config.transfer, last_layers(config))
    return learner.weights()


def remarks(config: DqnConfig) -> tuple[str, ...]:
    """Say what a run's log is to begin with: which layers train."""
    network = QNetwork(config, config.actions, len(config.tasks))
    return transfer.remarks(network, config.transfer, last_layers(config))


def begin(config: DqnConfig, place: Place) -> DqnPractice:
    """Load a site's scenes and go on where the run was at this site. Raises ConfigError, ImageError."""
    scenes = load_scenes(read_sources(place.table("scenes"), Path.cwd()), config)
    return DqnPractice(scenes, config, place.seed, place.device, place.folder, place.processes)


def learner(config: DqnConfig, seed: int, device: str) -> Learner:
    """Make what learns in another process of the site."""
    return Learner(config, len(config.tasks), config.actions, seed=seed, device=device)


DQN: Final = Algorithm(read_config, first_weights, begin, merge_validation, remarks, learner)
