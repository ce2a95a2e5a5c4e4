"""What is told of a round that counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_trainer.rounds.server_app import Outcome
from cairn.figures import VALIDATION, told


@dataclass(frozen=True)
class SiteReport:
    """What is told of one site's round."""

    site: str
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0


@dataclass(frozen=True)
class RoundReport:
    """What is told of a round that counts. A later report of the same round replaces it.

    metrics  over all sites; those under validation/ are of the weights that the round made
    """

    number: int
    seconds: float
    sites: tuple[SiteReport, ...]
    metrics: Mapping[str, float]


def read_report(fields: Mapping[str, Any]) -> RoundReport:
    """Read a report back from a checkpoint."""
    return RoundReport(**{**fields, "sites": tuple(SiteReport(**site) for site in fields["sites"])})


def only_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    """Keep what a validation measured."""
    return {name: value for name, value in told(metrics).items() if name.startswith(VALIDATION)}


def of_training(metrics: Mapping[str, float]) -> dict[str, float]:
    """Keep what training told of itself."""
    return {name: value for name, value in metrics.items() if not name.startswith(VALIDATION)}


def exchanged(outcome: Outcome, sent: int, masked: int) -> int:
    """Count the bytes of a site's round, both ways.

    sent    to it
    masked  words that it has sent if it trained, of a masked run
    """
    if outcome.state == "absent":
        return 0
    back = outcome.update.nbytes if outcome.update is not None else masked if outcome.message is not None else 0
    return sent + back
