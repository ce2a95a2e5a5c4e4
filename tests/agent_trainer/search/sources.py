"""Data and searches for tests: tiny images of two classes, learned from by a tiny classifier."""

import csv
from pathlib import Path
from typing import Any

import tomli_w

from tests.agent_trainer.apga_sites import CLASSES, TINY, draw

LABELLED = '[[labelled]]\nkind = "files"\nlabels = "{part}/labels.csv"\nimages = "{part}/images"\n'
SPACE: dict[str, Any] = {
    "parameters": {
        "learning_rate": {"min": 1e-3, "max": 0.1, "scale": "log", "routine": 0.01},
        "lambda_zeros": {"min": 0.0, "max": 1.0},
    },
    "settings": {**TINY, "method": "none"},
}


def lay(folder: Path, part: str, images: int) -> Path:
    """Write images with labels, and a file of sources that names them; returns that."""
    examples = draw(folder / part / "images", [at % 2 for at in range(images)], seed=len(part))
    with (folder / part / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        rows.writerows([[example.path.name, CLASSES[example.label]] for example in examples])
    path = folder / f"{part}.toml"
    path.write_text(LABELLED.format(part=part))
    return path


def asked(folder: Path, **changed: Any) -> Path:
    """Write a search's file, with data beside it; returns it."""
    lay(folder, "learn", 60)
    lay(folder, "test", 20)
    space = {**SPACE, "settings": {**SPACE["settings"]}}
    del space["settings"]["learning_rate"]
    values = {"algorithm": "apga", "method": "random", "jobs": 2, "in_flight": 1, "updates": 4, "attempts": 1}
    values |= {"sources": "learn.toml", "test": "test.toml", "space": space} | changed
    path = folder / "search.toml"
    path.write_text(tomli_w.dumps({key: value for key, value in values.items() if value is not None}))
    return path
