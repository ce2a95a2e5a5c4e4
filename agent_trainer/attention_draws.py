"""From views of images to cells drawn by the attention, with all that the losses need to know of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_sampling import negative_entropy, open_prior, with_prior
from agent_trainer.attention_views import View
from agent_trainer.estimators import (
    gumbel_top_k,
    mean_weights,
    mixed,
    printed_weights,
    with_replacement,
    without_replacement_weights,
)
from agent_trainer.precision import on_device

PLACES = 1 << 23  # cells of maps that the conditional policy scores at once; 32 MB a number


@dataclass(frozen=True)
class Draws:
    """R sets of P patches of each of n images whose maps have one shape.

    maps              float32[n, h·w], the attention a (of the first draw, if conditional); sums to 1
    cells             int64[n, R, P], in the order drawn
    log_a             float32[n, R, P], with gradient
    q                 float32[n, R, P], what was drawn by
    negative_entropy  Σ a·log a, a mean over maps, with gradient
    patches           uint8[n·R·P, channels, w, w]
    """

    maps: Tensor
    cells: Tensor
    log_a: Tensor
    q: Tensor
    negative_entropy: Tensor
    patches: Tensor

    def weights(self, config: AttentionConfig) -> Tensor:
        """Return what each patch's vote weighs in eq. (1), float32[n, R, P], without gradient."""
        a = self.log_a.detach().exp()
        if config.sampling == "without":
            return without_replacement_weights(a, self.q)
        return printed_weights(a, self.q) if config.estimate == "printed" else mean_weights(a, self.q)

    def gradient_weights(self, config: AttentionConfig) -> Tensor:
        """Return what each patch's ∇log a weighs in the gradient: always those of an unbiased estimate."""
        a = self.log_a.detach().exp()
        return without_replacement_weights(a, self.q) if config.sampling == "without" else mean_weights(a, self.q)


def draw_all(
    networks: Networks, groups: Sequence[Sequence[View]], replicas: int, generator: torch.Generator
) -> list[Draws]:
    """Do what `draw` does, of groups of views whose maps have one shape each; the attention sees all as one batch."""
    lows = [on_device(torch.stack([view.map_input() for view in views]), generator.device) for views in groups]
    together = networks.attention.together(lows)
    return [
        _drawn(networks, views, replicas, generator, features) for views, features in zip(groups, together, strict=True)
    ]


def draw(networks: Networks, views: Sequence[View], replicas: int, generator: torch.Generator) -> Draws:
    """Draw patches of views whose maps have one shape, and cut them. Raises ImageError."""
    return draw_all(networks, [views], replicas, generator)[0]


def _drawn(
    networks: Networks, views: Sequence[View], replicas: int, generator: torch.Generator, features: Tensor
) -> Draws:
    config, device = networks.config, generator.device
    densities = _densities(views, config, device)
    logits = networks.attention.logits(features) / config.temperature
    if networks.policy is not None:
        return _one_after_another(networks, views, replicas, generator, features, logits, densities)
    start, blend = _roles(densities, config)
    log_a = with_prior(logits, start)
    q = mixed(log_a.detach().exp(), blend, config.prior_share, config.explore)
    n = len(views)
    if config.sampling == "without":
        rows = q.log().repeat_interleave(replicas, 0)
        cells = gumbel_top_k(rows, config.patches, generator)
    else:
        cells = with_replacement(q, replicas * config.patches, generator)
    cells = cells.view(n, replicas, config.patches)
    return Draws(
        log_a.detach().exp(),
        cells,
        log_a.gather(1, cells.flatten(1)).view(cells.shape),
        q.gather(1, cells.flatten(1)).view(cells.shape),
        negative_entropy(log_a, start),
        on_device(cut(views, cells, config.patch), device),
    )


def _one_after_another(
    networks: Networks,
    views: Sequence[View],
    replicas: int,
    generator: torch.Generator,
    features: Tensor,
    logits: Tensor,
    densities: Tensor | None,
) -> Draws:
    """Draw by q(p_k | p_1 … p_{k-1}, image). The mixture itself is the policy: a = q."""
    config, policy, n = networks.config, networks.policy, len(views)
    assert policy is not None
    start, blend = _roles(densities, config)
    features = features.contiguous()  # else each step would keep a copy that is
    at_once = max(1, PLACES // (replicas * logits.shape[1]))
    groups = [slice(first, first + at_once) for first in range(0, n, at_once)]
    state: Tensor | None = None
    drawn: list[Tensor] = []
    log_a, entropies, patches, maps = [], [], [], []
    for step in range(config.patches):
        of_groups = []
        for some in groups:
            scores = _Scores(networks, generator, *(None if one is None else one[some] for one in (start, blend)))
            seen = None if state is None else state.view(n, replicas, -1)[some].flatten(0, 1)
            before = drawn[-1][some] if drawn else torch.empty(len(views[some]), replicas, device=logits.device)
            given = (logits[some], features[some], before, seen)
            # What a map of each step holds would not fit into memory: it is made again for its gradient.
            of_groups.append(checkpoint(scores, *given, use_reentrant=False, preserve_rng_state=False))
            if step == 0:
                maps.append(scores.first)
        cells, scored, spread = (list(parts) for parts in zip(*of_groups, strict=True))
        drawn.append(torch.cat(cells))
        log_a.append(torch.cat(scored))
        entropies.append(torch.stack(spread).sum() / n)
        patches.append(on_device(cut(views, drawn[-1][..., None], config.patch), generator.device))
        if step + 1 < config.patches:
            state = policy.step(features, drawn[-1], _glance(networks, patches[-1]), state)
    together = torch.stack(log_a, 2)
    return Draws(
        torch.cat(maps),
        torch.stack(drawn, 2),
        together,
        together.detach().exp(),
        torch.stack(entropies).mean(),
        torch.stack(patches, 1).flatten(0, 1),
    )


class _Scores:
    """Draws one cell of each set by log π, the first time that it is called; again it scores the same cells.

    start, blend  see `_roles`, float[n, h·w]
    first         float[n, h·w], π of each image's first draw
    """

    def __init__(
        self, networks: Networks, generator: torch.Generator, start: Tensor | None, blend: Tensor | None
    ) -> None:
        self._networks, self._generator, self._cells = networks, generator, torch.empty(0)
        self._start, self._blend = (None if one is None else one[:, None] for one in (start, blend))
        self.first = torch.empty(0)

    def __call__(
        self, logits: Tensor, features: Tensor, before: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cells int64[n, R], log π of them float[n, R], and Σ_n Σ π·log π, a mean over R.

        logits    float[n, h·w]; features float[n, filters, h, w]
        before    int64[n, R], the cells drawn before; of the first only its shape counts
        state     of the policy after them, float[n·R, hidden]; None at the first
        """
        config, policy = self._networks.config, self._networks.policy
        assert policy is not None
        base = logits[:, None].expand(-1, before.shape[1], -1)
        if state is not None:
            base = base + policy.added(features, before, state) / config.temperature
        log_pi = with_prior(base, self._start)
        if self._blend is not None or config.explore:
            log_pi = mixed(log_pi.exp(), self._blend, config.prior_share, config.explore).log()
        if not self._cells.numel():
            pi = log_pi.detach().exp()
            self.first = pi[:, 0].clone() if state is None else self.first
            self._cells = with_replacement(pi.flatten(0, 1), 1, self._generator).view(before.shape)
        spread = negative_entropy(log_pi, self._start) * len(logits)
        return self._cells, log_pi.gather(2, self._cells[..., None])[..., 0], spread


def highest(networks: Networks, view: View) -> Draws:
    """Take the cells of most attention, without chance; as if drawn by it. Not for conditional sampling."""
    config = networks.config
    device = next(networks.parameters()).device
    densities = _densities([view], config, device)
    logits = networks.attention(view.map_input()[None].to(device)) / config.temperature
    log_a = with_prior(logits, _roles(densities, config)[0])
    top = log_a.topk(min(config.patches, log_a.shape[1]), dim=1)
    return Draws(
        log_a.exp(),
        top.indices[:, None],
        top.values[:, None],
        top.values[:, None].exp(),
        negative_entropy(log_a),
        cut([view], top.indices[:, None], config.patch).to(device),
    )


def cut(views: Sequence[View], cells: Tensor, side: int) -> Tensor:
    """Cut the patches of cells int64[n, R, P] from n views, uint8[n·R·P, channels, side, side]."""
    rows = cells.flatten(1).cpu().numpy()
    return torch.from_numpy(np.concatenate([view.patches(row, side) for view, row in zip(views, rows, strict=True)]))


def _glance(networks: Networks, patches: Tensor) -> Tensor:
    """Return the classifier's votes for the policy to see; neither gradient nor running statistics come of it."""
    training = networks.classifier.training
    networks.classifier.eval()
    with torch.no_grad():
        votes = networks.votes(patches)
    networks.classifier.train(training)
    return votes


def _densities(views: Sequence[View], config: AttentionConfig, device: torch.device) -> Tensor | None:
    """Return the priors float32[n, h·w]; a view without one gets an even one, None if none has one."""
    if config.prior == "none":
        return None
    priors = [view.prior() for view in views]
    if all(prior is None for prior in priors):
        return None
    cells = views[0].shape[0] * views[0].shape[1]
    return torch.stack([torch.full((cells,), 1 / cells) if prior is None else prior for prior in priors]).to(device)


def _roles(densities: Tensor | None, config: AttentionConfig) -> tuple[Tensor | None, Tensor | None]:
    """Return the log of what the attention begins as, and what a share of the draws is by; at most one of them."""
    if densities is None:
        return None, None
    return (open_prior(densities), None) if config.prior == "initial" else (None, densities)
