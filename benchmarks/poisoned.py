"""Two poisoned sites of seven: what a DQN and a classifier learn under each way of joining updates.

The DQN is ours, on a chain of cells whose best actions are known; the classifier is a small network on scikit-learn's
handwritten digits. The strategies and the bound are those of a run. Attacks: `turned` sends the start less ten times
its own change, `noise` a change ten times as long in a random direction, `quiet` what lies 1.5 standard deviations
below the mean of the honest updates, number by number (Baruch et al. 2019, "A little is enough"), alike from both.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_digits
from torch import nn

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch, Learner
from agent_trainer.rounds.bounds import bounded
from agent_trainer.rounds.layout import Layout, Vector, flatten, layout_of, unflatten
from agent_trainer.rounds.strategies import Strategy
from cairn.run import RunSpec

SITES, HOSTILE, ROUNDS = 7, 2, 15
BOUND = 0.5
JOINS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavg, bound": {"norm_bound": BOUND},
    "trimmed-mean": {"strategy": "trimmed-mean", "strategy_options": {"beta": 0.3}},
    "krum": {"strategy": "krum", "strategy_options": {"num_malicious_nodes": HOSTILE}},
}
ATTACKS = ("none", "turned", "noise", "quiet")
Train = Callable[[Vector, int, int], Vector]  # weights, site, round → weights after a site's training
Score = Callable[[Vector], float]


def run() -> Iterator[dict[str, Any]]:
    """Score every way of joining under every attack: the share of right answers after the last round."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # whose messages they are, for Flower
    for name, make in (("classifier", classifier), ("dqn", dqn)):
        weights, layout, train, score = make()
        for attack in ATTACKS:
            for join, changes in JOINS.items():
                found = score(federated(weights, layout, train, attack, changes))
                yield {
                    "name": f"poisoned/{name}/{attack}/{join}",
                    "value": round(found, 3),
                    "unit": "share right",
                    "ratio": None,
                    "against": None,
                }


def federated(weights: Vector, layout: Layout, train: Train, attack: str, changes: dict[str, Any]) -> Vector:
    """Train by rounds; returns the last weights."""
    spec = RunSpec(name="poisoned", algorithm="dqn", rounds=ROUNDS, min_sites=SITES, masking="off", **changes)
    strategy, rng = Strategy(spec, layout), np.random.default_rng(0)
    everything = np.ones(len(weights), bool)
    hostile = 0 if attack == "none" else HOSTILE
    for number in range(ROUNDS):
        honest = [train(weights, site, number) - weights for site in range(SITES - hostile)]
        lies = poisoned(attack, honest, [train(weights, SITES - 1 - n, number) - weights for n in range(hostile)], rng)
        changed = [weights + bounded(change, everything, spec.norm_bound) for change in (*honest, *lies)]
        message = Message(RecordDict(), dst_node_id=1, message_type="train")
        weights = strategy.aggregate(number + 1, [(one, 100.0, message) for one in changed])
        if not np.isfinite(weights).all():  # as a run's own rounds, which end there
            break
    return weights


def poisoned(attack: str, honest: list[Vector], own: list[Vector], rng: np.random.Generator) -> list[Vector]:
    """Make the hostile sites' changes of their own and, for the quiet ones, of the honest sites'."""
    match attack:
        case "turned":
            return [-10 * change for change in own]
        case "noise":
            drawn = [rng.normal(size=len(change)).astype(np.float32) for change in own]
            return [
                10 * np.linalg.norm(change) / np.linalg.norm(noise) * noise
                for change, noise in zip(own, drawn, strict=True)
            ]
        case "quiet":
            return [(np.mean(honest, 0) - 1.5 * np.std(honest, 0)).astype(np.float32) for _ in own]
        case _:
            return []


def classifier() -> tuple[Vector, Layout, Train, Score]:
    """Make a network of 64-32-10, and a seventh of 1,400 digits for each site."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(images))
    x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    layout = layout_of({name: value.numpy() for name, value in net.state_dict().items()})

    def load(weights: Vector) -> None:
        net.load_state_dict({name: torch.from_numpy(part) for name, part in unflatten(weights, layout).items()})

    def train(weights: Vector, site: int, number: int) -> Vector:
        load(weights)
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        rng = np.random.default_rng([site, number])
        for _ in range(20):
            rows = torch.from_numpy(200 * site + rng.integers(0, 200, 32))
            step.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            step.step()
        return flatten({name: value.numpy() for name, value in net.state_dict().items()})

    def score(weights: Vector) -> float:
        load(weights)
        with torch.inference_mode():
            return float((net(x[1400:]).argmax(1) == y[1400:]).float().mean())

    return flatten({name: value.numpy() for name, value in net.state_dict().items()}), layout, train, score


CHAIN = DqnConfig(
    box=8, channels=(4,), kernels=(3,), hidden=(32,), batch=32, learning_rate=3e-3, target_every=10, pool=(2, 2)
)
CELLS = 5


def dqn() -> tuple[Vector, Layout, Train, Score]:
    """Make our learner, on a row of cells: x+ goes up, x- down; a step into the last gives 1 and ends."""
    learners = [Learner(CHAIN, 1, CHAIN.actions, seed=0) for _ in range(SITES)]
    begin = learners[0].weights()
    layout = layout_of(begin)

    def train(weights: Vector, site: int, number: int) -> Vector:
        learner, rng = learners[site], np.random.default_rng([site, number])
        if number == 0:
            learners[site] = learner = Learner(CHAIN, 1, CHAIN.actions, seed=0)
        learner.load(unflatten(weights, layout))
        for _ in range(20):
            learner.update(chain(rng, 32))
        return flatten(learner.weights())

    def score(weights: Vector) -> float:
        if not np.isfinite(weights).all():
            return 0.0
        learners[0].load(unflatten(weights, layout))
        q = learners[0].q_values(frames(np.arange(CELLS - 1)), np.zeros(CELLS - 1, np.int64))
        return float(np.mean(q.argmax(1) == 0))

    return flatten(begin), layout, train, score


def frames(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Show a cell as a bright column; uint8[n, history, 1, 8, 8] or as the network takes it."""
    made = np.zeros((len(cells), *CHAIN.state_shape), np.uint8)
    for row, cell in enumerate(cells):
        made[row, ..., int(cell) : int(cell) + 3] = 200
    return made


def chain(rng: np.random.Generator, count: int) -> Batch:
    """Draw transitions."""
    cell, action = rng.integers(0, CELLS - 1, count), rng.integers(0, CHAIN.actions, count)
    to = np.clip(cell + (action == 0) - (action == 1), 0, CELLS - 1)
    arrived = to == CELLS - 1
    return Batch(
        s_tm1=frames(cell),
        task=np.zeros(count, np.int64),
        a_tm1=action,
        r_t=arrived.astype(np.float32),
        discount_t=np.where(arrived, 0, CHAIN.gamma).astype(np.float32),
        s_t=frames(to),
        weight=np.ones(count, np.float32),
        index=np.arange(count),
    )
