"""Deep Q-learning with a policy and a target network; paper 1 §II.B and §III.A.b."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer import losses
from agent_trainer.config import DqnConfig
from agent_trainer.networks import QNetwork
from cairn.errors import Diverged, TrainingError
from cairn.files import write_atomically

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
    """Policy and target network with their optimiser; the paper's DQN (§III.A.b), Adam and Huber.

    tasks, actions  how many
    seed            of the first weights: the same gives the same
    """

    def __init__(self, config: DqnConfig, tasks: int, actions: int, *, seed: int, device: str = "cpu") -> None:
        self._config, self._device = config, torch.device(device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._policy = QNetwork(config, tasks, actions).to(self._device)
        self._target = deepcopy(self._policy).requires_grad_(requires_grad=False)
        self._anchor: dict[str, Tensor] = {}
        self._mu = 0.0
        self._optimiser = torch.optim.Adam(self._policy.parameters(), lr=config.learning_rate, fused=True)
        self._actions = actions
        self.updates = 0

    def q_values(self, states: npt.NDArray[np.uint8], task: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return Q of the policy network; float32[n, actions]."""
        with torch.inference_mode():
            q: npt.NDArray[np.float32] = self._policy(self._tensor(states), self._tensor(task)).cpu().numpy()
        return q

    def act(
        self, states: npt.NDArray[np.uint8], task: npt.NDArray[np.int64], epsilon: float, rng: np.random.Generator
    ) -> npt.NDArray[np.uint8]:
        """Choose actions ε-greedily; uint8[n]. States whose action is drawn are not shown to the network."""
        actions = rng.integers(0, self._actions, len(states), np.uint8)
        greedy = np.flatnonzero(rng.random(len(states)) >= epsilon)
        if len(greedy):
            actions[greedy] = self.q_values(states[greedy], task[greedy]).argmax(1)
        return actions

    def update(self, batch: Batch) -> Update:
        """Learn from one batch.

            loss = mean w·Huber(r + γ·max_a Q_target(s_t, a) - Q(s_tm1, a_tm1)) + μ/2·‖w - w_round‖²

        Raises Diverged when the loss or the gradient is not finite; the weights are then as they were.
        """
        config, task = self._config, self._tensor(batch.task)
        s_t = self._tensor(batch.s_t)
        r_t, discount_t = self._tensor(batch.r_t), self._tensor(batch.discount_t)
        with torch.no_grad():
            q_t = self._target(s_t, task)
            target = (
                losses.double_q_target(r_t, discount_t, q_t, self._policy(s_t, task))
                if config.double
                else losses.q_learning_target(r_t, discount_t, q_t)
            )
        error = losses.td_error(self._policy(self._tensor(batch.s_tm1), task), self._tensor(batch.a_tm1), target)
        loss = losses.weighted_loss(error, self._tensor(batch.weight), config.huber_delta)
        if self._mu:
            loss = loss + losses.proximal(dict(self._policy.named_parameters()), self._anchor, self._mu)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._policy.parameters(), config.clip_norm)
        value, length = float(loss.detach()), float(norm)
        if not (math.isfinite(value) and math.isfinite(length)):
            raise Diverged(
                f"after {self.updates} updates the loss is {value} and its gradient's norm {length}; the weights were "
                "kept as they were. Use a smaller learning rate, or look at the rewards"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = config.rate(self.updates)
        self._optimiser.step()
        self.updates += 1
        if self.updates % config.target_every == 0:
            self._target.load_state_dict(self._policy.state_dict())
        return Update(value, error.detach().cpu().numpy(), length)

    def weights(self) -> Weights:
        """Return a copy of the policy network's weights by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._policy.state_dict().items()}

    def load(self, weights: Weights, proximal_mu: float = 0.0) -> None:
        """Take a round's weights; with config.target_at_round_start into the target network too.

        proximal_mu  how hard the proximal term holds to them
        Raises TrainingError for those of another architecture, Diverged for those with NaN or infinity.
        """
        own = self._policy.state_dict()
        shapes, found = {n: tuple(v.shape) for n, v in own.items()}, {n: v.shape for n, v in weights.items()}
        if found != shapes:
            raise TrainingError(f"the weights are of another network: {_difference(found, shapes)}")
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise Diverged("the weights hold NaN or infinity; they were not taken")
        state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
        self._policy.load_state_dict(state)
        if self._config.target_at_round_start:
            self._target.load_state_dict(state)
        self._mu = proximal_mu
        self._anchor = {n: p.detach().clone() for n, p in self._policy.named_parameters()} if proximal_mu else {}

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        state = {
            "policy": self._policy.state_dict(),
            "target": self._target.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "updates": self.updates,
            "mu": self._mu,
            "anchor": self._anchor,
        }
        with write_atomically(path) as file:
            torch.save(state, file)

    def restore(self, path: Path) -> None:
        """Continue from a saved state, bit for bit. Raises TrainingError for one of another architecture."""
        state = torch.load(path, map_location=self._device, weights_only=True)
        try:
            self._policy.load_state_dict(state["policy"])
            self._target.load_state_dict(state["target"])
        except RuntimeError as error:
            raise TrainingError(f"{path.name} is of another network; start the run anew") from error
        self._optimiser.load_state_dict(state["optimiser"])
        self.updates, self._mu, self._anchor = state["updates"], state["mu"], state["anchor"]

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Name the first layer in which two networks differ."""
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            return f"{name} is {found.get(name, 'missing')} where {expected.get(name, 'nothing')} is expected"
    raise AssertionError("they do not differ")
