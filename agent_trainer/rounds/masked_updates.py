"""Updates of a masked run: fixed point at the sites, their weighted sum at the middle, and nothing of one site's.

    site    δ = trained - weights, bounded; cells (round(w·δ·2^f), w) → the edge node, which masks and sends them
    middle  Σ w·δ / Σ w by `Desk.sum`; the strategy takes weights + that mean as the one update of the round

What w (the examples of one site) is, only the sum tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from agent_trainer.rounds import layout as lay
from agent_trainer.rounds.bounds import bounded, noised
from agent_trainer.rounds.server_app import Outcome
from agent_trainer.rounds.wire import EXAMPLES, Order, read_without_weights
from cairn.codec import decode_plan, encode_plan
from cairn.errors import MaskingError, PlanMismatch, TooFewSites, TrainingError
from cairn.figures import IMAGES
from cairn.files import write_atomically
from cairn.masking.fixed_point import FixedPoint
from cairn.plan import Plan, Secrecy, UpdatePlan, fingerprint
from cairn.run import RunSpec
from cairn.tally import Tally

# Steps of 2^-20 of an example; ±1024 is far beyond any weight's change in a round. 8,000 sites of 2^20 examples fit.
FORM: Final = FixedPoint(20, 1024.0, 2**20)
LOST: Final = 3  # rounds in a row, after which the run waits for a person


class Desk(Protocol):
    """What masked rounds need of the aggregator."""

    def sum(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> tuple[Tally, list[str]]:
        """Take a masked sum to its end; returns it with the sites in it. Raises MaskingError."""

    def log(self, text: str) -> None:
        """Note a line in the run's log."""


@dataclass(frozen=True)
class Mean:
    """What a masked round came to.

    weights   float32[n], those that went out moved by the mean of the sites' changes
    examples  of all sites together
    outcomes  those of the round; sites whose update is not in the mean are late
    """

    weights: lay.Vector
    examples: float
    outcomes: list[Outcome]


class MaskedRounds:
    """A masked run's updates at the middle."""

    def __init__(self, spec: RunSpec, desk: Desk) -> None:
        self._spec, self._desk = spec, desk
        self._secrecy = secrecy_of(spec)
        self._lost = 0

    def order(self, order: Order) -> Order:
        """Ask the sites of a round for masked updates."""
        stage = UpdatePlan(sum(int(np.prod(shape)) for _, shape in order.layout), **vars(FORM))
        plan = encode_plan(Plan(self._spec.name, order.number, stage, self._secrecy))
        return replace(
            order,
            update_plan=plan,
            figures=self._spec.site_figures,
            norm_bound=self._spec.norm_bound,
            alike=self._spec.noise > 0,
        )

    def judge(self, site: str, reply: Message) -> Outcome:
        """Take the numbers of a site that trained."""
        try:
            return Outcome(site, "trained", metrics=read_without_weights(reply), message=reply)
        except TrainingError as error:
            return Outcome(site, "refused", f"{type(error).__name__}: {error}")

    def mean(self, plan: bytes, weights: lay.Vector, outcomes: Sequence[Outcome], asked: int) -> Mean | None:
        """Learn the mean update of those that trained; None when the round's sum is lost, which is noted.

        plan     published bytes of the round's
        weights  float32[n] that went out
        asked    sites that were to train; of a run with noise, the mean is over so many
        Raises TooFewSites when it was lost too often in a row.
        """
        trained = [outcome.site for outcome in outcomes if outcome.state == "trained"]
        try:
            tally, inside = self._desk.sum(fingerprint(plan), trained, self._spec.masking_patience)
            cells = tally.tables["update"]
            if self._spec.noise:
                noised(cells[:-1], 2.0**-FORM.fraction_bits, self._spec.norm_bound, self._spec.noise)
                cells[-1] = asked
            moved, examples = decoded(plan, cells)
        except (MaskingError, PlanMismatch) as error:
            self._lost += 1
            self._desk.log(f"{error}; the weights stay as they are and the run goes on")
            if self._lost == LOST:
                raise TooFewSites(
                    f"{LOST} rounds in a row were lost, the last one so: {error}; resume the run"
                ) from error
            return None
        self._lost = 0
        return Mean((weights + moved).astype(np.float32), examples, left_out(outcomes, inside))


def secrecy_of(spec: RunSpec) -> Secrecy:
    """Say how a run's tallies are masked."""
    return Secrecy(64, spec.may_drop, spec.may_collude)


def decoded(plan: bytes, cells: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], float]:
    """Read the sum of updates: their weighted mean float64[n], and the examples of all. Raises PlanMismatch."""
    stage = decode_plan(plan).stage
    assert isinstance(stage, UpdatePlan)  # `MaskedRounds.order` made it
    try:
        mean, weight = stage.form.decode(cells)
    except MaskingError as error:
        raise PlanMismatch(f"the masked sum is none of updates: {error}") from error
    return mean, float(weight)


def left_out(outcomes: Sequence[Outcome], inside: Sequence[str]) -> list[Outcome]:
    """Call those late that trained and are not in the sum."""
    return [
        replace(outcome, state="late", reason="its masked update is not in the round's sum")
        if outcome.state == "trained" and outcome.site not in inside
        else outcome
        for outcome in outcomes
    ]


def hand_over(order: Order, weights: lay.Vector, trained: lay.Vector, examples: int, spool: Path) -> str:
    """Write a site's update in fixed point where its edge node finds it; returns the plan's fingerprint in hex.

    Raises PlanMismatch for a plan of another round, network or kind, or one in plain; Diverged, OSError.
    """
    plan = decode_plan(order.update_plan)
    stage = plan.stage
    asked = (plan.study, plan.window) == (order.run, order.number) and plan.secrecy is not None
    if not (asked and isinstance(stage, UpdatePlan) and stage.values == len(weights)):
        raise PlanMismatch(
            "the plan of the round's masked updates is of another round or network; update the older side"
        )
    part = np.ones(len(weights), np.bool_) if order.alike else lay.learnt(order.layout)
    update = bounded(trained - weights, part, order.norm_bound)
    cells = stage.form.encode(update, 1 if order.alike else min(examples, stage.weight_limit))
    name = fingerprint(order.update_plan).hex()
    with write_atomically(spool / f"{name}.npy", 0o600) as file:
        np.save(file, cells, allow_pickle=False)
    return name


def told(metrics: dict[str, float], order: Order) -> dict[str, float]:
    """Leave out of a site's answer what a masked run does not tell: how many images it has, or every number."""
    if order.figures == "none":
        return {}
    return {name: value for name, value in metrics.items() if name != EXAMPLES and not name.startswith(IMAGES)}
