"""Temporal-difference learning as pure functions of tensors, in rlax's symbols: x_tm1 before the step, x_t after."""

from collections.abc import Mapping

import torch
from torch import Tensor


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor) -> Tensor:
    """Return what Q(s_tm1, a_tm1) should be.

        y = r_t + γ_t · max_a Q_target(s_t, a)       Mnih et al. 2015; paper 1 §III.A.b

    r_t         float[b]
    discount_t  float[b], 0 where the episode ended
    q_t         float[b, actions], of the target network
    returns     float[b]
    """
    return r_t + discount_t * q_t.amax(-1)


def double_q_target(r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor) -> Tensor:
    """Return the target whose action one network chooses and the other values.

        y = r_t + γ_t · Q_value(s_t, argmax_a Q_selector(s_t, a))       van Hasselt, Guez & Silver 2016, eq. 4

    q_t_value     float[b, actions], of the target network
    q_t_selector  float[b, actions], of the policy network
    returns       float[b]
    """
    return r_t + discount_t * chosen(q_t_value, q_t_selector.argmax(-1))


def chosen(q: Tensor, a: Tensor) -> Tensor:
    """Return Q of the action taken: float[b] of float[b, actions] and int64[b]."""
    return q.gather(-1, a[:, None])[:, 0]


def td_error(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    """Return δ = y - Q(s_tm1, a_tm1), float[b]; q_tm1 float[b, actions], a_tm1 int64[b], target float[b]."""
    return target - chosen(q_tm1, a_tm1)


def huber(error: Tensor, delta: float) -> Tensor:
    """Return Huber's loss of each error: ½e² up to |e| = δ, beyond it δ·(|e| - ½δ); Huber 1964, eq. 2.3."""
    size = error.abs()
    inside = size.clamp(max=delta)
    return inside * (size - 0.5 * inside)


def weighted_loss(error: Tensor, weight: Tensor, delta: float) -> Tensor:
    """Return the mean over a batch of w·Huber(δ); w float[b], the importance weights (Schaul et al. 2016, §3.4)."""
    return (weight * huber(error, delta)).mean()


def duelling(value: Tensor, advantage: Tensor) -> Tensor:
    """Join the two streams: Q = V + A - mean_a A (Wang et al. 2016, eq. 9); float[b, 1], float[b, a] → float[b, a]."""
    return value + advantage - advantage.mean(-1, keepdim=True)


def proximal(weights: Mapping[str, Tensor], anchor: Mapping[str, Tensor], mu: float) -> Tensor:
    """Return what holds a site to the round's weights: μ/2·‖w - w_round‖² (FedProx, Li et al. 2020, §3)."""
    return 0.5 * mu * torch.stack([(weights[name] - anchor[name]).square().sum() for name in weights]).sum()
