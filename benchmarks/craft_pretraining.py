"""Pneumonia or no finding with few labels: what a pre-trained encoder is worth, or one from elsewhere.

`python -m benchmarks.craft_pretraining run FILE`, `… table FILE`, and `… tasks PNG` and `… layers PNG`, which draw.

The radiographs are those of `apga_cxr`, divided by patient. Pre-training sees the images of all patients to learn from,
without labels; then 25, 50 or 100 labelled ones of each class are learned from, and the test's patients answer. "blood"
is an encoder that learned, with labels, to tell cells on stained smears apart: another kind of image. Nothing was tuned
on the test, or on anything: rates and lengths are those of `apga_cxr`, the tasks are as they come.
"""

import argparse
import json
import statistics
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.numpy import save_file

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.apga_networks import CLASSIFIER, last_layer, networks
from agent_trainer.apga_practice import first_weights
from agent_trainer.classification import count, measures
from agent_trainer.craft.transfer import freeze
from agent_trainer.labelled.balance import order
from agent_trainer.labelled.reading import read_all
from agent_trainer.labelled.sources import Example
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.images import Found, Whole
from agent_trainer.pretraining.practice import PretrainPractice
from benchmarks.apga_cxr import DATA, SMALL, few, read_cxr

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Line = dict[str, Any]

SHOTS = (25, 50, 100)
UPDATES, PRETRAINING, SUPERVISED = 120, 200, 120
DRAWN = 60  # batches, for the picture of the tasks
CELLS = ("RBC", "WBC", "Platelets")
SIDE = int(SMALL["side"])
ARMS = (
    ("random", "all"),
    ("masked", "all"),
    ("jigsaw", "all"),
    ("blood", "all"),
    ("random", "frozen"),
    ("jigsaw", "frozen"),
)
FIGURES = ("accuracy", "auc")
OWN = {name: SMALL[name] for name in ("side", "channels", "small_norm")}
TASKS: dict[str, dict[str, Any]] = {
    "masked": {},
    "jigsaw": {},
    "rotation": {"batch": 8},  # four times as many
    "autoencoder": {},
}


def radiographs() -> tuple[Pixels, Labels, tuple[Example, ...], Pixels, Labels]:
    """Read the images to learn from and to test on: uint8[n, 1, side, side]."""
    found = read_cxr(validate=False)
    train, examples, _ = read_all(found.train, SIDE, 1)
    test, tested, _ = read_all(found.validation, SIDE, 1)
    labels, answers = (np.array([one.label for one in some], np.int64) for some in (examples, tested))
    return train, labels, examples, test, answers


def cells() -> tuple[Pixels, Labels]:
    """Cut cells out of smears, in grey, with a margin: uint8[n, 1, side, side]; every third red one."""
    pixels: list[Pixels] = []
    labels: list[int] = []
    for path in sorted((DATA.parent / "bccd").glob("*.xml")):
        image = Image.open(path.with_suffix(".jpg")).convert("L")
        for number, item in enumerate(ET.parse(path).getroot().iter("object")):
            name = item.findtext("name", "")
            if name not in CELLS or (name == "RBC" and number % 3):
                continue
            left, top, right, bottom = (
                int(item.findtext(f"bndbox/{edge}", "0")) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            margin = max(right - left, bottom - top) // 8
            box = (left - margin, top - margin, right + margin, bottom + margin)
            pixels.append(np.asarray(image.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR))[None])
            labels.append(CELLS.index(name))
    return np.stack(pixels), np.array(labels, np.int64)


def pretrained(
    task: str, train: Pixels, held_out: Pixels, seed: int, updates: int
) -> tuple[PretrainPractice, dict[str, float]]:
    """Pre-train on images without labels; returns the practice and what it then measured."""
    config = PretrainConfig(method=task, **OWN, **TASKS[task])
    with tempfile.TemporaryDirectory() as folder:
        practice = PretrainPractice(Found(Whole(train), Whole(held_out)), config, seed, "cpu", Path(folder))
        for _ in practice.train(updates):
            pass
    return practice, practice.validate()


def taught(config: ApgaConfig, pixels: Pixels, labels: Labels, seed: int, updates: int) -> Learner:
    """Learn labels from images, from the weights that the config says."""
    learner = Learner(config, seed=seed)
    learner.load(first_weights(config, seed))
    rng = np.random.default_rng(seed)
    places = order(labels, rng, updates * config.batch, config.balance)
    for at in range(0, len(places), config.batch):
        chosen = places[at : at + config.batch]
        learner.step(pixels[chosen], labels[chosen], rng)
    return learner


def settings(**changed: Any) -> ApgaConfig:
    """Return a plain classifier's settings."""
    return ApgaConfig(**{**SMALL, "method": "none", "pretrain_updates": 0, **changed})


def measure(seeds: Sequence[int], shots: Sequence[int], arms: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Measure what is wanted on the test's images."""
    train, labels, examples, test, answers = radiographs()
    smears, kinds = cells()
    place = {example.path: number for number, example in enumerate(examples)}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            files = {"random": None} | {
                begin: Path(name) / f"{begin}.safetensors" for begin, _ in arms if begin != "random"
            }
            for begin, path in files.items():
                if path is None:
                    continue
                began = time.process_time()
                if begin == "blood":
                    config = settings(classes=CELLS, balance="sampler")
                    learner = taught(config, smears, kinds, seed, SUPERVISED)
                    save_file(learner.weights(), path)
                    said: dict[str, float] = {}
                else:
                    practice, said = pretrained(begin, train, test, seed, PRETRAINING)
                    save_file(practice.weights(), path)
                spent = round(time.process_time() - began, 1)
                yield {"name": f"craft_pretraining/before/{begin}", "seed": seed, "cpu_s": spent, **said}
            for many in shots:
                rows = np.array([place[example.path] for example in few(examples, many, seed)])
                for begin, mode in arms:
                    began = time.process_time()
                    config = settings(transfer={"weights": files[begin], "mode": mode})
                    learner = taught(config, train[rows], labels[rows], seed, UPDATES)
                    made = np.concatenate([learner.probabilities(test[i : i + 50]) for i in range(0, len(test), 50)])
                    found = measures(count(made, answers), config.classes)
                    told = {figure: found[figure] for figure in FIGURES}
                    spent = round(time.process_time() - began, 1)
                    name_ = f"craft_pretraining/{many}/{begin}/{mode}"
                    yield {"name": name_, "seed": seed, **told, "tested": len(test), "cpu_s": spent}


def table(lines: Sequence[Line]) -> str:
    """Lay lines out: mean ± standard deviation over seeds, in percent."""
    of_name: dict[str, list[Line]] = {}
    for line in lines:
        if "accuracy" in line and "/before/" not in line["name"]:
            of_name.setdefault(line["name"].removeprefix("craft_pretraining/"), []).append(line)
    arms = list(dict.fromkeys(name.split("/", 1)[1] for name in of_name))
    shots = sorted({int(name.split("/")[0]) for name in of_name})
    head = [f"{many} a class: {figure}" for many in shots for figure in ("accuracy", "AUC")]
    rows = [f"| begins with, trains | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for arm in arms:
        cells_ = [
            _spread([100 * line[f] for line in of_name.get(f"{many}/{arm}", [])]) for many in shots for f in FIGURES
        ]
        rows.append(f"| {arm.replace('/', ', ')} | {' | '.join(cells_)} |")
    return "\n".join(rows)


def paired(lines: Sequence[Line], against: str = "random/all") -> str:
    """Say by how much each differs from another of the same seed and labels: mean ± standard deviation, in points."""
    known = {(line["name"], line["seed"]): line for line in lines if "accuracy" in line}
    rows = []
    for name in dict.fromkeys(name for name, _ in known):
        many = name.split("/")[1]
        pairs = [
            100 * (line["accuracy"] - known[f"craft_pretraining/{many}/{against}", seed]["accuracy"])
            for (other, seed), line in known.items()
            if other == name and (f"craft_pretraining/{many}/{against}", seed) in known
        ]
        if pairs and not name.endswith(against):
            better = f"{sum(p > 0 for p in pairs)} of {len(pairs)} better"
            rows.append(f"{name.removeprefix('craft_pretraining/')}: {_spread(pairs)}, {better}")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def draw_tasks(path: Path) -> None:
    """Draw two radiographs with what each task shows and asks, and what an encoder pre-trained on others answers."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    train, _, _, test, _ = radiographs()
    figure = Figure((9.6, 7.6), 130, layout="constrained", facecolor="white")
    grid = figure.subplots(4, 6)
    for row, task in zip(grid, TASKS, strict=True):
        practice, _ = pretrained(task, train, test, 0, DRAWN)
        learner = practice.learner
        for number, image in enumerate((0, len(test) - 1)):
            pixels = test[image : image + 1]
            posed = learner.posed(pixels, np.random.default_rng(2 + number))
            learner.network.eval()
            with torch.inference_mode():
                said = learner.network(posed.seen)
            shown = [pixels[0, 0], posed.seen[-2 if task == "rotation" else 0, 0].numpy()]
            titles = ["an image", "what is shown"]
            if posed.labels is None:
                assert posed.wanted is not None
                where = torch.ones_like(said, dtype=torch.bool) if posed.where is None else posed.where
                shown.append(torch.where(where, said, posed.wanted)[0, 0].numpy())
                titles.append("the answer")
            else:
                place = 2 if task == "rotation" else 0
                chances = torch.softmax(said[place], 0).numpy()
                axes = row[3 * number + 2]
                right = int(posed.labels[place])
                axes.bar(
                    range(len(chances)),
                    chances,
                    color=["#e69f00" if k == right else "#999999" for k in range(len(chances))],
                )
                axes.set_ylim(0, 1)
                axes.set_title("quarter turns" if task == "rotation" else "order of tiles", size=9)
            for axes, picture, title in zip(row[3 * number :], shown, titles, strict=False):
                axes.imshow(picture, "gray")
                axes.set_title(title, size=9)
                axes.set_xticks([])
                axes.set_yticks([])
        row[0].set_ylabel(task, size=11)
    figure.savefig(path, metadata={"Software": None})


def draw_layers(path: Path) -> None:
    """Draw, for each way of transfer, which of the small classifier's layers train over its updates."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "frozen": {"mode": "frozen"},
        'selective\ntrain = ["features.1[2-5]"]': {"mode": "selective", "train": ("features.1[2-5]",)},
        "two-stage\nfrozen_updates = 40": {"mode": "two-stage", "frozen_updates": 40},
    }
    figure = Figure((9.6, 2.9), 130, layout="constrained", facecolor="white")
    for axes, (title, values) in zip(figure.subplots(1, len(ways), sharey=True), ways.items(), strict=True):
        config = settings(transfer=values)
        module = networks(config, 0)[CLASSIFIER]
        names = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
        rows = np.zeros((len(names), 100))
        for update in range(100):
            report = freeze(module, config.transfer, update, last_layer(config))
            learning = {layer.name for layer in report.trains}
            rows[:, update] = [name in learning for name in names]
        axes.imshow(
            rows, "cividis", aspect="auto", vmin=-0.2, vmax=1.2, interpolation="nearest", extent=(0, 100, len(names), 0)
        )
        axes.set_yticks(np.arange(len(names)) + 0.5, names, size=8)
        axes.hlines(range(1, len(names)), 0, 100, colors="white", linewidth=1)
        axes.set_title(title, size=9)
        axes.set_xlabel("updates", size=9)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.craft_pretraining", description=__doc__)
    parser.add_argument("do", choices=("run", "table", "tasks", "layers"))
    parser.add_argument("file", type=Path, help="of lines, or a picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.do == "tasks":
        draw_tasks(given.file)
    elif given.do == "layers":
        draw_layers(given.file)
    elif given.do == "run":
        for line in measure(given.seeds, SHOTS, ARMS):
            with given.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    else:
        lines = [json.loads(text) for text in given.file.read_text(encoding="utf-8").splitlines()]
        print(table(lines), paired(lines), sep="\n\n")


if __name__ == "__main__":
    main()
