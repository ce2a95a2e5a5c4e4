"""Adversarial policy gradient augmentation: algorithm 1 of paper 3, line by line, and its equations. Pure.

P = σ(z) is a pixel's probability of being important, z the masker's logit; docs/MATHS.md derives the signs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Network: TypeAlias = Callable[[Tensor], Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Descend: TypeAlias = Callable[[Tensor], None]
"""Makes one step of gradient descent on a scalar loss."""


def erasing(logits: Tensor) -> Tensor:
    """Return the adversarial mask A = (P < 0.5) of line 8, which keeps what is unimportant; bool as the logits."""
    return logits < 0


def aiding(logits: Tensor) -> Tensor:
    """Return the aiding mask A = (P > 0.5) of line 16, which keeps what is important; bool as the logits."""
    return logits > 0


def left_over(kept: Tensor) -> Tensor:
    """Return a mask in which an image that would be erased altogether stays whole: bool[b, 1, h, w].

    Masked pixels become 0, which after normalisation is the mean colour. Algorithm 1 would give an image of nothing
    else its label. There is nothing to learn in it, and a batch of them has a variance of 0, whose gradient overflows
    behind the batch norms of a DenseNet.
    """
    return kept | ~kept.flatten(1).any(1)[:, None, None, None]


def binary_cross_entropy(logits: Tensor, actions: Tensor) -> Tensor:
    """Return how far probabilities are from actions.

        BCE(P, a) = -1/N · Σ_i [a_i·log P_i + (1 - a_i)·log(1 - P_i)]       paper 3, eqs. 4 and 5

    logits   float[...], z with P = σ(z): no logarithm of 0 can come up
    actions  bool[...] or float[...]
    """
    return functional.binary_cross_entropy_with_logits(logits, actions.to(logits.dtype))


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """Return log π(a) of a whole mask: Σ_i log of P_i where a_i = 1, of 1 - P_i where a_i = 0; that is -N·BCE(P, a)."""
    return -logits.numel() * binary_cross_entropy(logits, actions)


def reward(adversarial: Tensor, original: Tensor) -> Tensor:
    """Return R = L_adversarial - L_original: what erasing costs the classifier; paper 3, eq. 6."""
    return adversarial - original


def next_baseline(baseline: float | None, reward: float, decay: float) -> float:
    """Return the exponential average after a reward: decay·b + (1 - decay)·R; the first reward stands for itself."""
    return reward if baseline is None else decay * baseline + (1 - decay) * reward


def policy_loss(logits: Tensor, action: Tensor, advantage: float, lambda_zeros: float) -> Tensor:
    """Return what the masker descends.

        L = BCE(P, a)·(R - b) + λ_zeros·BCE(P, 0)       paper 3, eq. 7; REINFORCE (Williams 1992), as -log π = N·BCE

    action     bool as the logits, the mask that was tried, in the terms of P: 1 where it erased
    advantage  R - b
    """
    nothing = torch.zeros_like(logits)
    return binary_cross_entropy(logits, action) * advantage + lambda_zeros * binary_cross_entropy(logits, nothing)


def end_to_end_loss(classification: Tensor, logits: Tensor, lambda_zeros: float, lambda_ones: float) -> Tensor:
    """Return what both networks descend in the paper's unstable baseline (§3, Baselines).

    L = L_c(M_c(P·x), y) + λ_zeros·BCE(P, 0) + λ_ones·BCE(P, 1)
    """
    zeros, ones = torch.zeros_like(logits), torch.ones_like(logits)
    extremes = lambda_zeros * binary_cross_entropy(logits, zeros) + lambda_ones * binary_cross_entropy(logits, ones)
    return classification + extremes


@dataclass(frozen=True)
class Step:
    """What one batch told.

    original  the classifier's loss on the images as they are
    right     how many of them it answered rightly, before its step
    masked    … on the masked ones it then learned from; None without
    reward    R of eq. 6; None without an adversary
    baseline  b after it
    kept      float[b], of each image the share of pixels with P > 0.5; None without a masker
    """

    original: float
    right: int
    masked: float | None = None
    reward: float | None = None
    baseline: float | None = None
    kept: Tensor | None = None


def plain_step(x: Tensor, y: Tensor, classifier: Network, loss: Loss, descend: Descend) -> tuple[Step, Tensor]:
    """Learn from originals: lines 5 and 6. Returns what it told, and L_original before the step.

    x  float[b, channels, h, w]
    y  int64[b]
    """
    answers = classifier(x)
    original = loss(answers, y)  # line 5
    descend(original)  # line 6
    original = original.detach()
    return Step(float(original), int((answers.detach().argmax(1) == y).sum())), original


def masked_step(x: Tensor, y: Tensor, kept: Tensor, classifier: Network, loss: Loss, descend: Descend) -> float:
    """Learn from masked images, the second half of 1:1: line 17. Returns the loss before the step.

    kept  bool[b, 1, h, w]
    """
    masked = loss(classifier(x * left_over(kept)), y)
    descend(masked)
    return float(masked.detach())


def apga_step(
    x: Tensor,
    y: Tensor,
    classifier: Network,
    frozen_classifier: Network,
    masker: Network,
    loss: Loss,
    descend_classifier: Descend,
    descend_masker: Descend,
    *,
    baseline: float | None,
    decay: float,
    lambda_zeros: float,
    action: Literal["erased", "kept"] = "erased",
    whole: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Step:
    """Do lines 5 to 17 for one batch.

    x, y               float[b, channels, h, w], int64[b]: the batch of line 4
    classifier         M_c as it learns
    frozen_classifier  the same weights with fixed statistics: erased images are judged by it and must not move it
    masker             M_p: float[b, channels, h, w] → logits float[b, 1, h, w]
    action             see ApgaConfig.action
    whole              where x and y are a part of a batch, makes a mean over them the batch's
    """
    step, original = plain_step(x, y, classifier, loss, descend_classifier)  # lines 5 and 6
    logits = masker(x)  # line 7
    erased = erasing(logits.detach())  # line 8: A, true where a pixel stays
    with torch.no_grad():
        adversarial = loss(frozen_classifier(erased * x), y)  # lines 9 and 10
    gained = float(whole(reward(adversarial, original)))  # line 11
    advantage = gained - (gained if baseline is None else baseline)
    taken = ~erased if action == "erased" else erased
    descend_masker(policy_loss(logits, taken, advantage, lambda_zeros))  # lines 12 to 15
    with torch.no_grad():
        kept = aiding(masker(x))  # line 16, by the masker that has just learned
    masked = masked_step(x, y, kept, classifier, loss, descend_classifier)  # line 17
    shares = kept.float().mean((1, 2, 3))
    return Step(step.original, step.right, masked, gained, next_baseline(baseline, gained, decay), shares)


def end_to_end_step(
    x: Tensor,
    y: Tensor,
    classifier: Network,
    masker: Network,
    loss: Loss,
    descend_classifier: Descend,
    descend_both: Descend,
    *,
    lambda_zeros: float,
    lambda_ones: float,
) -> Step:
    """Train both networks by the classifier's loss on P·x, then the classifier on the mask P > 0.5 (§3, Baselines)."""
    step, _ = plain_step(x, y, classifier, loss, descend_classifier)
    logits = masker(x)
    soft = loss(classifier(torch.sigmoid(logits) * x), y)
    descend_both(end_to_end_loss(soft, logits, lambda_zeros, lambda_ones))
    with torch.no_grad():
        kept = aiding(masker(x))
    masked = masked_step(x, y, kept, classifier, loss, descend_classifier)
    return Step(step.original, step.right, masked, kept=kept.float().mean((1, 2, 3)))


def collapsed(kept: Tensor, share: float) -> Tensor:
    """Tell which masks are all zero or all one but for a `share` of the pixels: bool[b] of float[b]."""
    return (kept < share) | (kept > 1 - share)


def converged(losses: list[float], patience: int, gain: float) -> bool:
    """Tell whether the last `patience` losses are all no lower, by a share of `gain`, than the lowest before them."""
    before, last = losses[:-patience], losses[-patience:]
    return bool(before) and min(last) > min(before) * (1 - gain)


@dataclass
class Pretraining:
    """How far line 2 of algorithm 1 is.

    losses  the mean of each full window
    sums    of the window that is not full: loss, updates
    over    nothing is pre-trained any more
    """

    losses: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    over: bool = False

    def add(self, loss: float, window: int, patience: int, gain: float, limit: int) -> None:
        """Count an update; ends it when the windows' losses have converged, or after `limit` updates."""
        self.sums = [self.sums[0] + loss, self.sums[1] + 1]
        if self.sums[1] == window:
            self.losses.append(self.sums[0] / self.sums[1])
            self.sums = [0.0, 0.0]
        done = len(self.losses) * window + self.sums[1]
        ended = converged(self.losses, patience, gain)
        self.over = done >= limit or ended
