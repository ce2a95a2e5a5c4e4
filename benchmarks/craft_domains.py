"""Two sites' looks to learn from, a third's to test on: pneumonia in `cxr_nih224` with simulated scanners, each remedy.

    python -m benchmarks.craft_domains run --seeds 0 1 2 3 4 > FILE.jsonl
    python -m benchmarks.craft_domains table FILE.jsonl
    python -m benchmarks.craft_domains picture FILE.jsonl docs/pictures/craft-domains.png

Patients are divided into three sites to learn at and the test's. The sites of a federation are objects of one process.
One thread; a seed is that of the weights, the order and the few labelled images.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter

from agent_trainer.algorithms import Weights
from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.apga_practice import ApgaPractice, first_weights
from agent_trainer.classification import count, measures
from agent_trainer.craft.domains import level_counts, looked, reference_of
from agent_trainer.labelled.reading import read_whole
from agent_trainer.labelled.sources import Example, Labelled
from benchmarks.apga_cxr import deal, few, read_cxr, train
from benchmarks.dqn_ceph import average

Line = dict[str, Any]
Pixels = npt.NDArray[np.uint8]
Examples = tuple[Example, ...]

SIDE, UPDATES, ROUND = 32, 90, 15
FEW: Final = 25  # labelled images a class that the third site has
CORAL: Final = 10.0  # weight of its loss
FINE: Final = 50  # updates of fine-tuning
SMALL: dict[str, Any] = {
    "classes": ("No_findings", "Pneumonia"),
    "method": "none",
    "side": SIDE,
    "channels": 1,
    "classifier": "small",
    "small_channels": (8, 16, 32),
    "learning_rate": 1e-3,
    "pretrain_updates": 0,
    "round_updates": ROUND,
}
# A scanner's look: gamma of the levels, the contrast and the offset after it, blur in pixels of SIDE, noise in levels.
LOOKS: Final[dict[str, tuple[float, float, float, float, float]]] = {
    "A": (1.0, 1.0, 0.0, 0.0, 0.0),
    "B": (0.7, 0.8, 0.15, 0.0, 3.0),
    "C": (2.2, 0.6, 0.05, 0.5, 6.0),
}
ROWS: Final = {
    "none": "nothing",
    "group norm": "group norm in place of batch norm",
    "standardise": "look: standardise",
    "equalise": "look: histogram, even",
    "histogram": "look: histogram of A and B",
    "coral": "CORAL, unlabelled images of C at A and B",
    "fine": "fine-tuned at C, 50 labelled",
    "alone": "C alone, 50 labelled",
    "fedavg": "C takes part, 50 labelled: FedAvg",
    "fedbn": "C takes part, 50 labelled: FedBN",
    "histogram+fedavg": "C takes part, FedAvg, and histogram",
    "no shift": "no shift: A and B look like C",
}


def scanned(pixels: Pixels, look: str, rng: np.random.Generator) -> Pixels:
    """Make a grey image uint8[h, w] look as if from another scanner."""
    gamma, contrast, offset, blur, noise = LOOKS[look]
    soft = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)) if blur else pixels
    levels = 255 * (offset + contrast * (np.asarray(soft) / 255) ** gamma) + noise * rng.standard_normal(pixels.shape)
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def write(examples: Examples, look: str, folder: Path) -> Examples:
    """Write images at SIDE pixels in a look, and name them as the sites' own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(examples))
    made = []
    for number, example in enumerate(examples):
        path = folder / f"{number}.png"
        Image.fromarray(scanned(read_whole(example.path, SIDE, 1)[0], look, rng)).save(path)
        made.append(Example(path.name, path, example.label, example.patient))
    return tuple(made)


def read(examples: Examples) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Read images that lie at SIDE pixels, and their labels."""
    pixels = np.stack([read_whole(example.path, SIDE, 1) for example in examples])
    return pixels, np.array([example.label for example in examples], np.int64)


class Shift:
    """The sites' images on disk, and what every remedy makes of them.

    sites  by look, those to learn from; C's are all that it has, labelled or not
    """

    def __init__(self, folder: Path) -> None:
        found = read_cxr(validate=False)
        parts = dict(zip(LOOKS, deal(found.train, len(LOOKS)), strict=True))
        self.folder, self.runs = folder, 0
        self.sites = {look: write(part, look, folder / look) for look, part in parts.items()}
        self.like_c = [write(parts[look], "C", folder / f"{look} as C") for look in ("A", "B")]
        self.test = {look: read(write(found.validation, look, folder / f"test {look}")) for look in ("A", "C")}
        both = np.concatenate([read(self.sites[look])[0] for look in ("A", "B")])
        self.reference = reference_of(level_counts(both))

    def federated(
        self, config: ApgaConfig, parts: Sequence[Examples], seed: int, target: Examples = ()
    ) -> tuple[Weights, list[ApgaPractice]]:
        """Train by FedAvg; returns the mean, and the sites, which have loaded it."""
        self.runs += 1
        sites = [
            ApgaPractice(Labelled(part, ()), config, 10 * seed + i, "cpu", self.folder / f"{self.runs}/{i}", target)
            for i, part in enumerate(parts)
        ]
        merged = first_weights(config, seed)
        for _ in range(UPDATES // ROUND):
            for site in sites:
                site.load(merged)
                train(site, ROUND)
            merged = average([site.weights() for site in sites], [site.examples for site in sites])
        for site in sites:
            site.load(merged)
        return merged, sites

    def told(self, config: ApgaConfig, weights: Weights, seed: int, remedy: str, **also: object) -> Iterator[Line]:
        """Measure weights on the test's patients, in the look of C and of A."""
        learner = Learner(config, seed=0)
        learner.load(weights)
        line: Line = {"name": f"domains/{remedy}", "unit": "", "seed": seed}
        for look, (pixels, labels) in self.test.items():
            found = measures(count(learner.probabilities(looked(pixels, config.domain)), labels), config.classes)
            line |= {f"{figure}_{look}": found[figure] for figure in ("balanced_accuracy", "auc", "ece")}
        yield {**line, "value": line["balanced_accuracy_C"], **also}

    def measure(self, seed: int, wanted: Sequence[str]) -> Iterator[Line]:
        """Train with the remedies that are wanted, from one seed."""
        a, b, c = (self.sites[look] for look in LOOKS)
        some = few(c, FEW, seed)
        histogram = {"look": "histogram", "reference": self.reference}
        trainings: dict[str, tuple[dict[str, Any], Sequence[Examples], Examples]] = {
            "none": ({}, (a, b), ()),
            "group norm": ({"small_norm": "group"}, (a, b), ()),
            "standardise": ({"domain": {"look": "standardise"}}, (a, b), ()),
            "equalise": ({"domain": {"look": "histogram"}}, (a, b), ()),
            "histogram": ({"domain": histogram}, (a, b), ()),
            "coral": ({"domain": {"coral": CORAL}}, (a, b), c),
            "alone": ({}, (some,), ()),
            "fedavg": ({}, (a, b, some), ()),
            "fedbn": ({"domain": {"keep_local": ("norm",)}}, (a, b, some), ()),
            "histogram+fedavg": ({"domain": histogram}, (a, b, some), ()),
            "no shift": ({}, self.like_c, ()),
        }
        for remedy, (settings, parts, target) in trainings.items():
            if remedy not in wanted:
                continue
            config, began = ApgaConfig(**{**SMALL, **settings}), time.process_time()
            merged, sites = self.federated(config, parts, seed, target)
            spent = round(time.process_time() - began, 1)
            weights = sites[-1].weights() if remedy == "fedbn" else merged  # C's own normalisations
            yield from self.told(config, weights, seed, remedy, cpu_s=spent)
            if remedy == "none" and "fine" in wanted:
                yield from self.told(config, self.tuned(config, merged, some, seed), seed, "fine")

    def tuned(self, config: ApgaConfig, weights: Weights, some: Examples, seed: int) -> Weights:
        """Go on at C alone, at a tenth of the rate."""
        self.runs += 1
        slower = config.model_copy(update={"learning_rate": config.learning_rate / 10})
        site = ApgaPractice(Labelled(some, ()), slower, seed, "cpu", self.folder / f"{self.runs}")
        site.load(weights)
        train(site, FINE)
        return site.weights()


def table(lines: Sequence[Line]) -> str:
    """Lay lines out: mean ± standard deviation over seeds, and the mean gain over nothing, seed by seed."""
    rows = [
        "| remedy | seeds | balanced accuracy, C | gain | AUC, C | balanced accuracy, A |",
        "|---|---|---|---|---|---|",
    ]
    base = {line["seed"]: line for line in lines if line["name"] == "domains/none"}
    for name in dict.fromkeys(line["name"] for line in lines):
        of = [line for line in lines if line["name"] == name]
        gains = [100 * (line["value"] - base[line["seed"]]["value"]) for line in of]
        cells = [_spread([100 * line[f] for line in of]) for f in ("value", "auc_C", "balanced_accuracy_A")]
        short = name.removeprefix("domains/")
        rows.append(
            f"| {ROWS.get(short, short)} | {len(of)} | {cells[0]} | {_spread(gains)} | {cells[1]} | {cells[2]} |"
        )
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def picture(lines: Sequence[Line], path: Path) -> None:
    """Draw one radiograph in the three looks, each also after each remedy that changes it, and every seed's result."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    found = read_cxr(validate=False)
    example = next(one for one in found.validation if one.label)
    pixels = read_whole(example.path, SIDE, 1)[0]
    rng = np.random.default_rng(0)
    shown = {look: scanned(pixels, look, rng) for look in LOOKS}
    reference = reference_of(level_counts(np.stack([shown[look][None] for look in ("A", "B")])))
    figure = Figure((11, 5.4), 130, layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    left, right = parts
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("as it is", {}),
        ("standardise", {"look": "standardise"}),
        ("histogram", {"look": "histogram", "reference": reference}),
    ]
    grid = left.subplots(3, 3)
    for row, (title, domain) in enumerate(kinds):
        config = ApgaConfig(**SMALL, domain=domain)
        for column, (look, image) in enumerate(shown.items()):
            axes = grid[row, column]
            axes.imshow(looked(image[None, None], config.domain)[0, 0], "gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"scanner {look}", size=10)
            if column == 0:
                axes.set_ylabel(title, size=10)
    axes = right.subplots()
    names = list(dict.fromkeys(line["name"] for line in lines))
    for place, name in enumerate(names):
        values = [100 * line["value"] for line in lines if line["name"] == name]
        axes.plot(values, [place] * len(values), "o", color="#9fb6c9", markersize=4)
        axes.plot(statistics.mean(values), place, "|", color="#0072b2", markersize=16, markeredgewidth=3)
    short = [name.removeprefix("domains/") for name in names]
    axes.set_yticks(range(len(names)), [ROWS.get(one, one) for one in short], size=9)
    axes.invert_yaxis()
    axes.axvline(50, color="#c9ced6", linewidth=1, linestyle=":")
    axes.set_xlabel("balanced accuracy on C, %: seeds and their mean", size=9)
    axes.grid(axis="x", color="#e4e6ea")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def run() -> Iterator[Line]:
    """Measure one seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield from Shift(Path(folder)).measure(0, list(ROWS))


def main() -> None:
    """Run, or lay out what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.craft_domains",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("run", "table", "picture"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        with tempfile.TemporaryDirectory() as folder:
            shift = Shift(Path(folder))
            for seed in given.seeds:
                for line in shift.measure(seed, given.only):
                    print(json.dumps(line), flush=True)
        return
    lines = [json.loads(text) for text in given.paths[0].read_text(encoding="utf-8").splitlines()]
    if given.what == "table":
        print(table(lines))
    else:
        picture(lines, given.paths[1])


if __name__ == "__main__":
    main()
