"""Images for attention sampling to be measured on: needles in a megapixel, and white cells in blood smears."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from agent_trainer.labelled.needles import WORDS, needle_examples
from agent_trainer.labelled.settings import Needles
from agent_trainer.patches import Big, in_memory, open_big

DATA = Path(__file__).parents[2] / "shared" / "data" / "dev"
CELLS = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE")
HELD_OUT = 4  # of the smears one in so many is to test on
Box: TypeAlias = tuple[int, int, int, int]  # first row and column, and those behind the last
Background: TypeAlias = Literal["made", "bccd", "pathology"]


@dataclass(frozen=True)
class Sample:
    """An image in memory, its class, and where what shows the class lies."""

    image: Big
    label: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    settings  of the attention where they are not the defaults; how they were found is in docs/LOG.md
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    settings: Mapping[str, Any]


NEEDLE: Mapping[str, Any] = {
    "reduction": 8,
    "patch": 24,
    "patches": 8,
    "batch": 9,
    "balance": "sampler",
    "learning_rate": 3e-3,
    "baseline": "image",
    "deviation_floor": 0.05,
    "entropy": 0.02,
    "contrast": 0.0,  # flips alone, as all learners have
    "zoom": 1.0,
    "prior": "initial",
    "prior_of": "rarity",
}
CELL: Mapping[str, Any] = {**NEEDLE, "reduction": 10, "patch": 48}


NEEDLE_SEEDS = (10, 11)  # of the images to learn from and to test on; settings were found on others


def needles(train: int, test: int, background: Background = "made", size: int = 1024, side: int = 16) -> Task:
    """Make images; those to test on have another seed. On real backgrounds too, of which the same may come in both."""
    folder = None if background == "made" else DATA / background
    parts = []
    for seed, images in zip(NEEDLE_SEEDS, (train, test), strict=True):
        made = needle_examples(Needles(images=images, size=size, needle=side, seed=seed, backgrounds=folder))
        parts.append(
            tuple(
                Sample(loaded(needle.path), WORDS.index(needle.word), (around(needle.middle, side),)) for needle in made
            )
        )
    return Task(f"needle_{background}", WORDS, parts[0], parts[1], NEEDLE)


def cells() -> Task:
    """Read blood smears with one kind of white cell, and the boxes of these cells; a quarter of them to test on."""
    folder = DATA / "bccd"
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    with (folder / "wbc_type.csv").open(newline="") as file:
        rows = sorted((row["image"], row["wbc_type"]) for row in csv.DictReader(file))
    for name, kind in rows:
        path = folder / name
        if kind in CELLS and path.is_file():
            held_out = int.from_bytes(sha256(name.encode()).digest()[:4]) % HELD_OUT == 0
            parts[held_out].append(Sample(loaded(path), CELLS.index(kind), white_boxes(path.with_suffix(".xml"))))
    return Task("cells", CELLS, tuple(parts[0]), tuple(parts[1]), CELL)


TASKS: Mapping[str, Callable[[], Task]] = {
    "needle": lambda: needles(120, 60),
    "needle_bccd": lambda: needles(120, 60, "bccd"),
    "needle_pathology": lambda: needles(120, 60, "pathology"),
    "cells": cells,
}


def loaded(path: Path) -> Big:
    """Read an image into memory, in colour."""
    with open_big(path, 3) as big:
        side = min(big.height, big.width)
        corners = [(y, x) for y in starts(big.height, side) for x in starts(big.width, side)]
        whole = np.empty((3, big.height, big.width), np.uint8)
        for (y, x), patch in zip(corners, big.patches(np.array(corners, np.int64), side), strict=True):
            whole[:, y : y + side, x : x + side] = patch
    return in_memory(whole, path.name)


def starts(length: int, side: int) -> list[int]:
    """Lay pieces over a length, the last one back from its end."""
    return sorted({*range(0, length - side + 1, side), length - side})


def around(middle: tuple[int, int], side: int) -> Box:
    """Return the box of a thing of so many pixels."""
    y, x = middle[0] - side // 2, middle[1] - side // 2
    return y, x, y + side, x + side


def white_boxes(path: Path) -> tuple[Box, ...]:
    """Read the boxes of white cells from a Pascal VOC file; () where there is none."""
    if not path.is_file():
        return ()
    found = [one for one in ET.parse(path).iter("object") if one.findtext("name") == "WBC"]
    boxes = [[int(one.findtext(f"bndbox/{side}", "0")) for side in ("ymin", "xmin", "ymax", "xmax")] for one in found]
    return tuple((y, x, bottom, right) for y, x, bottom, right in boxes)


def hits(sample: Sample, corners: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.bool_]:
    """Tell which patches hold the middle of a thing that is looked for, or have their own middle in one; bool[P]."""
    found = np.zeros(len(corners), bool)
    own = corners + side / 2
    for y, x, bottom, right in sample.boxes:
        middle = np.array([(y + bottom) / 2, (x + right) / 2])
        found |= ((corners <= middle) & (middle <= corners + side)).all(axis=1)
        found |= ((own >= (y, x)) & (own <= (bottom, right))).all(axis=1)
    return found
