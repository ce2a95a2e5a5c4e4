"""A network that segments with its optimiser: steps that are whole or not at all, a round's weights, a saved state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent_trainer import saved_state
from agent_trainer.algorithms import Weights
from agent_trainer.compiling import Forward
from agent_trainer.craft import transfer
from agent_trainer.gradients import put_gradients
from agent_trainer.module_weights import as_weights, put_weights
from agent_trainer.precision import autocast, on_device, reduced
from agent_trainer.seeding import seeded
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.networks import architecture, last_layer, load_pretrained, network
from agent_trainer.together import Part
from cairn.errors import Diverged, TrainingError

WINDOWS: Final = 4  # of a volume that go through the network at once
SCALE: Final = 2.0**16  # of the loss in float16, at the start; halved when a gradient is no number
LEAST_SCALE: Final = 1.0
CLEAN: Final = 2000  # steps after which it is doubled


@dataclass(frozen=True)
class Step:
    """What an update tells: the loss, and the Dice of the answers over the classes in the patches; None without one."""

    loss: float
    dice: float | None


@dataclass(frozen=True)
class Saved:
    """A saved state that fits; `tensors` and `caller` are what the caller gave to `save`, besides the learner's own."""

    live: list[Tensor]
    anchor: list[Tensor]
    updates: int
    mu: float
    scale: float
    clean: int
    tensors: dict[str, Tensor]
    caller: dict[str, Any]


class Learner:
    """The network and Adam.

    seed    of the first weights, and of dropout
    device  of torch; the number of its threads is the caller's affair
    """

    def __init__(self, config: SegmentationConfig, *, seed: int, device: str = "cpu") -> None:
        from monai.losses.dice import DiceCELoss, DiceLoss  # noqa: PLC0415 - takes seconds

        self.config, self.updates = config, 0
        self._seed, self._device = seed, torch.device(device)
        self._run = saved_state.digest(seed, config)
        self._reduced, self._remark = reduced(config.precision, self._device, scaled=True)
        self._scale, self._clean = (SCALE if self._reduced == torch.float16 else 1.0), 0
        self.network = network(config, seed).to(self._device)
        self._forward = Forward(self.network, self._device, wanted=config.compile)
        kind = DiceLoss if config.loss == "dice" else DiceCELoss
        self._loss = kind(to_onehot_y=True, softmax=True)
        self.staged = transfer.Staged(self.network, config.transfer, last_layer(self.network, config))
        self._parameters = list(self.network.parameters())
        self._adam = torch.optim.Adam(self._parameters, lr=config.learning_rate)
        for p in self._parameters:  # there from the start, so that a state can be put back whenever it was
            step = torch.zeros((), dtype=torch.float32)
            self._adam.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        self._anchor: list[Tensor] = []
        self._mu = 0.0

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what was asked for and this machine cannot do."""
        return tuple(filter(None, (self._remark, self._forward.remark)))

    def _live(self) -> list[Tensor]:
        """All that a step changes: parameters, statistics of batch norm, Adam's moments."""
        moments = [t for p in self._parameters for t in self._adam.state[p].values()]
        return [*self.network.state_dict().values(), *moments]

    def step(self, images: Tensor, labels: Tensor, part: Part | None = None) -> Step:
        """Learn from one batch.

        images  float32[b, 1, x, y, z] in [0, 1]
        labels  int64[b, x, y, z]: 0, or the number of a class + 1
        part    when they are a part of the batch: the step is then the whole batch's, the same in all processes
        Raises Diverged when the loss or a gradient is not finite, and what `part` raises; all is then as it was before
        the batch.
        """
        x, y = on_device(images, self._device), on_device(labels[:, None], self._device)
        statistics = [buffer.clone() for buffer in self.network.buffers()]

        def take_back() -> None:
            for buffer, before in zip(self.network.buffers(), statistics, strict=True):
                buffer.copy_(before)

        while True:
            try:
                gradients, loss, overlaps = self._gradients(x, y, part)
            except TrainingError:  # of a process that has ended
                take_back()
                raise
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            numbers = torch.stack([loss, norm]).cpu()
            if torch.isfinite(numbers).all():
                break
            take_back()
            if self._reduced != torch.float16 or self._scale <= LEAST_SCALE or not torch.isfinite(numbers[0]):
                raise Diverged(
                    f"update {self.updates + 1} was refused: the loss is {float(numbers[0]):g}, its gradient's norm "
                    f"{float(numbers[1]):g}; finite numbers were expected; lower learning_rate"
                )
            self._scale, self._clean = self._scale / 2, 0
        if self._mu:
            anchor = [a for p, a in zip(self._parameters, self._anchor, strict=True) if p.requires_grad]
            torch._foreach_add_(
                gradients, torch._foreach_sub([p.detach() for p in self._training()], anchor), alpha=self._mu
            )
        put_gradients(self._training(), gradients)
        self.staged.set_rate(self._adam, self.config.learning_rate, self.updates)
        self._adam.step()
        self._adam.zero_grad()
        self.updates += 1
        self._clean += 1
        if self._reduced == torch.float16 and self._clean >= CLEAN:
            self._scale, self._clean = self._scale * 2, 0
        return Step(float(numbers[0]), _dice(overlaps))

    def _gradients(self, x: Tensor, y: Tensor, part: Part | None) -> tuple[list[Tensor], Tensor, Tensor]:
        with seeded((self._seed << 32) + self.updates, self._device):  # dropout's draws follow from the update's number
            self.staged.train(self.updates)
            with autocast(self._device, self._reduced):
                logits = self._forward(x)
            loss = self._loss(logits.float(), y)
            training = self._training()
            share = 1.0 if part is None else part.share
            found = torch.autograd.grad(loss * (self._scale * share), training, allow_unused=True)
        gradients = [
            torch.zeros_like(p) if g is None else g / self._scale for p, g in zip(training, found, strict=True)
        ]
        told = [loss.detach() * share, _overlaps(logits.detach().argmax(1, keepdim=True), y, len(self.config.classes))]
        if part is not None:
            *gradients, loss, overlaps = part.summed([*gradients, *told])
            return gradients, loss, overlaps
        return gradients, *told

    def learn_part(self, rows: Sequence[Tensor], part: Part) -> Step:
        """Do `step` with a part of a batch: images, and labels as uint8."""
        images, labels = rows
        return self.step(images, labels.long(), part)

    def _training(self) -> list[Tensor]:
        return [p for p in self._parameters if p.requires_grad]

    def counters(self) -> dict[str, float]:
        """See `together.Learner`, also below."""
        return {"updates": self.updates, "mu": self._mu, "scale": self._scale, "clean": self._clean}

    def shared(self) -> list[Tensor]:
        """Return all that a step changes or reads."""
        return [*self._live(), *self._anchor]

    def follow(self, counters: Mapping[str, float]) -> None:
        """Take another learner's counters."""
        self.updates, self._mu = int(counters["updates"]), float(counters["mu"])
        self._scale, self._clean = float(counters["scale"]), int(counters["clean"])
        self._anchor = [torch.empty_like(p) for p in self._parameters] if self._mu else []

    def probabilities(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return each class's probability, the background's first: float32[K + 1, x, y, z] of float32[x, y, z].

        Windows of the patch's size move over the volume and overlap by a share of it; where several see a voxel, it
        gets their mean. A volume that is smaller than a window is filled up with 0.
        """
        from monai.inferers.utils import sliding_window_inference  # noqa: PLC0415 - takes seconds

        network = self.network.eval()

        def answer(windows: Tensor) -> Tensor:
            with autocast(self._device, self._reduced):
                logits = network(windows)
            return torch.softmax(logits.float(), 1)

        with torch.inference_mode():
            # Windows are put together on the CPU: no GPU need hold a whole volume.
            found = sliding_window_inference(
                torch.from_numpy(np.array(image))[None, None],
                self.config.patch,
                WINDOWS,
                answer,
                overlap=self.config.overlap,
                sw_device=self._device,
                device=torch.device("cpu"),
            )
        assert isinstance(found, Tensor)
        answers: npt.NDArray[np.float32] = found[0].numpy()
        return answers

    def weights(self) -> Weights:
        """Copy weights and statistics by name, as float32."""
        return as_weights(self.network)

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]], proximal_mu: float = 0.0) -> None:
        """Take a round's weights; Adam's moments stay.

        proximal_mu  over 0 holds all updates until the next load to these weights (FedProx)
        Raises TrainingError for weights of another shape, Diverged for those that are not finite.
        """
        put_weights(self.network, weights, architecture(self.config))
        self._mu = proximal_mu
        self._anchor = [p.detach().clone() for p in self._parameters] if proximal_mu else []

    def save(self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the whole state to one file, atomically, and the caller's own tensors and JSON with it."""
        named = {f"live.{i}": tensor for i, tensor in enumerate(self._live())}
        named |= {f"anchor.{i}": tensor for i, tensor in enumerate(self._anchor)}
        own = {
            "updates": self.updates, "mu": self._mu, "scale": self._scale, "clean": self._clean, "caller": dict(state)
        }  # fmt: skip
        saved_state.write(path, self._run, {**named, **tensors}, own)

    def read(self, path: Path) -> Saved:
        """Read a saved state, and check all of it; nothing is changed.

        Raises TrainingError when the file cannot be read, is of another run, or of another shape.
        """
        tensors, state = saved_state.read(path, self._run)
        alike = saved_state.alike
        with saved_state.fitting(path):
            mu = float(state["mu"])
            anchor = [alike(tensors[f"anchor.{i}"], p) for i, p in enumerate(self._parameters)] if mu else []
            live = [alike(tensors[f"live.{i}"], tensor) for i, tensor in enumerate(self._live())]
            scale, clean = float(state["scale"]), int(state["clean"])
            return Saved(live, anchor, int(state["updates"]), mu, scale, clean, tensors, dict(state["caller"]))

    def take(self, saved: Saved) -> None:
        """Continue from a saved state, bit for bit."""
        torch._foreach_copy_(self._live(), saved.live)
        self.updates, self._mu, self._anchor = saved.updates, saved.mu, saved.anchor
        self._scale, self._clean = saved.scale, saved.clean


def _overlaps(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count of each class the voxels where both say it, and those of both: float32[classes, 2]."""
    numbers = range(1, classes + 1)
    pairs = [(answers == number, labels == number) for number in numbers]
    return torch.stack([torch.stack([(a & b).sum(), a.sum() + b.sum()]) for a, b in pairs]).to(torch.float32)


def _dice(overlaps: Tensor) -> float | None:
    """Return the mean Dice of the classes that are in a batch or its answers, over all its voxels together."""
    found = [2 * both / size for both, size in overlaps.tolist() if size > 0]
    return sum(found) / len(found) if found else None


def first_weights(config: SegmentationConfig, seed: int) -> Weights:
    """Return what a run begins with: those of a file where the config names one. Raises ConfigError."""
    built = network(config, seed)
    load_pretrained(built, config)
    transfer.begin_with(built, config.transfer, last_layer(built, config))
    return as_weights(built)


def remarks(config: SegmentationConfig) -> tuple[str, ...]:
    """Say what a run's log is to begin with: which layers train."""
    if config.transfer == transfer.Transfer():
        return ()
    built = network(config, 0)
    return transfer.remarks(built, config.transfer, last_layer(built, config))
