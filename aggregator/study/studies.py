"""A study as a state machine: what follows on what, when a stage closes, and the plan of the stage that comes next.

Pure: no database, no clock, no network. `aggregator.study.coordinator` asks here and makes it so.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from cairn.errors import StudyError
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import (
    CodebookPlan,
    CountsPlan,
    MomentsPlan,
    Plan,
    RangesPlan,
    RecoveryPlan,
    Secrecy,
    StageName,
    prefix_levels,
)
from cairn.privacy.accountant import composed, shared
from cairn.privacy.terms import Privacy, honest
from cairn.sketch import SketchSpec
from cairn.study import StudySpec

# Of ρ, which adds up. Counts and their verification decide which keys are seen; the others sum over all pixels.
PRIVACY_SHARES: Final[dict[StageName, float]] = {
    "moments": 0.1,
    "ranges": 0.15,
    "counts": 0.4,
    "recovery": 0.25,
    "codebook": 0.1,
}

State = Literal[
    "moments",
    "ranges",
    "counts",
    "recovering",
    "recovery",
    "embedding",
    "awaiting_approval",
    "codebook",
    "done",
    "failed",
]
Event = Literal["merged", "computed", "approved", "extended", "failed"]

# The states in which sites work on a plan of the same name; the others are the aggregator's or a person's.
COLLECTING: Final[tuple[StageName, ...]] = ("moments", "ranges", "counts", "recovery", "codebook")
COMPUTING: Final[tuple[State, ...]] = ("recovering", "embedding")
FIRST: Final[State] = "moments"

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    ("moments", "merged"): "ranges",
    ("ranges", "merged"): "counts",
    ("counts", "merged"): "recovering",
    ("recovering", "computed"): "recovery",
    ("recovery", "merged"): "embedding",
    ("embedding", "computed"): "awaiting_approval",
    ("awaiting_approval", "approved"): "codebook",
    ("codebook", "merged"): "done",
    ("awaiting_approval", "extended"): "counts",
    ("done", "extended"): "counts",
    ("moments", "failed"): "failed",
    ("ranges", "failed"): "failed",
    ("counts", "failed"): "failed",
    ("recovering", "failed"): "failed",
    ("recovery", "failed"): "failed",
    ("embedding", "failed"): "failed",
    ("codebook", "failed"): "failed",
}


def as_state(text: str) -> State:
    """Read a state from the database. Raises StudyError for one that this version does not know."""
    found = next((state for state in get_args(State) if state == text), None)
    if found is None:
        raise StudyError(f"the study is in the state {text!r}, which this version does not know; update the aggregator")
    return cast("State", found)


def following(state: State, event: Event) -> State:
    """Name the state that an event leads to. Raises StudyError when the event has no place in this state."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        allowed = sorted(before for before, what in TRANSITIONS if what == event)
        raise StudyError(
            f"the study is in the state {state!r}, in which it cannot be {event}; that needs {' or '.join(allowed)}"
        )
    return found


@dataclass(frozen=True)
class Participant:
    """A site as a stage sees it.

    enrolled  it is, and is not revoked
    refused   its last answer to the plan was no
    uploaded  its tally is in the ledger
    """

    name: str
    enrolled: bool
    refused: bool
    uploaded: bool


@dataclass(frozen=True)
class Close:
    """The stage closes with the uploads of just these sites, in this order."""

    sites: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """The stage stays open; the sentence says why when a person should know, else it is empty."""

    message: str = ""


def closing(sites: Sequence[Participant], min_sites: int, deadline: datetime, now: datetime) -> Close | Wait:
    """Decide whether a stage closes.

    It does when every enrolled site that has not refused has uploaded, or from the deadline on; never with fewer than
    `min_sites` uploads. The upload of a site that was revoked before the stage closed is left out.
    """
    counted = tuple(sorted(site.name for site in sites if site.enrolled and site.uploaded))
    missing = [site.name for site in sites if site.enrolled and not site.uploaded and not site.refused]
    late = now >= deadline
    if len(counted) >= min_sites and (late or not missing):
        return Close(counted)
    if not late and missing:
        return Wait()
    refused = sum(site.refused and not site.uploaded and site.enrolled for site in sites)
    return Wait(
        f"{len(counted)} of at least {min_sites} sites have sent their tally"
        + (f", {refused} refused" if refused else "")
        + (f", {len(missing)} did not before the deadline" if missing else "")
        + "; the stage waits for more"
    )


def as_published(spec: StudySpec, plan: Plan) -> Plan:
    """Say of a plan how its tallies are summed and what they promise, as the study wants it."""
    secrecy = Secrecy(64, spec.may_drop, spec.may_collude) if spec.masked else None
    return replace(plan, secrecy=secrecy, privacy=promise(spec, plan.stage.stage))


def promise(spec: StudySpec, stage: StageName) -> Privacy | None:
    """Say what a stage's plan promises, so that the five plans of the first window keep the study's ε and δ together.

    Without masking a site stands alone, and its own noise must do.
    """
    whole = spec.privacy
    if whole is None:
        return None
    (noise,) = shared(whole.epsilon, whole.delta, [PRIVACY_SHARES[stage]])
    sites = spec.min_sites if spec.masked else 1
    return Privacy(
        unit=whole.unit,
        epsilon=composed([noise], whole.delta),
        delta=whole.delta,
        noise=noise,
        clip=whole.clip,
        brightest=whole.brightest,
        sites=sites,
        sharers=honest(sites, spec.may_collude),
    )


def moments_plan(spec: StudySpec) -> Plan:
    """Make the first plan of a study."""
    return Plan(spec.name, 0, MomentsPlan(pixel_levels(spec)))


def ranges_plan(spec: StudySpec, projection: npt.NDArray[np.int32]) -> Plan:
    """Make the plan of the joint histogram.

    projection  int32[components, bands]
    """
    return Plan(spec.name, 0, RangesPlan(pixel_levels(spec), projection))


def counts_plan(
    spec: StudySpec,
    projection: npt.NDArray[np.int32],
    *,
    min_norm: float,
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    ranges_fingerprint: bytes,
) -> Plan:
    """Make the first counts plan.

    The sketch's seed is derived from the ranges plan, so that the step gives the same plan when it runs twice. It is
    no secret: every party has the plan (DESIGN §8).
    """
    quantiser = Quantiser(pixel_levels(spec), projection, min_norm, low, high, spec.radix)
    dense_bits, sketch_bits = prefix_levels(quantiser.keyspace)
    seed = hashlib.sha256(b"cairn sketch seed\0" + ranges_fingerprint).digest()
    sketch = SketchSpec(spec.depth, spec.width, seed)
    return Plan(spec.name, 0, CountsPlan(quantiser, sketch, dense_bits, sketch_bits))


def next_window(counts: Plan) -> Plan:
    """Make the counts plan of the window after this one: the same quantiser and sketch, so that the tables add."""
    return Plan(counts.study, counts.window + 1, counts.stage)


def recovery_plan(counts: Plan, candidates: npt.NDArray[np.uint64]) -> Plan:
    """Make the verification plan of candidate keys.

    candidates  uint64[n], any order
    """
    assert isinstance(counts.stage, CountsPlan)  # the caller took it from the counts stage
    return Plan(counts.study, counts.window, RecoveryPlan(counts.stage.quantiser, np.unique(candidates)))


def codebook_plan(
    recovery: Plan,
    keys: npt.NDArray[np.uint64],
    clusters: npt.NDArray[np.uint8],
    states_of_clusters: Sequence[str],
) -> Plan:
    """Make the codebook plan.

    keys                uint64[k], any order
    clusters            uint8[k]
    states_of_clusters  a state's name for each cluster
    """
    assert isinstance(recovery.stage, RecoveryPlan)  # the caller took it from the recovery stage
    order = np.argsort(keys)
    states = tuple(dict.fromkeys(states_of_clusters))
    numbers = tuple(states.index(state) for state in states_of_clusters)
    stage = CodebookPlan(recovery.stage.quantiser, keys[order], clusters[order], numbers, states)
    return Plan(recovery.study, recovery.window, stage)


def pixel_levels(spec: StudySpec) -> PixelLevels:
    """Say how a band's value becomes a level in this study."""
    return PixelLevels(spec.bands, spec.pixel_offset, spec.pixel_scale)
