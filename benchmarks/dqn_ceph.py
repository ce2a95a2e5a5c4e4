"""Landmarks of `ceph` by its official split: local only, centralised and federated agents, and one agent for several.

Everything is measured at equal updates: each learner, be it a site's, makes the same number, so that the machine's load
does not matter. The federation's sites are objects of one process: Flower's transport is left out, which changes no
number of the result. FedAvg by the number of training images; round r ends with the average, on which all go on.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Weights
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.evaluation import evaluate, evaluate_mean_positions
from agent_trainer.scenes.landmarks import landmark_scenes
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import LandmarkFiles
from agent_trainer.scenes.sources import Scenes

Line = dict[str, Any]
Split = tuple[tuple[Scene, ...], tuple[Scene, ...]]

SITES = 3
HELD_OUT = 5  # one image in so many, of those to learn from, is for choosing settings
STARTS = 5  # searches an image; the median of their ends is the answer
DATA = Path(__file__).parents[2] / "shared" / "data" / "dev" / "ceph"
SELLA = "1"

# What two cores can learn in minutes; the paper's own numbers are DqnConfig's defaults. How it was found: docs/LOG.md.
SMALL: dict[str, Any] = {
    "box": 25,
    "channels": (8, 16, 16),
    "kernels": (5, 3, 3),
    "hidden": (64, 64),
    "scales": (4, 2, 1),
    "gamma": 0.5,
    "learning_rate": 1e-3,
    "lr_step": 3000,
    "target_every": 250,
    "epsilon_steps": 32_000,
    "steps_per_update": 8,
    "warm_up": 3000,
    "capacity": 150_000,
    "round_updates": 150,
    "target_at_round_start": True,
}


def read_ceph(config: DqnConfig) -> Split:
    """Read the scenes of the config's tasks, the numbers of landmarks: 150 images to learn from, 150 to test on."""
    source = LandmarkFiles(
        landmarks=DATA / "landmarks_mm.csv", images=DATA, spacing_mm=(1.0, 1.0), tasks={t: t for t in config.tasks}
    )
    found = landmark_scenes(source, 2, config.tasks)
    train = tuple(scene for scene, split in found.scenes if split == "train")
    return train, tuple(scene for scene, split in found.scenes if split != "train")


def hold_out(split: Split) -> Split:
    """Set every fifth image to learn from aside, to choose settings on: the test images stay unseen."""
    order = {name: i for i, name in enumerate(sorted({scene.name for scene in split[0]}))}
    kept = tuple(scene for scene in split[0] if order[scene.name] % HELD_OUT)
    return kept, tuple(scene for scene in split[0] if not order[scene.name] % HELD_OUT)


def deal(scenes: Sequence[Scene], sites: int) -> list[tuple[Scene, ...]]:
    """Deal images to sites in turn, each with all its landmarks."""
    order = {name: i for i, name in enumerate(sorted({scene.name for scene in scenes}))}
    return [tuple(scene for scene in scenes if order[scene.name] % sites == site) for site in range(sites)]


def train(practice: DqnPractice, updates: int) -> None:
    """Make so many updates."""
    for _ in practice.train(updates):
        pass


def one(config: DqnConfig, scenes: Sequence[Scene], seed: int, updates: int) -> DqnPractice:
    """Train one agent alone."""
    with tempfile.TemporaryDirectory() as folder:
        practice = DqnPractice(Scenes(tuple(scenes), ()), config, seed, "cpu", Path(folder))
        train(practice, updates)
    return practice


def federated(config: DqnConfig, parts: Sequence[Sequence[Scene]], seed: int, updates: int) -> DqnPractice:
    """Train one agent in rounds over sites; returns the first site's, holding the average."""
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            DqnPractice(Scenes(tuple(part), ()), config, SITES * seed + number, "cpu", Path(folder) / str(number))
            for number, part in enumerate(parts)
        ]
        merged = sites[0].learner.weights()
        for done in range(0, updates, config.round_updates):
            for site in sites:
                site.learner.load(merged)
                train(site, min(config.round_updates, updates - done))
            merged = average([site.learner.weights() for site in sites], [len(part) for part in parts])
        sites[0].learner.load(merged)
    return sites[0]


def average(weights: Sequence[Weights], examples: Sequence[int]) -> Weights:
    """Average weights, each counted by its examples: FedAvg (McMahan et al. 2017, algorithm 1)."""
    shares = np.array(examples, np.float64) / sum(examples)
    return {
        name: np.asarray(sum(share * each[name] for share, each in zip(shares, weights, strict=True)), np.float32)
        for name in weights[0]
    }


def lines(name: str, config: DqnConfig, practice: DqnPractice, test: Sequence[Scene], **also: object) -> Iterator[Line]:
    """Measure an agent on the test images, by landmark."""
    tests = [scene for scene in test if scene.task in config.tasks]
    for task, found in evaluate(tests, config, practice.learner.q_values, STARTS).items():
        yield {"name": f"{name}/{task}", "value": found.mean_mm, "unit": "mm", **found.numbers(), **also}


def ceph(
    tasks: Sequence[str],
    seeds: Sequence[int],
    updates: int,
    wanted: Sequence[str],
    settings: dict[str, Any],
    *,
    validate: bool = False,
) -> Iterator[Line]:
    """Measure the mean position, and of each seed what is wanted of local, centralised and federated.

    validate  on images held out of those to learn from, in place of the test's
    """
    config = DqnConfig(tasks=tuple(tasks), **{**SMALL, **settings})
    scenes, test = hold_out(read_ceph(config)) if validate else read_ceph(config)
    parts = deal(scenes, SITES)
    for task, found in evaluate_mean_positions(scenes, test).items():
        yield {"name": f"dqn/ceph/mean_position/{task}", "value": found.mean_mm, "unit": "mm", **found.numbers()}
    for seed in seeds:
        runs: dict[str, tuple[Sequence[Scene], ...]] = (
            {f"local_{site}": (parts[site],) for site in range(SITES)} if "local" in wanted else {}
        )
        runs |= {"centralised": (scenes,)} if "centralised" in wanted else {}
        runs |= {"federated": tuple(parts)} if "federated" in wanted else {}
        for name, of in runs.items():
            began = time.process_time()
            made = one(config, of[0], seed, updates) if len(of) == 1 else federated(config, of, seed, updates)
            spent = time.process_time() - began
            yield from lines(f"dqn/ceph/{name}", config, made, test, seed=seed, updates=updates, cpu_s=round(spent))


def agents(tasks: Sequence[str], seeds: Sequence[int], updates: int, settings: dict[str, Any]) -> Iterator[Line]:
    """Measure one agent for all tasks against one agent a task, all trained centrally.

    The shared agent is measured at `updates`, and when it has made as many as the agents of one task together.
    """
    for seed in seeds:
        plans: dict[str, tuple[str, ...]] = {"alone": (), "shared": tuple(tasks)}
        for name, of in plans.items():
            for some in [of] if of else [(task,) for task in tasks]:
                yield from _course(f"dqn/tasks/{name}", some, seed, (updates, updates * len(of)), settings)


def _course(
    name: str, tasks: tuple[str, ...], seed: int, marks: Sequence[int], settings: dict[str, Any]
) -> Iterator[Line]:
    """Train one agent and measure it after so many updates; a mark of 0 is none."""
    config = DqnConfig(tasks=tasks, **{**SMALL, **settings})
    scenes, test = read_ceph(config)
    with tempfile.TemporaryDirectory() as folder:
        practice = DqnPractice(Scenes(scenes, ()), config, seed, "cpu", Path(folder))
        done, spent = 0, 0.0
        for mark in filter(None, marks):
            began = time.process_time()
            train(practice, mark - done)
            done, spent = mark, spent + time.process_time() - began
            yield from lines(name, config, practice, test, seed=seed, updates=mark, cpu_s=round(spent))
