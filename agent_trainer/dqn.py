"""Deep Q-learning with a policy and a target network; paper 1 §II.B and §III.A.b."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Batch:
    """Transitions as replay gives them, b of them.

    s_tm1       uint8[b, history, *box]   the state before
    task        int64[b]                  number of the task
    a_tm1       int64[b]                  the action taken
    r_t         float32[b]                reward in mm
    discount_t  float32[b]                γ, or 0 where the episode ended at the landmark; a truncated one keeps γ
    s_t         uint8[b, history, *box]   the state after
    weight      float32[b]                importance weights, at most 1
    index       int64[b]                  places in the replay, for its priorities
    """

    s_tm1: npt.NDArray[np.uint8]
    task: npt.NDArray[np.int64]
    a_tm1: npt.NDArray[np.int64]
    r_t: npt.NDArray[np.float32]
    discount_t: npt.NDArray[np.float32]
    s_t: npt.NDArray[np.uint8]
    weight: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Update:
    """What one update tells.

    loss       weighted mean Huber loss, with the proximal term
    td_error   float32[b], mm
    grad_norm  before clipping
    """

    loss: float
    td_error: npt.NDArray[np.float32]
    grad_norm: float


class Learner:
    """Policy and target network with their optimiser."""

    def __init__(self, config: DqnConfig, tasks: int, actions: int, *, seed: int, device: str = "cpu") -> None:
        raise NotImplementedError

    def q_values(self, states: npt.NDArray[np.uint8], task: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return Q of the policy network; float32[n, actions]."""
        raise NotImplementedError

    def act(
        self, states: npt.NDArray[np.uint8], task: npt.NDArray[np.int64], epsilon: float, rng: np.random.Generator
    ) -> npt.NDArray[np.uint8]:
        """Choose actions ε-greedily; uint8[n]."""
        raise NotImplementedError

    def update(self, batch: Batch) -> Update:
        """Learn from one batch. Raises Diverged, before the weights are touched."""
        raise NotImplementedError

    def weights(self) -> Weights:
        """Return a copy of the policy network's weights by name."""
        raise NotImplementedError

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights. Raises TrainingError for those of another architecture."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        """Continue from a saved state, bit for bit."""
        raise NotImplementedError
