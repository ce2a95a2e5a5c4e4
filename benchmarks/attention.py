"""Attention sampling against random patches, the small image and the full-resolution CNN; slides; speed.

`python -m benchmarks attention` measures what takes a minute. The figures of docs/BENCHMARKS.md took longer:

    python -m benchmarks.attention learn --task needle --minutes 2 --seeds 0 1 2 3 4
    python -m benchmarks.attention learn --task cells --minutes 3 --seeds 0 1 2 3 4
    python -m benchmarks.attention cost
    python -m benchmarks.attention slide --gigabytes 1
    python -m benchmarks.attention speed

All learners get the same time of the processor, one thread each; a seed is that of the weights, augmentation and draws.
`--set '{"entropy": 0.1}'` changes settings.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.classification import count, measures
from agent_trainer.labelled.balance import order
from agent_trainer.labelled.needles import WORDS, needle_examples
from agent_trainer.labelled.settings import Needles
from benchmarks.attention_cost import cost
from benchmarks.attention_learners import LEARNERS, Learner, learner
from benchmarks.attention_speed import speed
from benchmarks.attention_tasks import NEEDLE, TASKS, Sample, Task, hits, needles
from benchmarks.patches import write_slide

Line = dict[str, Any]

SHORT = 0.1  # minutes of a learner in the short run, which shows that it works and not how well
CHECKED = 4  # times that each is measured while it learns
SLIDE_LIMITS = {"seconds": 1.0, "megabytes": 500}


def run() -> Iterator[Line]:
    """Measure what is short."""
    torch.set_num_threads(1)
    task = needles(18, 9, size=512)
    for name in ("attention", "random"):
        yield from learn(task, name, 0, SHORT, {})
    yield from costs(("attention", "small"))
    yield from slide(0.05)
    yield from speed(5)


def learn(task: Task, name: str, seed: int, minutes: float, settings: dict[str, Any]) -> Iterator[Line]:
    """Train one learner and measure it on the way; the last line of a seed is its result."""
    config = AttentionConfig(classes=task.classes, **{**task.settings, **settings})
    made, rng = learner(name, config, seed), np.random.default_rng(seed)
    labels = np.array([sample.label for sample in task.train], np.int64)
    spent, updates, places = 0.0, 0, np.empty(0, np.int64)
    checks = 1 if name == "whole" else CHECKED  # its test takes as long as much of its training
    for part in range(1, checks + 1):
        while spent < 60 * minutes * part / checks:
            if len(places) < config.batch:
                places = order(labels, rng, 100 * config.batch, config.balance)
            batch, places = places[: config.batch].tolist(), places[config.batch :]
            began = time.process_time()
            made.update(task.train, batch)
            spent, updates = spent + time.process_time() - began, updates + 1
        yield {
            "name": f"attention/{task.name}/{name}",
            **tested(made, task.test, task.classes, config.patch),
            "seed": seed,
            "updates": updates,
            "cpu_s": round(spent),
        }


def tested(made: Learner, samples: Sequence[Sample], classes: Sequence[str], side: int) -> Line:
    """Classify images that were not learned from; a hit is an image of which a patch shows what decides."""
    answers = [made.answer(sample.image) for sample in samples]
    labels = np.array([sample.label for sample in samples], np.int64)
    found = measures(count(np.stack([answer.probabilities for answer in answers]), labels), classes)
    of_patches = [
        hits(sample, answer.corners, side)
        for sample, answer in zip(samples, answers, strict=True)
        if answer.corners is not None and sample.boxes
    ]
    line: Line = {"value": round(found["balanced_accuracy"], 4), "unit": "balanced accuracy"}
    line |= {name: round(found[name], 4) for name in ("accuracy", "auc") if name in found}
    if of_patches:
        line["hit_rate"] = round(float(np.mean([one.any() for one in of_patches])), 4)
        line["patches_that_hit"] = round(float(np.mean([one.mean() for one in of_patches])), 4)
    whole = np.mean(
        [answer.pixels / (s.image.height * s.image.width) for s, answer in zip(samples, answers, strict=True)]
    )
    return line | {"share_seen": round(float(whole), 5)}


def costs(learners: Sequence[str]) -> Iterator[Line]:
    """Measure what a prediction of one needle image costs each learner."""
    path = needle_examples(Needles(images=2, size=1024))[0].path
    config = AttentionConfig(classes=WORDS, **NEEDLE)
    for name in learners:
        found = cost(name, config, path)
        yield {"name": f"attention/cost/{name}", "value": found["seconds"], "unit": "s", **found}


def slide(gigabytes: float, *, plain: bool = True) -> Iterator[Line]:
    """Predict on a slide of that size on the disk, its pages not in the page cache, with two cores."""
    config = AttentionConfig(classes=WORDS)  # the paper's: 20 patches of 50 x 50
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slide.ome.tif"
        # Plain tiles take 4 bytes a pixel with the copies; of JPEG the bytes are what comes out.
        side = int((gigabytes * 1e9 / 4) ** 0.5) // 512 * 512 if plain else int((gigabytes * 1e9 * 1.9) ** 0.5)
        write_slide(path, side, plain=plain)
        found = cost("attention", config, path, threads=2, update=False)
        size = path.stat().st_size / 1e9
    name = f"attention/slide/{'plain' if plain else 'jpeg'}"
    also = {"gigabytes": round(size, 3), "gigapixels": round(side * side / 1e9, 3), "patches": config.patches}
    for what, unit, key in (("seconds", "s", "seconds"), ("megabytes", "MB", "peak_mb")):
        ratio = {"ratio": round(SLIDE_LIMITS[what] / found[key], 2), "against": f"limit {SLIDE_LIMITS[what]:g} {unit}"}
        yield {"name": f"{name}/{what}", "value": round(found[key], 3), "unit": unit, **ratio, **also, **found}


def main() -> None:
    """Run a long measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("learn", "cost", "slide", "speed"))
    parser.add_argument("--task", default="needle", choices=TASKS)
    parser.add_argument("--minutes", type=float, default=2, help="of the processor, for each learner and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learners", nargs="+", default=LEARNERS, choices=LEARNERS)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--jpeg", action="store_true", help="the slide's tiles as JPEG")
    parser.add_argument("--updates", type=int, default=40, help="in each turn of speed")
    parser.add_argument("--set", type=json.loads, default={}, help="settings, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for line in measured(given):
        print(json.dumps(line), flush=True)


def measured(given: argparse.Namespace) -> Iterator[Line]:
    """Measure what is asked for."""
    match given.what:
        case "learn":
            task = TASKS[given.task]()
            for seed in given.seeds:
                for name in given.learners:
                    yield from learn(task, name, seed, given.minutes, given.set)
        case "cost":
            yield from costs(given.learners)
        case "slide":
            yield from slide(given.gigabytes, plain=not given.jpeg)
        case "speed":
            yield from speed(given.updates)


if __name__ == "__main__":
    main()
