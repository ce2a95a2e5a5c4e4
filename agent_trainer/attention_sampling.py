"""Attention sampling's losses and rewards as pure functions of tensors, in paper 4's symbols.

Images are n, sets of patches (replicas) of each R, patches of a set P, cells of the map m, classes K.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from agent_trainer.craft import losses
from agent_trainer.craft.losses import Loss

CROSS_ENTROPY: Final = Loss()


def classification_loss(
    expected: Tensor, labels: Tensor, class_weights: Tensor | None = None, settings: Loss = CROSS_ENTROPY
) -> Tensor:
    """Return the mean loss of o = softmax(Σ w·f), paper 4 eq. (1) and §IV; zero when no class weighs.

    expected       float[n, R, K]
    labels         int64[n]
    class_weights  float[K]; see `craft.losses.classification_loss`
    settings       cross-entropy in the paper
    """
    n, replicas, classes = expected.shape
    y = labels[:, None].expand(n, replicas).reshape(-1)
    return losses.classification_loss(expected.reshape(-1, classes), y, settings, class_weights)


def rewards(votes: Tensor, labels: Tensor) -> Tensor:
    """Return how sure each patch alone is of the right class.

        r(p; y) = exp(-L(g(f(p)); y)) = softmax(f(p))_y       paper 4 §IV

    votes    float[n, R, P, K]
    returns  float[n, R, P], between 0 and 1, without gradient
    """
    y = labels[:, None, None, None].expand(*votes.shape[:3], 1)
    return votes.detach().softmax(-1).gather(-1, y)[..., 0]


def advantage(
    reward: Tensor, baseline: float | None = None, *, per_image: bool, standardise: bool, floor: float = 0.0
) -> Tensor:
    """Return r - b, divided by the standard deviation if wanted; float[n, R, P].

        (r - b) / (σ + floor)

    baseline   b; None takes the mean of the batch, or of each image
    per_image  whether mean and deviation are each image's own
    floor      over 0 keeps rewards that hardly differ, of a classifier that knows nothing yet, from being made large
    """
    axes = (1, 2) if per_image else (0, 1, 2)
    b = reward.mean(axes, keepdim=True) if baseline is None else baseline
    centred = reward - b
    if not standardise:
        return centred
    deviation = centred.square().mean(axes, keepdim=True).sqrt()
    return centred / (deviation + max(floor, 1e-6))  # rewards that are all alike teach nothing, and divide nothing by 0


def reinforce_loss(log_a: Tensor, gain: Tensor, weights: Tensor) -> Tensor:
    """Return the loss whose gradient is minus that of the expected reward.

        L_a = -mean_{n,R} Σ_k w_k·log a(p_k)·(r_k - b)       Williams 1992; paper 4 §IV, there w = 1/P

    log_a    float[n, R, P], of the cells drawn
    gain     float[n, R, P], r - b; a constant
    weights  float[n, R, P], of an unbiased estimate (`estimators`); a constant
    """
    return -(weights.detach() * log_a * gain.detach()).sum(-1).mean()


def reward_to_go(gain: Tensor) -> Tensor:
    """Return Σ_{m≥k} g_m of each step k: what a draw may have changed (Williams 1992); float[..., P]."""
    return gain.flip(-1).cumsum(-1).flip(-1)


def negative_entropy(log_a: Tensor, log_prior: Tensor | None = None) -> Tensor:
    """Return mean_n Σ_p a(p)·log a(p), the 𝓗 of paper 4 §V, of log a float[n, m].

    It lies between -log m (all cells alike) and 0 (one cell). Added to the loss with λ > 0 it is made small, which
    spreads the attention.

    log_prior  float[n, m]: then Σ a·log(a / prior) - log m, by which the attention spreads as the prior does
    """
    if log_prior is None:
        return (log_a.exp() * log_a).sum(-1).mean()
    return (log_a.exp() * (log_a - log_prior)).sum(-1).mean() - math.log(log_a.shape[-1])


def open_prior(density: Tensor) -> Tensor:
    """Return the log of a density, float[n, m], with a thousandth of an even share in each cell: none is closed."""
    return torch.log((density + 1e-3 / density.shape[-1]) / 1.001)


def with_prior(logits: Tensor, log_prior: Tensor | None) -> Tensor:
    """Return log a, where attention begins as the prior: a ∝ prior·e^logits; float[n, m]."""
    return functional.log_softmax(logits if log_prior is None else logits + log_prior, dim=-1)
