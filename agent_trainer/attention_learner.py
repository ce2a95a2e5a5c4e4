"""What learns where to look and what is seen: both networks, their optimiser, one update; paper 4 §IV, §V and §VII."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent_trainer import saved_state
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_draws import draw_all
from agent_trainer.attention_networks import Networks, Weights
from agent_trainer.attention_sampling import (
    advantage,
    classification_loss,
    reinforce_loss,
    reward_to_go,
    rewards,
)
from agent_trainer.attention_views import View
from agent_trainer.attention_votes import Cast, cast
from agent_trainer.compiling import Forward
from agent_trainer.estimators import expectation
from agent_trainer.gradients import put_gradients
from agent_trainer.losses import proximal
from agent_trainer.precision import autocast, on_device, reduced
from agent_trainer.together import Deal, Part
from cairn.errors import Diverged

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

    Images whose maps differ in shape may lie in one batch. Rewards, their mean and deviation, the losses and the
    classifier's batch normalisation, if it has one, are over the whole batch. The attention's batch normalisation is
    over the cells of the maps of one shape at a time: a map alone in its shape is normalised by its own cells, and the
    running statistics move once for each shape, in the order in which the shapes come up.

    seed    of the first weights and of the draws
    device  of torch; the number of its threads is the caller's affair
    """

    def __init__(self, config: AttentionConfig, *, seed: int, device: str = "cpu") -> None:
        self.config, self.updates = config, 0
        self._run = saved_state.digest(seed, config)
        self.networks = Networks(config, seed).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._reduced, self._remark = reduced(config.precision, torch.device(device))
        self._classify = Forward(self.networks.classifier, torch.device(device), wanted=config.compile)
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

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what was asked for and this machine cannot do."""
        return tuple(filter(None, (self._remark, self._classify.remark)))

    def update(
        self,
        views: Sequence[View],
        labels: npt.NDArray[np.int64],
        class_weights: npt.NDArray[np.float32] | None = None,
        deal: Deal | None = None,
    ) -> Update:
        """Learn from a batch of images, float32[K] the weights of the classes in the loss.

        deal  gives other processes their share of the patches, which they classify and learn from; all else is done
              here
        Raises Diverged when the loss or the gradient is not finite; the weights are then as they were. ImageError for
        an image that cannot be cut, and what `deal` raises, with the weights as they were.
        """
        with self._whole():
            self._train()
            total, told, votes = self._losses(views, labels, class_weights, deal)
            if self._mu:
                total = total + proximal(self._parameters, self._anchor, self._mu)
            asked = [*self._parameters.values(), *([] if votes is None else [votes.all])]
            found = torch.autograd.grad(total, asked, allow_unused=True)
            full = [torch.zeros_like(p) if g is None else g for p, g in zip(asked, found, strict=True)]
            total = total.detach()
            if votes is not None:
                *full, total = votes.learned(full[:-1], total, full[-1], self._parameters.values())
            grad_norm = self._descend(full, total)
        classification, reward, entropy, right = told.tolist()
        if self.config.baseline == "moving":
            self._baseline += (1 - self.config.baseline_decay) * (reward - self._baseline)
        return Update(classification, reward, entropy, right, grad_norm)

    def learn_part(self, rows: Sequence[Tensor], part: Part) -> None:
        """Classify patches that the first process drew, and make the step that it makes; see `together.Learner`."""
        with self._whole():
            self._train()
            votes = self._cast(rows, part)
            none = [torch.zeros_like(p) for p in self._parameters.values()]
            nothing = votes.all.new_zeros(()), torch.zeros_like(votes.all)
            *full, total = votes.learned(none, *nothing, self._parameters.values())
            self._descend(full, total)

    def _cast(self, rows: Sequence[Tensor], part: Part) -> Cast:
        """Vote on some of a batch's patches, others on the others."""
        return cast(self._votes(on_device(rows[0], self.generator.device)), part)

    def _votes(self, patches: Tensor) -> Tensor:
        # What to draw and what it weighs stays in float32; the classifier is what takes the time.
        with autocast(self.generator.device, self._reduced):
            return self.networks.votes(patches, self._classify)

    def _train(self) -> None:
        self.networks.train()
        if not self.config.train_attention:
            self.networks.attention.eval()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Put statistics of batch normalisation back when what is done inside fails."""
        before = {name: buffer.clone() for name, buffer in self.networks.named_buffers()}
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for name, buffer in self.networks.named_buffers():
                    buffer.copy_(before[name])
            raise

    def _descend(self, full: list[Tensor], total: Tensor) -> float:
        """Make a step by gradients of all parameters; returns their norm. Raises Diverged."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(full)))
        loss, grad_norm = float(total), float(norm)
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            raise Diverged(
                f"update {self.updates + 1} was refused: loss {loss:g}, gradient norm {grad_norm:g}; "
                "finite numbers were expected; lower learning_rate, and go back to an earlier checkpoint"
            )
        if grad_norm > self.config.clip_norm:
            torch._foreach_mul_(full, self.config.clip_norm / grad_norm)
        put_gradients(self._parameters.values(), full)
        self._adam.step()
        self._adam.zero_grad()
        self.updates += 1
        return grad_norm

    def _losses(
        self,
        views: Sequence[View],
        labels: npt.NDArray[np.int64],
        class_weights: npt.NDArray[np.float32] | None,
        deal: Deal | None,
    ) -> tuple[Tensor, Tensor, Cast | None]:
        """Draw, vote and weigh up: a batch's loss, what Update tells of it, float32[4] but for the norm, and the votes.

        Votes that several processes cast are leaves: no gradient leads through them yet.
        """
        config, device = self.config, self.generator.device
        weigh = None if class_weights is None else torch.from_numpy(class_weights).to(device)
        of_shape: dict[tuple[int, int], list[int]] = {}
        for place, view in enumerate(views):
            of_shape.setdefault(view.shape, []).append(place)
        groups = [[views[i] for i in some] for some in of_shape.values()]
        parts = draw_all(self.networks, groups, config.replicas, self.generator)
        y = torch.from_numpy(labels[np.concatenate(list(of_shape.values()))]).to(device)  # as the parts are in order
        patches = torch.cat([part.patches for part in parts])
        joint = None if deal is None else self._cast(*deal([patches]))
        votes = self._votes(patches) if joint is None else joint.all
        votes = votes.view(len(views), config.replicas, -1, len(config.classes))
        expected = expectation(torch.cat([part.weights(config) for part in parts]), votes)
        classification = classification_loss(expected, y, weigh, config.loss)
        reward = rewards(votes, y)
        gain = advantage(
            reward,
            self._baseline if config.baseline == "moving" else None,
            per_image=config.baseline == "image",
            standardise=config.standardise,
            floor=config.deviation_floor,
        )
        if config.sampling == "conditional":
            gain = reward_to_go(gain)
        shares = [len(part.maps) / len(views) for part in parts]
        loss = classification
        if config.train_attention:
            log_a = torch.cat([part.log_a for part in parts])
            loss = loss + reinforce_loss(log_a, gain, torch.cat([part.gradient_weights(config) for part in parts]))
            for part, share in zip(parts, shares, strict=True):
                loss = loss + config.entropy_weight(self.updates) * share * part.negative_entropy
        entropy = sum(
            share * -part.negative_entropy.detach() / np.log(max(2, part.maps.shape[1]))
            for part, share in zip(parts, shares, strict=True)
        )
        assert isinstance(entropy, Tensor)
        right = (expected.detach().argmax(-1) == y[:, None]).to(torch.float32).mean()
        return loss, torch.stack([classification.detach(), reward.mean(), entropy, right]), joint

    def counters(self) -> dict[str, float]:
        """See `together.Learner`, also below."""
        return {"updates": self.updates, "mu": self._mu}

    def shared(self) -> list[Tensor]:
        """Return all that a step changes or reads, but for the draws, which the first process makes."""
        moments = (self._adam.state[p][m] for p in self._parameters.values() for m in MOMENTS if self.updates)
        return [*self.networks.state_dict().values(), *moments, *self._anchor.values()]

    def follow(self, counters: Mapping[str, float]) -> None:
        """Take another learner's counters."""
        self.updates, self._mu = int(counters["updates"]), float(counters["mu"])
        self._anchor = {name: torch.empty_like(p) for name, p in self._parameters.items() if self._mu}
        empty = {name: {m: torch.empty_like(p) for m in MOMENTS} for name, p in self._parameters.items()}
        self._put_moments(empty if self.updates else {})

    def _put_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._adam.state.clear()
        for name, kept in moments.items():
            parameter = self._parameters[name]
            step = torch.tensor(float(self.updates), dtype=torch.float32, device=parameter.device)
            self._adam.state[parameter] = {"step": step, **kept}

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
        saved_state.write(
            path, self._run, tensors, {"updates": self.updates, "mu": self._mu, "baseline": self._baseline}
        )

    def restore(self, path: Path) -> None:
        """Continue from a saved state, bit for bit.

        Raises TrainingError when the file cannot be read, is of another run, or of another shape; nothing is then
        changed.
        """
        tensors, state = saved_state.read(path, self._run)
        alike = saved_state.alike
        with saved_state.fitting(path):
            updates, mu, baseline = int(state["updates"]), float(state["mu"]), float(state["baseline"])
            held = {name: alike(tensors[f"network.{name}"], t) for name, t in self.networks.state_dict().items()}
            anchor = {name: alike(tensors[f"anchor.{name}"], p) for name, p in self._parameters.items() if mu}
            moments = {
                name: {moment: alike(tensors[f"{moment}.{name}"], p) for moment in MOMENTS}
                for name, p in self._parameters.items()
                if updates
            }
            generator = torch.Generator(self.generator.device)
            generator.set_state(tensors["generator"])
        self.networks.load_state_dict(held)
        self._anchor, self._mu, self.generator = anchor, mu, generator
        self.updates, self._baseline = updates, baseline
        self._put_moments(moments)
