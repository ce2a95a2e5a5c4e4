"""Draws of the conditional policy: what they are scored by, and what they hold in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from agent_trainer import attention_draws
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_draws import draw
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_views import View
from agent_trainer.patches import in_memory

CONFIG = AttentionConfig(classes=("a", "b"), sampling="conditional", patch=4, patches=4, explore=0.1)


def views(count: int) -> list[View]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        image, low = (rng.integers(0, 256, (3, side, side), np.uint8) for side in (30, 6))
        found.append(View(in_memory(image), low, rng.dirichlet(np.ones(36)).astype(np.float32).reshape(6, 6)))
    return found


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("prior", ["none", "mixed", "initial"])
def test_each_draw_is_scored_by_the_map_after_those_before_it_and_so_is_its_gradient(
    monkeypatch: pytest.MonkeyPatch, at_once: int, prior: str
) -> None:
    """Whether all images' maps are made at once or one after another."""
    monkeypatch.setattr(attention_draws, "PLACES", at_once)
    config = CONFIG.model_copy(update={"prior": prior})
    networks, images = Networks(config, 3), views(3)
    with torch.no_grad():
        for parameter in networks.policy.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    networks.eval()
    made = draw(networks, images, 2, torch.Generator().manual_seed(2))
    parameters = list(networks.attention_parameters().values())
    told = (made.log_a * torch.arange(24).view(3, 2, 4)).sum() + made.negative_entropy
    found = torch.autograd.grad(told, parameters)

    features = networks.attention.features(torch.stack([view.map_input() for view in images]))
    logits, uniform = networks.attention.logits(features), torch.full((36,), 1 / 36)
    votes = networks.votes(made.patches).detach().view(3, 2, 4, 2)
    expected, spread, state = torch.zeros(3, 2, 4), [], None
    for step in range(4):
        added = 0 if state is None else networks.policy.added(features, made.cells[:, :, step - 1], state)
        for n, view in enumerate(images):
            for r in range(2):
                changed = logits[n] if state is None else logits[n] + added[n, r]
                start = torch.log((view.prior() + 1e-3 / 36) / 1.001) if prior == "initial" else torch.zeros(36)
                pi = torch.softmax(changed + start, 0)
                s = 0.3 if prior == "mixed" else 0.0
                pi = (1 - s - 0.1) * pi + s * view.prior() + 0.1 * uniform
                expected[n, r, step] = pi[made.cells[n, r, step]].log()
                even = np.log(36) if prior == "initial" else 0.0
                spread.append((pi * (pi.log() - start)).sum() - even)
                if step == 0:
                    torch.testing.assert_close(made.maps[n], pi.detach())
        state = networks.policy.step(features, made.cells[:, :, step], votes[:, :, step].flatten(0, 1), state)
    torch.testing.assert_close(made.log_a, expected)
    torch.testing.assert_close(made.negative_entropy, torch.stack(spread).mean())
    weighed = (expected * torch.arange(24).view(3, 2, 4)).sum() + torch.stack(spread).mean()
    for one, other in zip(found, torch.autograd.grad(weighed, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


MEASURE = """
import resource
import numpy as np
import torch
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_learner import AttentionLearner
from agent_trainer.attention_views import View
from agent_trainer.patches import in_memory
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rng = np.random.default_rng(0)
def update(side, patches):
    config = AttentionConfig(classes=("a", "b"), sampling="conditional", reduction=1, patches=patches, patch=8, batch=4)
    views = [View(in_memory(pixels), pixels) for pixels in rng.integers(0, 256, (4, 3, side, side), np.uint8)]
    AttentionLearner(config, seed=0).update(views, np.arange(4) % 2)
update(16, 2)
before = peak()
update(256, 2)
few = peak()
update(256, 12)
print(few - before, peak() - few)
"""


@pytest.mark.slow
def test_ten_draws_more_hold_no_ten_maps_more() -> None:
    """Of 16 sets on maps of 256 x 256 cells, each of which takes 4 MB for each number that a gradient would need."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300, check=True)
    few, more = map(float, done.stdout.split())
    assert few < 400, "MB for two draws"
    assert more < 160, "MB for ten more"
