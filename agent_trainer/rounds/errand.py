"""A job under way at its sites, and what an answer that is none lies at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode

from agent_trainer.rounds.layout import Vector
from agent_trainer.rounds.server_app import LOST
from agent_trainer.rounds.wire import Order
from agent_trainer.search.sites import Blame

GONE: Final = "its SuperNode went away in mid-job"
Figures = dict[str, float]


@dataclass(frozen=True)
class Fault:
    """Why a site did not do its part; see `Part` for the state."""

    blame: Blame
    why: str
    state: str = "failed"


@dataclass
class Errand:
    """A job under way.

    nodes     node id → when its SuperNode came online, as Flower writes it; another value tells of a restart
    order     of the leg under way; weights: float32[n] that it began with
    joining   whether the joined weights are being validated
    waiting   identifiers of messages without an answer → node
    numbers   by node: of this leg's training, and of the validation under way
    best      reward and figures of the best leg, and each node's validation
    sent      bytes by node, both ways
    """

    order: Order
    weights: Vector
    nodes: dict[int, str]
    began: float
    joining: bool = False
    waiting: dict[str, int] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    numbers: dict[int, Figures] = field(default_factory=dict)
    validated: dict[int, Figures] = field(default_factory=dict)
    updates: dict[int, Vector] = field(default_factory=dict)
    best: tuple[float, Figures, dict[int, Figures]] | None = None
    sent: dict[int, int] = field(default_factory=dict)


def fault_of(reply: Message) -> Fault:
    """Say what an error in an answer's place lies at: sites begin its sentence with the class of their exception."""
    reason = (reply.error.reason or f"Flower's error {reply.error.code}")[:300]
    if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
        return Fault("way", GONE)
    if reply.error.code in LOST:
        return Fault("way", f"its trainer ended in mid-job ({reason})")
    kinds: dict[str, Blame] = {"Diverged": "strategy", "PolicyError": "policy"}
    return Fault(kinds.get(reason.partition(":")[0], "site"), reason)


def joined(updates: Iterable[tuple[Vector, float]]) -> Vector:
    """Join weights by their sites' examples.

        w = Σ_k n_k·w_k / Σ_k n_k     FedAvg; McMahan et al. 2017, alg. 1

    updates  float32[n] and n_k > 0 of each site
    """
    total, weight = None, 0.0
    for update, examples in updates:
        part = update.astype(np.float64) * examples
        total, weight = part if total is None else total + part, weight + examples
    assert total is not None  # a job has a site
    made: Vector = (total / weight).astype(np.float32)
    return made
