"""A pre-training network with its optimiser: steps that are whole or not at all, a round's weights, a saved state."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agent_trainer import saved_state
from agent_trainer.algorithms import Weights
from agent_trainer.gradients import put_gradients
from agent_trainer.module_weights import as_weights, put_weights
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.networks import architecture, build
from agent_trainer.pretraining.tasks import Posed, hidden, jumbled, orders, turned, whole
from cairn.errors import Diverged

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Step:
    """What a batch told.

    losses   float32[b], of each image
    right    share of the right choices of each image, float32[b]; None where nothing is chosen
    """

    losses: Tensor
    right: Tensor | None


class Learner:
    """The network that solves a task which images set by themselves.

    seed    of the first weights
    device  of torch; the number of its threads is the caller's affair
    """

    def __init__(self, config: PretrainConfig, *, seed: int, device: str = "cpu") -> None:
        self.config, self.updates = config, 0
        self._device = torch.device(device)
        self._run = saved_state.digest(seed, config)
        self.network = build(config, seed).to(self._device)
        scale = ((0.0,), (1.0,)) if config.encoder == "dqn" else config.classifier().scale
        self.scale = [torch.tensor(part, device=self._device)[:, None, None] for part in scale]  # mean, deviation
        self._orders = orders(config.grid**2, config.permutations) if config.method == "jigsaw" else None
        self._parameters = list(self.network.parameters())
        self._adam = torch.optim.Adam(self._parameters, lr=config.learning_rate, fused=True)
        for p in self._parameters:  # there from the start, so that a step can be taken back whenever it was
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self._adam.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self._anchor: list[Tensor] = []
        self._mu = 0.0
        self._spare = [torch.empty_like(tensor) for tensor in self._live()]

    def _live(self) -> list[Tensor]:
        """All that a step changes: weights, statistics of batch norm, Adam's moments."""
        moments = [tensor for p in self._parameters for tensor in self._adam.state[p].values()]
        return [*self.network.state_dict().values(), *moments]

    def scaled(self, pixels: Pixels) -> Tensor:
        """Return x of uint8[b, channels, h, w] as the encoder will see it later."""
        x = torch.from_numpy(pixels).to(self._device).to(torch.float32, memory_format=torch.channels_last)
        return x.div_(255).sub_(self.scale[0]).div_(self.scale[1])

    def posed(self, pixels: Pixels, rng: np.random.Generator) -> Posed:
        """Set a batch its task."""
        x, config = self.scaled(pixels), self.config
        match config.method:
            case "rotation":
                return turned(x)
            case "jigsaw":
                assert self._orders is not None
                return jumbled(x, self._orders, config.grid, config.gap, rng)
            case "masked":
                return hidden(x, config.patch, config.hidden_share, rng)
            case _:
                return whole(x)

    def _solved(self, task: Posed, images: int) -> Step:
        said = self.network(task.seen)
        if task.labels is not None:
            losses = functional.cross_entropy(said, task.labels, reduction="none").view(images, -1).mean(1)
            right = (said.argmax(1) == task.labels).float().view(images, -1).mean(1)
            return Step(losses, right)
        assert task.wanted is not None
        squares = (said - task.wanted).square()
        if task.where is None:
            return Step(squares.mean((1, 2, 3)), None)
        asked = task.where.expand_as(squares)
        return Step((squares * asked).sum((1, 2, 3)) / asked.sum((1, 2, 3)).clamp(min=1), None)

    def step(self, pixels: Pixels, rng: np.random.Generator) -> Step:
        """Learn from one batch, uint8[b, channels, h, w].

        Raises Diverged when the loss or a gradient is not finite; all is then as it was before the batch.
        """
        task = self.posed(pixels, rng)
        torch._foreach_copy_(self._spare, self._live())
        self.network.train()
        made = self._solved(task, len(pixels))
        loss = made.losses.mean()
        gradients = list(torch.autograd.grad(loss, self._parameters))
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        numbers = torch.stack([loss.detach(), norm]).cpu()
        if not torch.isfinite(numbers).all():
            torch._foreach_copy_(self._live(), self._spare)  # statistics of batch norm have moved already
            raise Diverged(
                f"update {self.updates + 1} was refused: the loss is {float(numbers[0]):g}, its gradient's norm "
                f"{float(numbers[1]):g}; finite numbers were expected; lower learning_rate"
            )
        if self._mu:
            apart = torch._foreach_sub([p.detach() for p in self._parameters], self._anchor)
            torch._foreach_add_(gradients, apart, alpha=self._mu)
        put_gradients(self._parameters, gradients)
        self._adam.step()
        self._adam.zero_grad()
        self.updates += 1
        return Step(made.losses.detach(), made.right)

    def measure(self, pixels: Pixels, rng: np.random.Generator) -> Step:
        """Set a batch its task and learn nothing."""
        self.network.eval()
        with torch.inference_mode():
            return self._solved(self.posed(pixels, rng), len(pixels))

    def features(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return what the encoder makes of images, the mean over their places: float32[b, c]."""
        self.network.eval()
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self.network.features(self.scaled(pixels)).mean((2, 3)).cpu().numpy()
        return found

    def weights(self) -> Weights:
        """Copy all weights and statistics by name, as float32."""
        return as_weights(self.network)

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]], proximal_mu: float = 0.0) -> None:
        """Take a round's weights; Adam's moments stay.

        proximal_mu  over 0 holds all updates until the next load to these weights (FedProx)
        Raises TrainingError for weights of another shape, Diverged for those that are not finite.
        """
        put_weights(self.network, weights, architecture(self.config))
        self._mu = proximal_mu
        self._anchor = [p.detach().clone() for p in self._parameters] if proximal_mu else []

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write the whole state to one file, atomically, and the caller's own JSON with it."""
        tensors = {f"live.{i}": tensor for i, tensor in enumerate(self._live())}
        tensors |= {f"anchor.{i}": tensor for i, tensor in enumerate(self._anchor)}
        saved_state.write(path, self._run, tensors, {"updates": self.updates, "mu": self._mu, "caller": dict(state)})

    def restore(self, path: Path) -> dict[str, Any]:
        """Continue from a saved state, bit for bit; returns the caller's own JSON.

        Raises TrainingError when the file cannot be read, is of another run, or of another shape; nothing is then
        changed.
        """
        tensors, state = saved_state.read(path, self._run)
        alike = saved_state.alike
        with saved_state.fitting(path):
            updates, mu, caller = int(state["updates"]), float(state["mu"]), dict(state["caller"])
            live = [alike(tensors[f"live.{i}"], tensor) for i, tensor in enumerate(self._live())]
            anchor = [alike(tensors[f"anchor.{i}"], p) for i, p in enumerate(self._parameters)] if mu else []
        torch._foreach_copy_(self._live(), live)
        self.updates, self._mu, self._anchor = updates, mu, anchor
        return caller
