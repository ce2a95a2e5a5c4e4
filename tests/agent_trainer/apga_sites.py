"""Small sites for the tests of APGA: images in which one class has a bright corner."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.labelled.sources import Example, Labelled

CLASSES = ("dark", "bright")
TINY: dict[str, Any] = {
    "classes": CLASSES,
    "side": 16,
    "channels": 1,
    "classifier": "small",
    "masker": "small",
    "small_channels": (4, 8),
    "batch": 6,
    "learning_rate": 0.01,
    "pretrain_updates": 3,
}


def tiny(**settings: Any) -> ApgaConfig:
    return ApgaConfig(**{**TINY, **settings})


def draw(folder: Path, labels: list[int], seed: int = 0) -> tuple[Example, ...]:
    """Write 16 × 16 images of noise; where the label is 1, the upper left quarter is bright."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    examples = []
    for i, label in enumerate(labels):
        pixels = rng.integers(0, 120, (16, 16), np.uint8)
        pixels[:8, :8] += np.uint8(120 * label)
        path = folder / f"{i}.png"
        Image.fromarray(pixels).save(path)
        examples.append(Example(path.name, path, label, path.name))
    return tuple(examples)


def site(folder: Path, config: ApgaConfig, labels: list[int], *, seed: int = 0, held_out: int = 10) -> ApgaPractice:
    """Begin, or go on with, a site whose last images are held out."""
    examples = draw(folder / "images", labels, seed)
    cut = len(examples) - held_out
    labelled = Labelled(examples[:cut], examples[cut:], ())
    return ApgaPractice(labelled, config, seed, "cpu", folder / "run")
