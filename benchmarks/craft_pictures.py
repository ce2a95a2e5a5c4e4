"""The pictures and figures of docs/craft: imbalance, calibration, ensembles, stopping, batch norm, Grad-CAM.

    python -m benchmarks.craft_pictures FOLDER [NAME…]

Generated points where they show the matter best, radiographs of `cxr_nih224` at 32 pixels elsewhere. One thread; a mean
is over seeds 0 to 4. Prints one JSON object a line.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from agent_trainer.classification import CALIBRATION, MIDDLES, count, measures
from agent_trainer.craft.calibration import fit_temperature, scaled
from agent_trainer.craft.ensembles import combined, vote_weights
from agent_trainer.craft.losses import Loss, classification_loss
from agent_trainer.craft.thresholds import Rule, operating_points
from agent_trainer.explanation import ready
from agent_trainer.explanation_pictures import draw
from agent_trainer.labelled.balance import balanced_order, class_weights
from agent_trainer.labelled.reading import read_whole
from agent_trainer.labelled.sources import Example
from agent_trainer.rounds.models import Model
from benchmarks.apga_cxr import deal, read_cxr
from benchmarks.craft_domains import LOOKS, scanned
from benchmarks.dqn_ceph import average

Line: TypeAlias = dict[str, Any]
Pixels: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
SEEDS: Final = range(5)
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#9fb6c9"
SIDE: Final = 32
SMALL: Final[dict[str, Any]] = {
    "classes": ("No_findings", "Pneumonia"),
    "method": "none",
    "side": SIDE,
    "channels": 1,
    "classifier": "small",
    "small_channels": (8, 16, 32),
    "learning_rate": 1e-3,
    "pretrain_updates": 0,
}


def figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Make a row of panels."""
    made = Figure((4.2 * panels, 3.6), 130, layout="constrained", facecolor="white")
    axes = made.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e4e6ea")
        one.set_axisbelow(True)
    return made, axes


def imbalance(path: Path) -> Iterator[Line]:
    """Fit a line to 10 points of a rare class among 190, and call it by several means."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)

        def draw(each: tuple[int, int], rng: np.random.Generator = rng) -> tuple[torch.Tensor, Labels]:
            points = [rng.normal((shift, 0), 1, (n, 2)) for n, shift in zip(each, (0.0, 1.5), strict=True)]
            return torch.from_numpy(np.concatenate(points).astype(np.float32)), np.repeat([0, 1], each)

        x, y = draw((190, 10))
        (choose, known), (test, truth) = draw((400, 400)), draw((500, 500))
        weigh = torch.from_numpy(class_weights(y, 2))
        for name, loss, weights, sampler in (
            ("cross-entropy", Loss(), None, False),
            ("focal, γ 2", Loss(kind="focal"), None, False),
            ("weights", Loss(), weigh, False),
            ("focal and weights", Loss(kind="focal"), weigh, False),
            ("sampler", Loss(), None, True),
        ):
            order = torch.from_numpy(balanced_order(y, rng, 4000)).reshape(-1, 40) if sampler else None
            p, chosen = _line(x, torch.from_numpy(y), (choose, test), loss, weights, order)
            found.setdefault(name, []).append(measures(count(chosen, truth), ("often", "rare")))
            if name == "cross-entropy":
                point = operating_points(count(p, known), ("often", "rare"), Rule())["rare"]
                called = np.stack([chosen[:, 1] < point.threshold, chosen[:, 1] >= point.threshold], 1).astype(float)
                found.setdefault("threshold (Youden)", []).append(measures(count(called, truth), ("often", "rare")))
    made, (left,) = figure(1)
    for place, (name, lines) in enumerate(found.items()):
        mean = {key: float(np.mean([one[key] for one in lines])) for key in lines[0] if key != "auc_error"}
        left.barh(place - 0.2, mean["sensitivity/rare"], 0.36, color=ORANGE, label="" if place else "found of the rare")
        left.barh(place + 0.2, mean["balanced_accuracy"], 0.36, color=BLUE, label="" if place else "balanced accuracy")
        sd = float(np.std([one["balanced_accuracy"] for one in lines], ddof=1))
        yield {"name": f"imbalance/{name}", "sd": sd, **mean}
    left.set_yticks(range(len(found)), list(found), size=9)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_title("one of 20 is of the rare class", size=10, loc="left")
    made.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    made.savefig(path, metadata={"Software": None})


def _line(
    x: torch.Tensor,
    y: torch.Tensor,
    tests: Sequence[torch.Tensor],
    loss: Loss,
    weigh: torch.Tensor | None,
    order: torch.Tensor | None,
) -> list[Floats]:
    """Fit a line by 300 steps; returns its probabilities for each of some points."""
    line, bias = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([line, bias], lr=0.05)
    for step in range(300):
        some = slice(None) if order is None else order[step % len(order)]
        adam.zero_grad()
        classification_loss(x[some] @ line + bias, y[some], loss, weigh).backward()
        adam.step()
    with torch.no_grad():
        return [(points @ line + bias).softmax(1).numpy() for points in tests]


def calibration(path: Path) -> Iterator[Line]:
    """Fit a temperature for answers whose logits are 2.5 times too large; measure on others."""
    before: list[float] = []
    after: list[float] = []
    last = []
    for seed in SEEDS:
        (fit, known), (test, truth) = _too_sure(seed, 500), _too_sure(100 + seed, 2000)
        temperature = fit_temperature(count(fit, known))
        assert temperature is not None
        last = [count(test, truth), count(scaled(test, temperature), truth)]
        for values, counts in ((before, last[0]), (after, last[1])):
            values.append(measures(counts, ("a", "b"))["ece"])
    made, axes = figure(2)
    for one, counts, title in zip(axes, last, ("as answered", "behind the temperature"), strict=True):
        n, right = counts.calibration.T
        known_bins = n > 0
        one.bar(np.arange(CALIBRATION) / CALIBRATION, n / n.sum(), 1 / CALIBRATION, align="edge", color="#c9ced6")
        one.plot([0, 1], [0, 1], ":", color="#15161a")
        one.plot(MIDDLES[known_bins], right[known_bins] / n[known_bins], "o-", color=BLUE, markersize=4)
        one.set_xlim(0.45, 1)
        one.set_ylim(0, 1.02)
        one.set_xlabel("confidence", size=9)
        one.set_ylabel("share of right answers", size=9)
        one.set_title(f"{title}: error {measures(counts, ('a', 'b'))['ece']:.3f}", size=10, loc="left")
    made.savefig(path, metadata={"Software": None})
    for name, values in (("before", before), ("after", after)):
        yield {"name": f"calibration/{name}", "ece": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def _too_sure(seed: int, n: int) -> tuple[Floats, Labels]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 2))
    true = scaled(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    labels = (rng.random(n) >= true[:, 0]).astype(np.int64)
    return scaled(true, 0.4), labels


class Radiographs:
    """Images at 32 pixels: to learn from, to choose by, and to test on; each patient in one of them."""

    def __init__(self) -> None:
        data = read_cxr(validate=False)
        self.train, self.validation, self.test = (_read(some) for some in (data.train, *deal(data.validation, 2)))


def _read(examples: Sequence[Example]) -> tuple[Pixels, Labels]:
    pixels = np.stack([read_whole(example.path, SIDE, 1) for example in examples])
    return pixels, np.array([example.label for example in examples], np.int64)


def learn(learner: Learner, data: tuple[Pixels, Labels], updates: int, rng: np.random.Generator) -> None:
    """Make so many updates on a site's images."""
    pixels, labels = data
    for _ in range(updates):
        chosen = rng.integers(0, len(labels), learner.config.batch)
        learner.step(pixels[chosen], labels[chosen], rng)


def accuracy(learner: Learner, data: tuple[Pixels, Labels]) -> float:
    """Return balanced accuracy."""
    pixels, labels = data
    return measures(count(learner.probabilities(pixels), labels), learner.config.classes)["balanced_accuracy"]


def stopping(path: Path) -> Iterator[Line]:
    """Learn from 60 radiographs for long, with and without dropout, and take the round of the best validation."""
    data = Radiographs()
    made, (axes,) = figure(1)
    validation, test = data.validation, data.test
    for dropout, colour in ((0.0, BLUE), (0.5, ORANGE)):
        curves, best, last = [], [], []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            few = rng.permutation(len(data.train[1]))[:60]
            learner = Learner(ApgaConfig(**SMALL, dropout=dropout, norm_momentum=0.3), seed=seed)
            curve = []
            for _ in range(16):
                learn(learner, (data.train[0][few], data.train[1][few]), 12, rng)
                curve.append((accuracy(learner, validation), accuracy(learner, test)))
            curves.append([value for value, _ in curve])
            best.append(max(curve)[1])
            last.append(curve[-1][1])
        mean = np.mean(curves, axis=0)
        axes.plot(range(1, 17), mean, "o-", color=colour, markersize=3, label=f"dropout {dropout:g}")
        for name, values in (("best round", best), ("last round", last)):
            yield {
                "name": f"stopping/dropout {dropout:g}/{name}",
                "balanced_accuracy": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)),
            }
    axes.set_xlabel("round of 12 updates", size=9)
    axes.set_ylabel("balanced accuracy of the validation", size=9)
    axes.set_title("60 radiographs to learn from, mean of 5 seeds", size=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    made.savefig(path, metadata={"Software": None})


def norms(path: Path) -> Iterator[Line]:
    """Average two sites of different scanners, with each way of keeping statistics; test on both looks."""
    data, rng = Radiographs(), np.random.default_rng(0)
    looks = {}
    for look in ("A", "B"):
        looks[look] = [
            np.stack([scanned(image[0], look, rng)[None] for image in pixels])
            for pixels in (data.train[0], data.test[0])
        ]
    parts = [(looks[look][0][place::2], data.train[1][place::2]) for place, look in enumerate(looks)]
    tests = [(looks[look][1], data.test[1]) for look in looks]
    made, (axes,) = figure(1)
    kinds: dict[str, dict[str, Any]] = {
        "batch norm, momentum 0.1": {},
        "batch norm, momentum 0.5": {"norm_momentum": 0.5},
        "batch norm, cumulative": {"norm_momentum": "cumulative"},
        "group norm": {"small_norm": "group"},
    }
    for (name, settings), colour in zip(kinds.items(), (GREY, BLUE, GREEN, ORANGE), strict=True):
        curves = []
        for seed in SEEDS:
            sites = [Learner(ApgaConfig(**{**SMALL, **settings}), seed=seed) for _ in parts]
            draws, merged, curve = np.random.default_rng(seed), sites[0].weights(), []
            for _ in range(10):
                for one, part in zip(sites, parts, strict=True):
                    one.load(merged)
                    learn(one, part, 8, draws)
                merged = average([one.weights() for one in sites], [1, 1])
                sites[0].load(merged)
                curve.append(float(np.mean([accuracy(sites[0], test) for test in tests])))
            curves.append(curve)
        axes.plot(range(1, 11), np.mean(curves, axis=0), "o-", color=colour, markersize=3, label=name)
        for at in (2, 5, 10):
            values = [curve[at - 1] for curve in curves]
            yield {
                "name": f"norms/{name}/round {at}",
                "balanced_accuracy": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)),
            }
    axes.set_xlabel("round of 8 updates a site", size=9)
    axes.set_ylabel("balanced accuracy, mean of both looks", size=9)
    axes.set_title(f"scanners {' and '.join(list(LOOKS)[:2])}, FedAvg, mean of 5 seeds", size=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    made.savefig(path, metadata={"Software": None})


def ensembles(path: Path) -> Iterator[Line]:
    """Five networks of other seeds and of other fifths of the radiographs, joined in three ways."""
    data = Radiographs()
    validation, test = data.validation, data.test
    found: dict[str, list[float]] = {"mean member": [], "best by validation": []}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        answers, known = [], []
        for member, some in enumerate(np.array_split(rng.permutation(len(data.train[1])), 5)):
            learner = Learner(ApgaConfig(**SMALL, norm_momentum=0.3), seed=100 * seed + member)
            learn(learner, (data.train[0][some], data.train[1][some]), 60, rng)
            answers.append(learner.probabilities(test[0]))
            known.append(measures(count(learner.probabilities(validation[0]), validation[1]), ("a", "b"))["accuracy"])
        stacked = np.stack(answers)

        def balanced(p: Floats) -> float:
            return measures(count(p, test[1]), ("a", "b"))["balanced_accuracy"]

        alone = [balanced(one) for one in stacked]
        found["mean member"].append(float(np.mean(alone)))
        found["best by validation"].append(alone[int(np.argmax(known))])
        for vote in ("average", "majority", "weighted"):
            joined = combined(stacked, vote, vote_weights(known, 2))
            found.setdefault(vote, []).append(balanced(joined))
    made, (axes,) = figure(1)
    for place, (name, values) in enumerate(found.items()):
        axes.plot(values, [place] * len(values), "o", color=GREY, markersize=4)
        axes.plot(np.mean(values), place, "|", color=BLUE, markersize=16, markeredgewidth=3)
        gain = np.array(values) - np.array(found["mean member"])
        yield {
            "name": f"ensembles/{name}",
            "balanced_accuracy": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "gain": float(gain.mean()),
        }
    axes.set_yticks(range(len(found)), list(found), size=9)
    axes.invert_yaxis()
    axes.set_xlabel("balanced accuracy: seeds and mean", size=9)
    axes.margins(x=0.12)  # a label at the edge would be cut
    axes.set_title("five members, a fifth each", size=10, loc="left")
    made.savefig(path, metadata={"Software": None})


def explanations(path: Path) -> Iterator[Line]:
    """Learn from radiographs at 64 pixels, and explain the answer to one with pneumonia that was not learned from."""
    data, rng = read_cxr(validate=False), np.random.default_rng(0)
    config = ApgaConfig(**{**SMALL, "side": 64, "small_channels": (8, 16, 32), "small_norm": "group"})
    learner = Learner(config, seed=0)
    pixels = np.stack([read_whole(example.path, 64, 1) for example in data.train])
    learn(learner, (pixels, np.array([example.label for example in data.train], np.int64)), 150, rng)
    explainer = ready(Model("chest", 1, "apga", config, learner.weights()))
    ill = [example for example in data.validation if example.label][:6]
    found = [explainer(example.path) for example in ill]
    best = int(np.argmax([one.probabilities[1] for one in found]))
    for place, one in enumerate(found):
        draw(path.with_name(f"{path.stem}-{place}.png") if place != best else path, one, config.classes[1])
        yield {"name": f"explanations/{place}", "probability": float(one.probabilities[1])}


NAMES: Final[dict[str, Callable[[Path], Iterator[Line]]]] = {
    "imbalance": imbalance,
    "calibration": calibration,
    "ensembles": ensembles,
    "stopping": stopping,
    "norms": norms,
    "explanations": explanations,
}


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.craft_pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        for line in NAMES[name](given.folder / f"craft-{name}.png"):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
