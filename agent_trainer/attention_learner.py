"""What learns where to look and what is seen: both networks, their optimiser, one update; paper 4 §IV, §V and §VII."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_draws import draw
from agent_trainer.attention_networks import Networks, Weights, architecture
from agent_trainer.attention_sampling import (
    advantage,
    classification_loss,
    reinforce_loss,
    reward_to_go,
    rewards,
)
from agent_trainer.attention_views import View
from agent_trainer.estimators import expectation
from agent_trainer.losses import proximal
from cairn.errors import Diverged, TrainingError
from cairn.files import write_atomically

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, as torch names them


@dataclass(frozen=True)
class Update:
    """What one update tells.

    loss       cross-entropy of the classification
    reward     mean probability of the right class of a patch
    entropy    of the attention, as a share of that of an even one
    right      share of predictions that were right
    grad_norm  before clipping
    """

    loss: float
    reward: float
    entropy: float
    right: float
    grad_norm: float


class AttentionLearner:
    """Networks with their optimiser.

    seed    of the first weights and of the draws
    device  of torch; the number of its threads is the caller's affair
    """

    def __init__(self, config: AttentionConfig, *, seed: int, device: str = "cpu") -> None:
        self.config, self.updates = config, 0
        self.networks = Networks(config, seed).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._baseline = 0.0
        learned_by_reward = self.networks.attention_parameters()
        if not config.train_attention:
            for parameter in learned_by_reward.values():
                parameter.requires_grad_(requires_grad=False)
        self._parameters = {name: p for name, p in self.networks.named_parameters() if p.requires_grad}
        rate = config.attention_rate or config.learning_rate
        rates: dict[float, list[Tensor]] = {}
        for name, parameter in self._parameters.items():
            rates.setdefault(rate if name in learned_by_reward else config.learning_rate, []).append(parameter)
        groups: list[dict[str, Any]] = [{"params": group, "lr": lr} for lr, group in rates.items()]
        self._adam = torch.optim.Adam(groups, fused=True)
        self._anchor: dict[str, Tensor] = {}
        self._mu = 0.0

    def update(
        self, views: Sequence[View], labels: npt.NDArray[np.int64], class_weights: npt.NDArray[np.float32] | None = None
    ) -> Update:
        """Learn from a batch of images, float32[K] the weights of the classes in the loss.

        Raises Diverged when the loss or the gradient is not finite; the weights are then as they were. ImageError for
        an image that cannot be cut, with the weights as they were.
        """
        before = {name: buffer.clone() for name, buffer in self.networks.named_buffers()}
        try:
            return self._update(views, labels, class_weights)
        except BaseException:
            with torch.no_grad():
                for name, buffer in self.networks.named_buffers():
                    buffer.copy_(before[name])
            raise

    def _update(
        self, views: Sequence[View], labels: npt.NDArray[np.int64], class_weights: npt.NDArray[np.float32] | None
    ) -> Update:
        config, networks = self.config, self.networks
        networks.train()
        if not config.train_attention:
            networks.attention.eval()
        weigh = None if class_weights is None else torch.from_numpy(class_weights).to(self.generator.device)
        parts = []
        for shape in dict.fromkeys(view.shape for view in views):  # maps of one shape go through together
            chosen = [place for place, view in enumerate(views) if view.shape == shape]
            parts.append(self._part([views[i] for i in chosen], labels[chosen], weigh))
        share = torch.tensor([len(part) for part in parts], dtype=torch.float32) / len(views)
        total, told = (
            sum(part.loss * s for part, s in zip(parts, share, strict=True)),
            torch.stack([part.told for part in parts]),
        )
        assert isinstance(total, Tensor)
        told = (told.cpu() * share[:, None]).sum(0)
        if self._mu:
            total = total + proximal(self._parameters, self._anchor, self._mu)
        gradients = torch.autograd.grad(total, list(self._parameters.values()), allow_unused=True)
        full = [
            torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters.values(), gradients, strict=True)
        ]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(full)))
        loss, grad_norm = float(total.detach()), float(norm)
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            raise Diverged(
                f"update {self.updates + 1} was refused: loss {loss:g}, gradient norm {grad_norm:g}; "
                "finite numbers were expected; lower learning_rate, and go back to an earlier checkpoint"
            )
        if grad_norm > config.clip_norm:
            torch._foreach_mul_(full, config.clip_norm / grad_norm)
        for parameter, gradient in zip(self._parameters.values(), full, strict=True):
            parameter.grad = gradient
        self._adam.step()
        self._adam.zero_grad()
        self.updates += 1
        classification, reward, entropy, right = told.tolist()
        if config.baseline == "moving":
            self._baseline += (1 - config.baseline_decay) * (reward - self._baseline)
        return Update(classification, reward, entropy, right, grad_norm)

    def _part(self, views: Sequence[View], labels: npt.NDArray[np.int64], weigh: Tensor | None) -> "_Part":
        """Draw, vote and weigh up; the losses of images whose maps have one shape."""
        config = self.config
        y = torch.from_numpy(labels).to(self.generator.device)
        drawn = draw(self.networks, views, config.replicas, self.generator)
        votes = self.networks.votes(drawn.patches).view(*drawn.cells.shape, len(config.classes))
        expected = expectation(drawn.weights(config), votes)
        classification = classification_loss(expected, y, weigh)
        reward = rewards(votes, y)
        baseline = self._baseline if config.baseline == "moving" else None
        gain = advantage(
            reward,
            baseline,
            per_image=config.baseline == "image",
            standardise=config.standardise,
            floor=config.deviation_floor,
        )
        if config.sampling == "conditional":
            gain = reward_to_go(gain)
        loss = classification
        if config.train_attention:
            loss = loss + reinforce_loss(drawn.log_a, gain, drawn.gradient_weights(config))
            loss = loss + config.entropy_weight(self.updates) * drawn.negative_entropy
        even = np.log(max(2, drawn.maps.shape[1]))
        right = (expected.detach().argmax(-1) == y[:, None]).to(torch.float32).mean()
        told = torch.stack([classification.detach(), reward.mean(), -drawn.negative_entropy.detach() / even, right])
        return _Part(loss, told, len(views))

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]], proximal_mu: float = 0.0) -> None:
        """Take a round's weights; Adam's moments stay.

        proximal_mu  over 0 holds all updates until the next load to these weights (FedProx)
        Raises TrainingError for weights of another architecture, Diverged for those that are not finite.
        """
        self.networks.load(weights)
        self._mu = proximal_mu
        self._anchor = {name: p.detach().clone() for name, p in self._parameters.items()} if proximal_mu else {}

    def weights(self) -> Weights:
        """Return a copy of all weights by name, float32."""
        weights: Weights = self.networks.weights()
        return weights

    def save(self, path: Path) -> None:
        """Write the whole state to one file, atomically."""
        tensors = {f"network.{name}": t for name, t in self.networks.state_dict().items()}
        tensors |= {f"anchor.{name}": t for name, t in self._anchor.items()}
        for name, parameter in self._parameters.items():
            tensors |= {f"{moment}.{name}": self._adam.state[parameter][moment] for moment in MOMENTS if self.updates}
        tensors["generator"] = self.generator.get_state()
        state = {"updates": self.updates, "mu": self._mu, "baseline": self._baseline}
        told = {"learner": json.dumps(state | {"architecture": architecture(self.config)})}
        with write_atomically(path) as file:
            file.write(save({name: t.contiguous() for name, t in tensors.items()}, told))

    def restore(self, path: Path) -> None:
        """Continue from a saved state, bit for bit.

        Raises TrainingError when the file cannot be read or is of another architecture; nothing is then changed.
        """
        try:
            with safe_open(path, "pt") as file:
                state = json.loads((file.metadata() or {}).get("learner", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, ValueError) as error:
            raise TrainingError(f"{path.name} is not a learner's saved state ({error}); restore another") from error
        if state.get("architecture") != architecture(self.config):
            raise TrainingError(
                f"{path.name} is of other networks: found {state.get('architecture', 'none')}; "
                f"expected {architecture(self.config)}"
            )
        self.networks.load_state_dict(_part(tensors, "network"))
        self._anchor, self._mu = _part(tensors, "anchor"), state["mu"]
        self.updates, self._baseline = state["updates"], state["baseline"]
        self.generator.set_state(tensors["generator"])
        self._adam.state.clear()
        moments = {moment: _part(tensors, moment) for moment in MOMENTS}
        for name, parameter in self._parameters.items() if self.updates else ():
            kept = {m: torch.empty_like(parameter).copy_(moments[m][name]) for m in MOMENTS}
            step = torch.tensor(float(self.updates), dtype=torch.float32, device=parameter.device)
            self._adam.state[parameter] = {"step": step, **kept}


@dataclass(frozen=True)
class _Part:
    """The loss of some images of a batch, and what Update tells of them."""

    loss: Tensor
    told: Tensor
    images: int

    def __len__(self) -> int:
        return self.images


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
