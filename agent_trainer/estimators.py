"""Expectations over an attention map from a few draws: how to draw, and what each draw then weighs.

Everywhere a is the attention and q what was drawn by, both of the cells drawn, in the order drawn. The derivations are
in docs/MATHS.md, "Attention sampling".
"""

import torch
from torch import Tensor


def with_replacement(q: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw cells independently; int64[n, draws] of q float[n, cells], whose rows sum to 1."""
    return torch.multinomial(q, draws, replacement=True, generator=generator)


def gumbel_top_k(log_q: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw distinct cells, one after another, each by q among those left.

        the k largest of log q + G,  G = -log(-log U)       Vieira 2014; Kool, van Hoof & Welling 2019, §2.3

    log_q    float[n, cells]; -inf for a cell that must not be drawn
    returns  int64[n, draws], in the order of drawing; draws ≤ cells
    """
    uniform = torch.rand(log_q.shape, generator=generator, dtype=torch.float64, device=log_q.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(torch.float64).tiny)))
    return (log_q.double() + gumbel).topk(draws, dim=-1).indices


def printed_weights(a: Tensor, q: Tensor) -> Tensor:
    """Return what equation (1) of paper 4 gives each patch that was drawn with replacement.

        w_i = a_i·(a_i/q_i) / Σ_j a_j·(a_j/q_j)

    For q = a this is the printed a_i/Σa_j. The factor a/q makes draws by another q stand for the same sum.

    a, q     float[..., P]
    returns  float[..., P], each row sums to 1
    """
    weight = a * (a / q)
    return weight / weight.sum(-1, keepdim=True)


def mean_weights(a: Tensor, q: Tensor) -> Tensor:
    """Return the weights w_i = a_i/(P·q_i), with which Σ w_i·h(p_i) is unbiased for Σ_p a_p·h(p).

    For draws with replacement; for q = a the plain mean. a, q and the result float[..., P].
    """
    return a / (q * a.shape[-1])


def without_replacement_weights(a: Tensor, q: Tensor, *, last: bool = False) -> Tensor:
    """Return the weights with which Σ w_k·h(p_k) is unbiased for Σ_p a_p·h(p), for draws without replacement.

        t_k = Σ_{j<k} a_j·h_j + (1 - Σ_{j<k} q_j)·(a_k/q_k)·h_k       Katharopoulos & Fleuret 2019, §3.2, there q = a

    Every t_k is unbiased; the mean over k (Raj 1956) varies least of the two offered.

    last     only t_P, which over a wide map is one patch's vote and little more
    a, q     float[..., P], in the order drawn
    returns  float[..., P]; for q = a each row sums to 1
    """
    left = 1 - (q.cumsum(-1) - q)  # the mass that each draw had before it
    now = left.clamp(min=0) * (a / q)
    draws = a.shape[-1]
    if last:
        return torch.cat([a[..., :-1], now[..., -1:]], -1)
    later = torch.arange(draws - 1, -1, -1, dtype=a.dtype, device=a.device)  # the t_k in which draw j is an earlier one
    return (now + later * a) / draws


def expectation(weights: Tensor, votes: Tensor) -> Tensor:
    """Return Σ_i w_i·f(patch_i): float[..., K] of weights float[..., P] and votes float[..., P, K]."""
    return (weights[..., None] * votes).sum(-2)


def mixed(a: Tensor, density: Tensor | None, share: float, uniform: float = 0.0) -> Tensor:
    """Return what is drawn by: q = (1 - s - u)·a + s·density + u·(1 / cells).

    Then a/q ≤ 1/(1 - s - u): no draw can weigh more than that, whatever the density.

    a, density  float[n, cells], rows sum to 1; without a density its share stays with a
    """
    s = share if density is not None else 0.0
    q = (1 - s - uniform) * a + uniform / a.shape[-1]
    return q if density is None else q + s * density
