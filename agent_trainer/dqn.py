"""Deep Q-learning with a policy and a target network; paper 1 §II.B and §III.A.b."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent_trainer import saved_state
from agent_trainer.compiling import ASKED, UNCOMPILED, Forward
from agent_trainer.config import DqnConfig
from agent_trainer.craft.transfer import Staged
from agent_trainer.gradients import put_gradients
from agent_trainer.losses import double_q_target, proximal, q_learning_target, td_error, weighted_loss
from agent_trainer.networks import QNetwork, architecture, last_layers
from agent_trainer.precision import autocast, on_device, reduced
from agent_trainer.targets import TargetCache
from agent_trainer.together import Part
from cairn.errors import Diverged, TrainingError

Weights = dict[str, npt.NDArray[np.float32]]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, as torch names them
OWN_CODE = f"{ASKED}, and on a CPU this agent's convolutions are code of its own, which stays; {UNCOMPILED}"


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
    index       int64[b]                  names of the transitions in the replay, for its priorities
    """

    s_tm1: npt.NDArray[np.uint8]
    task: npt.NDArray[np.int64]
    a_tm1: npt.NDArray[np.int64]
    r_t: npt.NDArray[np.float32]
    discount_t: npt.NDArray[np.float32]
    s_t: npt.NDArray[np.uint8]
    weight: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]


def dealt(batch: Batch) -> list[Tensor]:
    """Return a batch as tensors that can be dealt out by rows."""
    return [torch.from_numpy(getattr(batch, field.name)) for field in fields(Batch)]


@dataclass(frozen=True)
class Update:
    """What one update tells.

    loss       weighted mean Huber loss, with the proximal term
    td_error   float32[b], mm, before the update
    grad_norm  before clipping
    """

    loss: float
    td_error: npt.NDArray[np.float32]
    grad_norm: float


class Learner:
    """Policy and target network with their optimiser.

    tasks, actions  how many the network tells apart
    seed            of the first weights
    device          of torch; the number of its threads is the caller's affair
    """

    def __init__(self, config: DqnConfig, tasks: int, actions: int, *, seed: int, device: str = "cpu") -> None:
        self.config, self.updates = config, 0
        self.architecture = architecture(config, actions, tasks)
        self._run = saved_state.digest(seed, config)
        self._device = torch.device(device)
        self.online = QNetwork(config, actions, tasks, seed).to(self._device)
        self._target = QNetwork(config, actions, tasks, seed).to(self._device).requires_grad_(requires_grad=False)
        self._parameters = dict(self.online.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), lr=config.learning_rate, fused=True)
        self.staged = Staged(self.online, config.transfer, last_layers(config))
        self._anchor: dict[str, Tensor] = {}
        self._mu = 0.0
        self._targets = TargetCache(actions)
        self._reduced, self._remark = reduced(config.precision, self._device)
        own_code = OWN_CODE if self._device.type == "cpu" else ""
        self._forward, self._forward_target = (
            Forward(network, self._device, wanted=config.compile, own_code=own_code)
            for network in (self.online, self._target)
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what was asked for and this machine cannot do."""
        return tuple(filter(None, (self._remark, self._forward.remark)))

    def q_values(self, states: npt.NDArray[np.uint8] | Tensor, task: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return Q of the policy network; float32[n, actions] of uint8[n, history, *box] and int64[n]."""
        with torch.inference_mode():
            q: npt.NDArray[np.float32] = self.online(self._tensor(states), self._tensor(task)).cpu().numpy()
        return q

    def act(
        self,
        states: npt.NDArray[np.uint8] | Tensor,
        task: npt.NDArray[np.int64],
        epsilon: float,
        rng: np.random.Generator,
    ) -> npt.NDArray[np.uint8]:
        """Choose actions ε-greedily: with probability ε any, else the one of highest Q; uint8[n].

        States may lie on the device already. Only those that do not explore are asked of the network.
        """
        actions = rng.integers(self.online.actions, size=len(states), dtype=np.uint8)
        greedy = np.flatnonzero(rng.random(len(states)) >= epsilon)
        if len(greedy):
            rows = self._tensor(greedy) if isinstance(states, Tensor) else greedy
            actions[greedy] = self.q_values(states[rows], task[greedy]).argmax(1)
        return actions

    def update(self, batch: Batch, part: Part | None = None) -> Update:
        """Learn from one batch.

        part  when it is a part of a batch: the update, and what it tells, is then the whole batch's in all processes
        Raises Diverged when the loss or the gradient is not finite, and what `part` raises; the weights are then as
        they were.
        """
        self.staged.train(self.updates)
        task, a_tm1, weight = self._tensor(batch.task), self._tensor(batch.a_tm1), self._tensor(batch.weight)
        target = self._target_values(batch)
        with autocast(self._device, self._reduced):
            q_tm1 = self._forward(self._tensor(batch.s_tm1), task)
        error = td_error(q_tm1.float(), a_tm1, target)
        loss = weighted_loss(error, weight, self.config.huber_delta)
        if self._mu:
            loss = loss + proximal(self._parameters, self._anchor, self._mu)
        if part is not None:
            loss = loss * part.share
        gradients = list(torch.autograd.grad(loss, self._training()))
        loss, error = loss.detach(), error.detach()
        if part is not None:
            *gradients, loss, error = part.summed([*gradients, loss, part.placed(error)])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        numbers = torch.stack([loss, norm]).cpu()
        loss_value, grad_norm = float(numbers[0]), float(numbers[1])
        if not (np.isfinite(loss_value) and np.isfinite(grad_norm)):
            raise Diverged(
                f"update {self.updates + 1} was refused: loss {loss_value:g}, gradient norm {grad_norm:g}; "
                "finite numbers were expected; lower learning_rate or clip_norm, and check the rewards"
            )
        if grad_norm > self.config.clip_norm:
            torch._foreach_mul_(gradients, self.config.clip_norm / grad_norm)
        self._step(gradients)
        return Update(loss_value, error.cpu().numpy(), grad_norm)

    def learn_part(self, rows: Sequence[Tensor], part: Part) -> Update:
        """Do `update` with the rows of a batch that `dealt` made tensors; see `together.Learner`, also below."""
        return self.update(Batch(*(tensor.cpu().numpy() for tensor in rows)), part)

    def counters(self) -> dict[str, Any]:
        """Tell the updates made, mu, and Adam's steps of each layer."""
        return {"updates": self.updates, "mu": self._mu, "steps": self._adam_steps()}

    def shared(self) -> list[Tensor]:
        """Return the weights of both networks, Adam's moments and what holds updates to a round's weights."""
        networks = (*self.online.state_dict().values(), *self._target.state_dict().values())
        moments = (self._adam.state[self._parameters[name]][m] for name in self._adam_steps() for m in MOMENTS)
        return [*networks, *moments, *self._anchor.values()]

    def follow(self, counters: Mapping[str, Any]) -> None:
        """Take another learner's counters."""
        self.updates, self._mu = int(counters["updates"]), float(counters["mu"])
        self._anchor = {name: torch.empty_like(p) for name, p in self._parameters.items() if self._mu}
        self._adam.state.clear()
        for name, steps in counters["steps"].items():
            p = self._parameters[name]
            self._adam.state[p] = {"step": self._step_number(steps), **{m: torch.empty_like(p) for m in MOMENTS}}
        self._targets.forget()

    def _target_values(self, batch: Batch) -> Tensor:
        """Return y of a batch, float32[b]. Of a state seen since the target network last changed, Q is remembered."""
        states, task = batch.s_t, batch.task
        r_t, discount_t = self._tensor(batch.r_t), self._tensor(batch.discount_t)
        with torch.no_grad(), autocast(self._device, self._reduced):
            if self._device.type == "cuda":  # computes them sooner than the CPU looks them up
                q_t = self._forward_target(self._tensor(states), self._tensor(task)).float()
            else:
                q_t = self._tensor(self._targets.look_up(states, task, partial(self._q_target, batch)))
            if not self.config.double:
                return q_learning_target(r_t, discount_t, q_t)
            selector = self._forward(self._tensor(states), self._tensor(task)).float()
        return double_q_target(r_t, discount_t, q_t, selector)

    def _q_target(self, batch: Batch, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        found = self._target(self._tensor(batch.s_t[rows]), self._tensor(batch.task[rows]))
        q: npt.NDArray[np.float32] = found.float().numpy()
        return q

    def _step(self, gradients: list[Tensor]) -> None:
        put_gradients(self._training(), gradients)
        self.staged.set_rate(self._adam, self.config.rate(self.updates), self.updates)
        self._adam.step()
        self._adam.zero_grad()
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self._copy_to_target()

    def _training(self) -> list[Tensor]:
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def _copy_to_target(self) -> None:
        self._target.load_state_dict(self.online.state_dict())
        self._targets.forget()

    def weights(self) -> Weights:
        """Return a copy of the policy network's weights by name, float32."""
        return {name: tensor.cpu().numpy().copy() for name, tensor in self.online.state_dict().items()}

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]], proximal_mu: float = 0.0) -> None:
        """Take a round's weights for the policy network; Adam's moments stay.

        The target network takes them too before the first update, or with config.target_at_round_start.

        proximal_mu  over 0 holds all updates until the next load to these weights (FedProx)
        Raises TrainingError for weights of another architecture, Diverged for those that are not finite.
        """
        self._check(weights)
        self.online.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self._mu = proximal_mu
        self._anchor = {name: p.detach().clone() for name, p in self._parameters.items()} if proximal_mu else {}
        if self.updates == 0 or self.config.target_at_round_start:
            self._copy_to_target()

    def _check(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        found = {name: array.shape for name, array in weights.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.online.state_dict().items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise TrainingError(
                    f"the weights are not of this network ({self.architecture}): {name} is "
                    f"{found.get(name, 'not there')}, {expected.get(name, 'none')} was expected"
                )
        if broken := [name for name, array in weights.items() if not np.isfinite(array).all()]:
            raise Diverged(f"the weights {broken[0]} are not all finite numbers; go back to an earlier checkpoint")

    def save(self, path: Path, caller: Mapping[str, Any] | None = None) -> None:
        """Write the whole state to one file, atomically, and the caller's own JSON with it. Raises OSError."""
        self._targets.forget()  # so that who goes on and who restores compute the same
        tensors = {f"online.{name}": t for name, t in self.online.state_dict().items()}
        tensors |= {f"target.{name}": t for name, t in self._target.state_dict().items()}
        tensors |= {f"anchor.{name}": t for name, t in self._anchor.items()}
        steps = self._adam_steps()
        for name in steps:
            tensors |= {f"{moment}.{name}": self._adam.state[self._parameters[name]][moment] for moment in MOMENTS}
        state = {"updates": self.updates, "mu": self._mu, "steps": steps, "caller": dict(caller or {})}
        saved_state.write(path, self._run, tensors, state)

    def restore(self, path: Path) -> dict[str, Any]:
        """Continue from a saved state, bit for bit; returns what the caller gave to `save`.

        Raises TrainingError when the file cannot be read or is of another run; nothing is then changed.
        """
        tensors, state = saved_state.read(path, self._run)
        alike = saved_state.alike
        with saved_state.fitting(path):
            online, target = (
                {name: alike(tensors[f"{of}.{name}"], t) for name, t in self.online.state_dict().items()}
                for of in ("online", "target")
            )
            mu, updates, caller = float(state["mu"]), int(state["updates"]), dict(state["caller"])
            anchor = {name: alike(tensors[f"anchor.{name}"], p) for name, p in self._parameters.items() if mu}
            adam = {
                self._parameters[name]: {
                    "step": self._step_number(steps),
                    **{m: alike(tensors[f"{m}.{name}"], self._parameters[name]) for m in MOMENTS},
                }
                for name, steps in state["steps"].items()
            }
        self.online.load_state_dict(online)
        self._target.load_state_dict(target)
        self._anchor, self._mu, self.updates = anchor, mu, updates
        self._targets.forget()
        self._adam.state.clear()
        self._adam.state.update(adam)
        return caller

    def _adam_steps(self) -> dict[str, int]:
        """Tell Adam's steps; layers that do not train, or not from the start, have fewer or none."""
        state, held = self._adam.state, self._parameters.items()
        return {name: int(state[p]["step"]) for name, p in held if p in state}

    def _step_number(self, steps: int) -> Tensor:
        return torch.tensor(float(steps), device=self._device)

    def _tensor(self, array: npt.NDArray[np.generic] | Tensor) -> Tensor:
        return on_device(array, self._device)
