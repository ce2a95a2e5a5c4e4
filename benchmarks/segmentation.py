r"""Both parts of the hippocampus in MR: one site's own network, a centralised and a federated one, at equal updates.

Each learner, be it a site's, makes the same number of updates, so that the load of a machine does not matter. Sites are
objects of one process: Flower's transport is left out, which changes no number of the result. FedAvg by the number of
volumes. 40 volumes, always the same, are for the test; each seed deals others of the remaining 70 to the sites.

    python -m benchmarks segmentation > FILE.jsonl
    python -m benchmarks.segmentation table FILE.jsonl
    python -m benchmarks.segmentation run --seeds 0 --learners centralised --updates 2 \
      --set '{"network": "ahnet", "batch": 1, "patch": [96, 96, 96]}'
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.algorithms import Weights
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.measures import add, means, measure
from agent_trainer.segmentation.practice import SegmentationPractice
from agent_trainer.tables import unit_hash
from agent_trainer.volumes.reading import Volume, read_volume
from agent_trainer.volumes.settings import VolumeFiles
from agent_trainer.volumes.sources import Case, Volumes, find_cases

Line = dict[str, Any]

SITES, A_SITE, TEST = 3, 8, 40  # sites, volumes of each, volumes of the test
SEEDS, UPDATES = 5, 240
LEARNERS = ("local", "centralised", "federated")
DATA = Path(__file__).parents[2] / "shared" / "data" / "dev" / "hippocampus"
# What a CPU learns in half a minute; the paper's own numbers are SegmentationConfig's defaults.
SMALL: dict[str, Any] = {
    "classes": ("anterior", "posterior"),
    "modality": "mr",
    "patch": (32, 32, 32),
    "foreground": 0.9,
    "network": "unet",
    "width": 8,
    "depth": 3,
    "blocks": 0,
    "batch": 4,
    "learning_rate": 1e-3,
    "round_updates": 40,
    "validation_share": 0.0,
}


def hippocampus() -> tuple[list[Case], list[Case]]:
    """List the volumes to learn from and those of the test, in an order that their names' hashes give."""
    source = VolumeFiles(
        images=DATA / "images", labels=DATA / "labels", classes={"anterior": (1,), "posterior": (2,)}, modality="mr"
    )
    cases = sorted(find_cases(source)[0], key=lambda case: unit_hash(case.name))
    return cases[:-TEST], cases[-TEST:]  # settings were tried on some of the first


def deal(cases: Sequence[Case], seed: int, sites: int = SITES, each: int = A_SITE) -> list[tuple[Case, ...]]:
    """Draw each site's volumes, none twice."""
    order = np.random.default_rng(seed).permutation(len(cases))[: sites * each]
    return [tuple(cases[place] for place in order[site::sites]) for site in range(sites)]


def train(practice: SegmentationPractice, updates: int) -> None:
    """Make so many updates."""
    for _ in practice.train(updates):
        pass


def begun(config: SegmentationConfig, cases: Sequence[Case], seed: int, folder: Path) -> SegmentationPractice:
    """Begin a practice whose network has the seed's first weights."""
    return SegmentationPractice(Volumes(tuple(cases), ()), config, seed, "cpu", folder)


def one(config: SegmentationConfig, cases: Sequence[Case], seed: int, updates: int) -> SegmentationPractice:
    """Train one network alone."""
    with tempfile.TemporaryDirectory() as folder:
        practice = begun(config, cases, seed, Path(folder))
        train(practice, updates)
    return practice


def federated(
    config: SegmentationConfig, parts: Sequence[Sequence[Case]], seed: int, updates: int
) -> SegmentationPractice:
    """Train one network in rounds over sites; returns the first site's, holding the average."""
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            begun(config, part, len(parts) * seed + number, Path(folder) / str(number))
            for number, part in enumerate(parts)
        ]
        merged = sites[0].weights()
        for done in range(0, updates, config.round_updates):
            for site in sites:
                site.load(merged)
                train(site, min(config.round_updates, updates - done))
            merged = average([site.weights() for site in sites], [site.examples for site in sites])
        sites[0].load(merged)
    return sites[0]


def average(weights: Sequence[Weights], examples: Sequence[int]) -> Weights:
    """Average weights, each counted by its examples: FedAvg (McMahan et al. 2017, algorithm 1)."""
    shares = np.array(examples, np.float64) / sum(examples)
    return {
        name: np.asarray(sum(share * each[name] for share, each in zip(shares, weights, strict=True)), np.float32)
        for name in weights[0]
    }


def tested(practice: SegmentationPractice, test: Sequence[Volume]) -> dict[str, float]:
    """Measure a network on the test's volumes."""
    config = practice.config
    measured = [
        measure(practice.segmented(volume), volume.labels, config.spacing_mm, len(config.classes)) for volume in test
    ]
    return means(add(measured, len(config.classes)), config.classes)


def run(
    seeds: Sequence[int] = range(SEEDS),
    updates: int = UPDATES,
    settings: Mapping[str, Any] | None = None,
    learners: Sequence[str] = LEARNERS,
) -> Iterator[Line]:
    """Measure the learners with each seed; `peak_mb` is the process's, so far."""
    config = SegmentationConfig(**{**SMALL, **(settings or {})})
    cases, held_out = hippocampus()
    test = [read_volume(case, config.classes, config.modality, config.spacing_mm) for case in held_out]
    for seed in seeds:
        parts = deal(cases, seed)
        together = [case for part in parts for case in part]
        plans: dict[str, list[Sequence[Case]]] = {f"local_{site}": [part] for site, part in enumerate(parts)}
        plans |= {"centralised": [together], "federated": list(parts)}
        for name, of in plans.items():
            if name.split("_")[0] not in learners:
                continue
            began = time.process_time()
            made = one(config, of[0], seed, updates) if len(of) == 1 else federated(config, of, seed, updates)
            spent = time.process_time() - began
            found = tested(made, test)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            also = {"seed": seed, "updates": updates, "cpu_s": round(spent), "peak_mb": peak}
            yield {"name": f"segmentation/{name}", "value": found["dice"], "unit": "Dice", **found, **also}


def table(lines: Sequence[Line]) -> str:
    """Write the lines of seeds that are complete as a table in Markdown: mean ± standard deviation over seeds.

    A seed's local figure is the mean of its sites'; the last column is the mean difference to that, seed by seed.
    """
    by_seed: dict[int, dict[str, list[Line]]] = {}
    for line in lines:
        kind = line["name"].removeprefix("segmentation/").split("_")[0]
        by_seed.setdefault(line["seed"], {}).setdefault(kind, []).append(line)
    whole = {seed: kinds for seed, kinds in by_seed.items() if {"centralised", "federated"} <= kinds.keys()}
    names = ("dice", *(f"dice/{name}" for name in SMALL["classes"]), "hd95_mm", "surface_dice")
    rows = ["| | " + " | ".join(names) + " | Dice over local |", "|---" * (len(names) + 2) + "|"]
    for kind in LEARNERS:
        found = np.array([[np.mean([one[n] for one in whole[s][kind]]) for n in names] for s in sorted(whole)])
        local = np.array([np.mean([one["dice"] for one in whole[seed]["local"]]) for seed in sorted(whole)])
        spread = found.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(len(names))
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(found.mean(axis=0), spread, strict=True)]
        over = found[:, 0] - local
        gain = "" if kind == "local" else f"{over.mean():+.3f} ({(over > 0).sum()} of {len(over)} seeds)"
        rows.append(f"| {kind} | {' | '.join(cells)} | {gain} |")
    return "\n".join(rows)


def main() -> None:
    """Measure as asked, or lay lines out as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("lines", nargs="?", type=Path, help="of a table")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--set", type=json.loads, default={}, help="settings, as JSON")
    given = parser.parse_args()
    if given.what == "table":
        print(table([json.loads(text) for text in given.lines.read_text(encoding="utf-8").splitlines()]))
        return
    for line in run(given.seeds, given.updates, given.set, given.learners):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
