"""APGA's networks with their optimisers: steps that are whole or not at all, a round's weights, and a saved state."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer import apga, saved_state
from agent_trainer.algorithms import Weights
from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_networks import (
    CLASSIFIER,
    MASKER,
    architecture,
    described,
    grad_cam_layer,
    last_layer,
    networks,
)
from agent_trainer.compiling import Forward
from agent_trainer.craft.domains import coral_loss
from agent_trainer.craft.losses import classification_loss
from agent_trainer.craft.transfer import Staged
from agent_trainer.gradients import put_gradients
from agent_trainer.masks import GradCamMasks, cutout
from agent_trainer.module_weights import as_weights, put_weights
from agent_trainer.precision import autocast, on_device, reduced
from agent_trainer.seeding import seeded
from agent_trainer.together import Deal, Part
from cairn.errors import Diverged, TrainingError

FLAT = 1e-6  # logits that differ less over a batch say nothing any more


@dataclass(frozen=True)
class Saved:
    """A saved state that fits; `tensors` and `caller` are what the caller gave to `save`, besides the learner's own."""

    live: list[Tensor]
    anchor: dict[str, list[Tensor]]
    frozen: dict[str, Tensor]
    updates: int
    restarts: int
    baseline: float | None
    pretraining: apga.Pretraining
    mu: float
    tensors: dict[str, Tensor]
    caller: dict[str, Any]


class Learner:
    """Classifier and, where the method has one, masker.

    class_weights  float32[K] of the loss; None for all alike
    seed           of the first weights
    device         of torch; the number of its threads is the caller's affair
    """

    def __init__(
        self,
        config: ApgaConfig,
        *,
        seed: int,
        device: str = "cpu",
        class_weights: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.config, self.updates, self.restarts = config, 0, 0
        self.baseline: float | None = None
        self.pretraining = apga.Pretraining(over=config.pretrain_updates == 0)
        self._seed, self._device = seed, torch.device(device)
        self._run = saved_state.digest(seed, config)
        self._weigh = None if class_weights is None else torch.tensor(class_weights, device=self._device)
        self.networks = networks(config, seed).to(self._device)
        self.staged = Staged(self.networks[CLASSIFIER], config.transfer, last_layer(config))
        mean, std = (torch.tensor(scale, device=self._device)[:, None, None] for scale in config.scale)
        self._mean, self._std = mean, std
        self._parameters = {name: list(network.parameters()) for name, network in self.networks.items()}
        self._adam = {name: self._optimiser(some) for name, some in self._parameters.items()}
        self._anchor: dict[str, list[Tensor]] = {}
        self._mu = 0.0
        self._part: Part | None = None  # of the step that is being made
        self._grad_cam: GradCamMasks | None = None
        self._pretrained: nn.Module | None = None  # what Grad-CAM looks through
        self._spare = [torch.empty_like(tensor) for tensor in self._live()]
        self._reduced, self._remark = reduced(config.precision, self._device)
        self._forward = {
            name: Forward(network, self._device, wanted=config.compile) for name, network in self.networks.items()
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what was asked for and this machine cannot do."""
        compiling = (forward.remark for forward in self._forward.values())
        return tuple(dict.fromkeys(filter(None, (self._remark, *compiling))))

    def _optimiser(self, parameters: Sequence[Tensor]) -> torch.optim.Adam:
        adam = torch.optim.Adam(parameters, lr=self.config.learning_rate, fused=True)
        for p in parameters:  # there from the start, so that a step can be taken back whenever it was
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            adam.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return adam

    def _live(self) -> list[Tensor]:
        """All that a step changes: parameters, statistics of batch norm, Adam's moments."""
        moments = [
            t for name, some in self._parameters.items() for p in some for t in self._adam[name].state[p].values()
        ]
        return [*self.networks.state_dict().values(), *moments]

    def scaled(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Return x of uint8[b, channels, side, side]: float[…], mean 0 and deviation 1 over the images of the scale."""
        x = on_device(pixels, self._device).to(torch.float32, memory_format=torch.channels_last)
        return x.div_(255).sub_(self._mean).div_(self._std)

    def step(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        rng: np.random.Generator,
        target: npt.NDArray[np.uint8] | None = None,
        deal: Deal | None = None,
    ) -> apga.Step:
        """Learn from one batch: pre-training first, then as the method says.

        target  uint8[b, channels, side, side], images of the other look for the CORAL loss
        deal    gives other processes their share of the batch; the step, and what it tells, is then the whole batch's
                in all of them. Not with a target
        Raises Diverged when a loss or a gradient is not finite, and what `deal` raises; all is then as it was before
        the batch.
        """
        seed = int(rng.integers(2**63)) if self.config.dropout else 0
        cut: Tensor | None = None
        if self.config.method == "cutout" and self.pretraining.over:
            cut = cutout(len(pixels), self.config.side, self.config.cutout_share, rng)
        if deal is None:
            of_target = None if target is None else self.scaled(target)
            return self._step(self.scaled(pixels), on_device(labels, self._device), seed, cut, of_target)
        rows = [torch.from_numpy(pixels), torch.from_numpy(labels), *([] if cut is None else [cut.to(torch.uint8)])]
        return self.learn_part(*deal(rows), seed)

    def learn_part(self, rows: Sequence[Tensor], part: Part, seed: int | None = None) -> apga.Step:
        """Do `step` with a part of a batch: images, labels, and what is cut out; see `together.Learner`."""
        pixels, labels, *cut = rows
        own = (self._seed << 32) + self.updates if seed is None else seed
        kept = cut[0].bool() if cut else None
        return self._step(self.scaled(pixels), on_device(labels, self._device), own, kept, part=part)

    def _step(
        self,
        x: Tensor,
        y: Tensor,
        seed: int,
        cut: Tensor | None,
        target: Tensor | None = None,
        part: Part | None = None,
    ) -> apga.Step:
        torch._foreach_copy_(self._spare, self._live())
        looked_through = self._pretrained, self._grad_cam
        self._part = part
        try:
            # Dropout draws from torch's own generator.
            with seeded(seed, self._device) if self.config.dropout else nullcontext():
                made = self._made(x, y, cut, target)
            if part is not None:
                made = self._joined(made, part)
        except TrainingError:
            torch._foreach_copy_(self._live(), self._spare)
            self._pretrained, self._grad_cam = looked_through
            raise
        self.updates += 1
        self.baseline = made.baseline if made.baseline is not None else self.baseline
        if not self.pretraining.over:
            c = self.config
            self.pretraining.add(
                made.original, c.pretrain_window, c.pretrain_patience, c.pretrain_gain, c.pretrain_updates
            )
            if self.pretraining.over:
                self._freeze()
        return made

    def _joined(self, made: apga.Step, part: Part) -> apga.Step:
        """Make what a part's step told the whole batch's, and the statistics of batch norm the mean of the parts'."""
        means = torch.tensor([made.original, made.masked or 0.0], device=self._device) * part.share
        right = torch.tensor(float(made.right), device=self._device)
        kept = right.new_zeros(0) if made.kept is None else part.placed(made.kept)
        statistics = [buffer for buffer in self.networks.buffers() if buffer.is_floating_point()]
        means, right, kept, *found = part.summed([means, right, kept, *(buffer * part.share for buffer in statistics)])
        for buffer, mean in zip(statistics, found, strict=True):
            buffer.copy_(mean)
        original, masked = means.tolist()
        return replace(
            made,
            original=original,
            right=round(float(right)),
            masked=None if made.masked is None else masked,
            kept=None if made.kept is None else kept,
        )

    def _whole(self, mean: Tensor) -> Tensor:
        """Return the whole batch's mean of what is a mean over this process's part of it."""
        return mean if self._part is None else self._part.summed([mean * self._part.share])[0]

    def _made(self, x: Tensor, y: Tensor, cut: Tensor | None, target: Tensor | None) -> apga.Step:
        config, network = self.config, self.staged.train(self.updates)
        classifier: apga.Network = partial(self._answer, CLASSIFIER)
        features: list[Tensor] = []
        aligned: list[bool] = []

        def describe(images: Tensor) -> Tensor:
            """Answer; the first time, of a batch's originals, beside images of the other look: normalised together."""
            if features or target is None:
                return self._answer(CLASSIFIER, images)
            with autocast(self._device, self._reduced):
                found, answers = (t.float() for t in described(network, torch.cat([images, target])))
            features.extend((found[: len(images)], found[len(images) :]))
            return answers[: len(images)]

        def descend(loss: Tensor) -> None:
            if features and not aligned:
                loss = loss + config.domain.coral * coral_loss(*features)
                aligned.append(True)
            self._descend(loss, (CLASSIFIER,))

        if target is not None:
            classifier = describe
        if config.masks:
            self.networks[MASKER].train()
        masker = partial(self._answer, MASKER)

        def masked(kept: Tensor) -> apga.Step:
            step, _ = apga.plain_step(x, y, classifier, self._loss, descend)
            loss = apga.masked_step(x, y, kept, classifier, self._loss, descend)
            return apga.Step(step.original, step.right, loss)

        if not self.pretraining.over or config.method == "none":
            return apga.plain_step(x, y, classifier, self._loss, descend)[0]
        match config.method:
            case "cutout":
                assert cut is not None
                return masked(cut.to(self._device))
            case "gradcam":
                if self._grad_cam is None:  # nothing was pre-trained here: the weights that the round began with
                    self._freeze()
                assert self._grad_cam is not None
                return masked(self._grad_cam(x))
            case "end-to-end":
                return apga.end_to_end_step(
                    x,
                    y,
                    classifier,
                    masker,
                    self._loss,
                    descend,
                    lambda loss: self._descend(loss, (CLASSIFIER, MASKER)),
                    lambda_zeros=config.lambda_zeros,
                    lambda_ones=config.lambda_ones,
                )
            case _:
                return apga.apga_step(
                    x,
                    y,
                    classifier,
                    self._judge,
                    masker,
                    self._loss,
                    descend,
                    lambda loss: self._descend(loss, (MASKER,)),
                    baseline=self.baseline,
                    decay=config.baseline_decay,
                    lambda_zeros=config.lambda_zeros,
                    action=config.action,
                    whole=self._whole,
                )

    def _answer(self, name: str, x: Tensor) -> Tensor:
        """Answer as a network learns: in the run's precision, and compiled if the run says so; float32."""
        with autocast(self._device, self._reduced):
            return self._forward[name](x).float()

    def _judge(self, x: Tensor) -> Tensor:
        """Answer by the running statistics, which stay as they are."""
        self.networks[CLASSIFIER].eval()
        answers = self._answer(CLASSIFIER, x)
        self.staged.train(self.updates)
        return answers

    def _loss(self, answers: Tensor, y: Tensor) -> Tensor:
        return classification_loss(answers, y, self.config.loss, self._weigh)

    def _descend(self, loss: Tensor, names: tuple[str, ...]) -> None:
        parameters = [p for name in names for p in self._parameters[name] if p.requires_grad]
        if self._part is not None:
            loss = loss * self._part.share
        gradients = list(torch.autograd.grad(loss, parameters))
        loss = loss.detach()
        if self._part is not None:
            *gradients, loss = self._part.summed([*gradients, loss])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        numbers = torch.stack([loss, norm]).cpu()
        if not torch.isfinite(numbers).all():
            raise Diverged(
                f"update {self.updates + 1} was refused: the loss of the {' and the '.join(names)} is "
                f"{float(numbers[0]):g}, its gradient's norm {float(numbers[1]):g}; finite numbers were expected; "
                "lower learning_rate"
            )
        if self._mu:
            pairs = (pair for name in names for pair in zip(self._parameters[name], self._anchor[name], strict=True))
            anchor = [a for p, a in pairs if p.requires_grad]
            torch._foreach_add_(gradients, torch._foreach_sub([p.detach() for p in parameters], anchor), alpha=self._mu)
        put_gradients(parameters, gradients)
        for name in names:
            if name == CLASSIFIER:
                self.staged.set_rate(self._adam[name], self.config.learning_rate, self.updates)
            self._adam[name].step()
            self._adam[name].zero_grad()

    def _freeze(self) -> None:
        """Keep the classifier as it is, for Grad-CAM to look through: as pre-training, or the run's start, left it."""
        if self.config.method == "gradcam":
            self._pretrained = copy.deepcopy(self.networks[CLASSIFIER])
            self._grad_cam = GradCamMasks(self._pretrained, grad_cam_layer(self.config))

    def revive(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Bring collapsed masks back: half of the pixels of these images lie on either side of 0.5 again.

        The masker's last bias falls by the median of its logits, so that their order, all that it has learned, stays.
        Where all are alike there is none, and the masker begins anew.
        """
        masker = self.networks[MASKER]
        with torch.no_grad():
            logits = masker(self.scaled(pixels))
            if not logits.std() > FLAT:
                self.restarts += 1
                fresh = networks(self.config, self._seed + self.restarts)[MASKER]
                masker.load_state_dict(fresh.state_dict())
                for p in self._parameters[MASKER]:
                    for moment in self._adam[MASKER].state[p].values():
                        moment.zero_()
                logits = masker(self.scaled(pixels))
            bias = self._parameters[MASKER][-1]
            bias -= logits.median()
            for moment in ("exp_avg", "exp_avg_sq"):  # which would drive it back
                self._adam[MASKER].state[bias][moment].zero_()

    def mask(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return P of every pixel: float32[b, side, side]."""
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = (
                torch.sigmoid(self.networks[MASKER].eval()(self.scaled(pixels)))[:, 0].cpu().numpy()
            )
        return found

    def probabilities(self, pixels: npt.NDArray[np.uint8], *, masked: bool | None = None) -> npt.NDArray[np.float32]:
        """Return each class's probability: float32[b, K].

        masked  the mean of those of the image and of its pixels with P > 0.5; None as the config says
        """
        classifier = self.networks[CLASSIFIER].eval()
        with torch.inference_mode():
            x = self.scaled(pixels)
            answers = torch.softmax(classifier(x), 1)
            if self.config.mask_at_inference if masked is None else masked:
                kept = apga.left_over(apga.aiding(self.networks[MASKER].eval()(x)))
                answers = (answers + torch.softmax(classifier(x * kept), 1)) / 2
            found: npt.NDArray[np.float32] = answers.cpu().numpy()
        return found

    def weights(self) -> Weights:
        """Copy both networks' weights and statistics by name, as float32."""
        return as_weights(self.networks)

    def load(self, weights: Mapping[str, npt.NDArray[np.float32]], proximal_mu: float = 0.0) -> None:
        """Take a round's weights; Adam's moments stay.

        proximal_mu  over 0 holds all updates until the next load to these weights (FedProx)
        Raises TrainingError for weights of another shape, Diverged for those that are not finite.
        """
        put_weights(self.networks, weights, architecture(self.config))
        if self.config.norm_momentum == "cumulative":  # of this round's batches, made by this round's weights
            for name, tensor in self.networks[CLASSIFIER].state_dict().items():
                if name.endswith("num_batches_tracked"):
                    tensor.zero_()
        self._mu = proximal_mu
        taken = {name: [p.detach().clone() for p in some] for name, some in self._parameters.items()}
        self._anchor = taken if proximal_mu else {}

    def counters(self) -> dict[str, Any]:
        """See `together.Learner`, also below."""
        return {**self._numbers(), "frozen": self._pretrained is not None}

    def _numbers(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "restarts": self.restarts,
            "baseline": self.baseline,
            "pretraining": vars(self.pretraining),
            "mu": self._mu,
        }

    def shared(self) -> list[Tensor]:
        """Return all that a step changes or reads."""
        anchor = (t for some in self._anchor.values() for t in some)
        frozen = () if self._pretrained is None else self._pretrained.state_dict().values()
        return [*self._live(), *anchor, *frozen, *([] if self._weigh is None else [self._weigh])]

    def follow(self, counters: Mapping[str, Any]) -> None:
        """Take another learner's counters."""
        baseline = counters["baseline"]
        self.updates, self.restarts = int(counters["updates"]), int(counters["restarts"])
        self.baseline, self._mu = None if baseline is None else float(baseline), float(counters["mu"])
        self.pretraining = apga.Pretraining(**counters["pretraining"])
        empty = {name: [torch.empty_like(p) for p in some] for name, some in self._parameters.items()}
        self._anchor = empty if self._mu else {}
        self._pretrained = self._grad_cam = None
        if counters["frozen"]:
            self._freeze()

    def save(self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the whole state to one file, atomically, and the caller's own tensors and JSON with it."""
        own = {**self._numbers(), "caller": dict(state)}
        saved_state.write(path, self._run, {**self._named(), **tensors}, own)

    def _named(self) -> dict[str, Tensor]:
        held = {f"live.{i}": tensor for i, tensor in enumerate(self._live())}
        held |= {f"anchor.{name}.{i}": t for name, some in self._anchor.items() for i, t in enumerate(some)}
        if self._pretrained is not None:
            held |= {f"pretrained.{name}": t for name, t in self._pretrained.state_dict().items()}
        return held

    def read(self, path: Path) -> Saved:
        """Read a saved state, and check all of it; nothing is changed.

        Raises TrainingError when the file cannot be read, is of another run, or of another shape.
        """
        tensors, state = saved_state.read(path, self._run)
        alike = saved_state.alike
        with saved_state.fitting(path):
            mu, baseline = float(state["mu"]), state["baseline"]
            anchor = {
                name: [alike(tensors[f"anchor.{name}.{i}"], p) for i, p in enumerate(some)]
                for name, some in self._parameters.items()
                if mu
            }
            frozen = {
                name: alike(tensors[f"pretrained.{name}"], t)
                for name, t in self.networks[CLASSIFIER].state_dict().items()
                if any(key.startswith("pretrained.") for key in tensors)
            }
            return Saved(
                [alike(tensors[f"live.{i}"], tensor) for i, tensor in enumerate(self._live())],
                anchor,
                frozen,
                int(state["updates"]),
                int(state["restarts"]),
                None if baseline is None else float(baseline),
                apga.Pretraining(**state["pretraining"]),
                mu,
                tensors,
                dict(state["caller"]),
            )

    def take(self, saved: Saved) -> None:
        """Continue from a saved state, bit for bit."""
        torch._foreach_copy_(self._live(), saved.live)
        self.updates, self.restarts, self.baseline = saved.updates, saved.restarts, saved.baseline
        self.pretraining, self._mu, self._anchor = saved.pretraining, saved.mu, saved.anchor
        self._pretrained = self._grad_cam = None
        if saved.frozen:
            self._freeze()
            assert self._pretrained is not None
            self._pretrained.load_state_dict(saved.frozen)
