"""Training as `ApgaPractice` does it beside a plain torch loop of the same networks, on the same images.

Both take turns, and each one's best turn counts; a second is one of the processor's. The plain loop does what algorithm
1 says and nothing else: it checks no number, can take no step back, keeps no sums and looks at no mask.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_networks import networks
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.labelled.sources import Labelled
from benchmarks.apga_cxr import SMALL, few, read_cxr, train

Line = dict[str, Any]
SETTINGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "paper": {"classes": SMALL["classes"], "side": 64, "batch": 4},  # 224 pixels take ten times as long, on both sides
}
UPDATES = {"small": 10, "paper": 1}
TURNS, SHOTS = 3, 40
AGAINST = "plain_torch"


def speed(wanted: str, settings: dict[str, Any]) -> Iterator[Line]:
    """Measure one pair of networks with and without a policy; `settings` over those of SETTINGS."""
    examples = few(read_cxr(validate=False).train, SHOTS, 0)
    for method in ("none", "apga"):
        config = ApgaConfig(**{**SETTINGS[wanted], "method": method, "pretrain_updates": 0, **settings})
        with tempfile.TemporaryDirectory() as folder:
            practice = ApgaPractice(Labelled(examples, ()), config, 0, "cpu", Path(folder))
            ways: dict[str, Callable[[int], None]] = {
                "cairn": lambda many, practice=practice: train(practice, many),  # type: ignore[misc]
                AGAINST: plain(config, practice),
            }
            best = _best(ways, UPDATES[wanted])
        images = config.batch * UPDATES[wanted]
        for name, seconds in best.items():
            line = {"name": f"apga/speed/{wanted}/{method}/{name}", "value": images / seconds, "unit": "images/s"}
            yield line | ({} if name == AGAINST else {"ratio": best[AGAINST] / seconds, "against": AGAINST})


def _best(ways: dict[str, Callable[[int], None]], updates: int) -> dict[str, float]:
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(TURNS + 1):  # the first warms up
        for name, way in ways.items():
            began = time.process_time()
            way(updates)
            if turn:
                best[name] = min(best[name], time.process_time() - began)
    return best


def plain(config: ApgaConfig, practice: ApgaPractice) -> Callable[[int], None]:
    """Return the plain loop, over the practice's own images."""
    built = networks(config, 0).train()
    classifier = built["classifier"]
    adam = {name: torch.optim.Adam(built[name].parameters(), lr=config.learning_rate, fused=True) for name in built}
    pixels, labels = torch.from_numpy(practice.images), torch.from_numpy(practice.labels)
    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(scale)[:, None, None] for scale in config.scale)
    baseline = [0.0]

    def descend(loss: torch.Tensor, name: str) -> None:
        adam[name].zero_grad()
        loss.backward()
        adam[name].step()

    def loop(updates: int) -> None:
        for _ in range(updates):
            chosen = torch.from_numpy(rng.integers(0, len(labels), config.batch))
            x, y = (pixels[chosen].to(memory_format=torch.channels_last) / 255 - mean) / std, labels[chosen]
            original = functional.cross_entropy(classifier(x), y)
            descend(original, "classifier")
            if config.method == "none":
                continue
            masker = built["masker"]
            logits = masker(x)
            erased = logits.detach() < 0
            with torch.no_grad():
                reward = float(functional.cross_entropy(classifier.eval()(erased * x), y) - original)
            classifier.train()
            taken, nothing = (~erased).float(), torch.zeros_like(logits)
            entropy = functional.binary_cross_entropy_with_logits
            policy = entropy(logits, taken) * (reward - baseline[0]) + config.lambda_zeros * entropy(logits, nothing)
            baseline[0] = config.baseline_decay * baseline[0] + (1 - config.baseline_decay) * reward
            descend(policy, "masker")
            with torch.no_grad():
                kept = masker(x) > 0
            descend(functional.cross_entropy(classifier(kept * x), y), "classifier")

    return loop
