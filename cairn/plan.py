"""The plan: all that sites must share for one stage of one study, identified by its fingerprint.

A study's stages, each one federated sum of integer tables (DESIGN §5):

    moments → ranges → counts → recovery → (embedding, at the aggregator) → codebook

and of a training run's rounds, where the study is the run and the window is the round:

    replay_ranges (the first round) → replay (every later one), and beside them update (every round of a masked run)

The published bytes of a plan are its protobuf message (`cairn.codec.encode_plan`); the fingerprint is their SHA-256.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cairn.errors import MaskingError, PlanError
from cairn.keyspace import KeySpace
from cairn.masking.fixed_point import FixedPoint
from cairn.pixels import INTENSITY_BINS, UNIT_BINS, PixelLevels, Quantiser, check_projection
from cairn.privacy.terms import Privacy
from cairn.sketch import SketchSpec
from cairn.transitions import LEVELS, TransitionCoder

StageName = Literal["moments", "ranges", "counts", "recovery", "codebook", "replay_ranges", "replay", "update"]
Shapes = Mapping[str, tuple[int, ...]]
LIMBS = 2  # a sum of products is two int64 words: low 32 bits, and the rest (cairn.moments)


@dataclass(frozen=True)
class MomentsPlan:
    """Stage 1: pixel count, sums and uncentred second moments of the bands' levels."""

    stage: ClassVar[StageName] = "moments"
    pixels: PixelLevels

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        bands = len(self.pixels.bands)
        return {"pixels": (1,), "sum": (LIMBS, bands), "second": (LIMBS, bands, bands)}


@dataclass(frozen=True)
class RangesPlan:
    """Stage 2: joint histogram of intensity and of each component of the unit vector."""

    stage: ClassVar[StageName] = "ranges"
    pixels: PixelLevels
    projection: npt.NDArray[np.int32]  # [components, bands]

    def __post_init__(self) -> None:
        check_projection(self.pixels, self.projection)

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        return {"pixels": (1,), "unit": (len(self.projection), INTENSITY_BINS, UNIT_BINS)}


@dataclass(frozen=True)
class CountsPlan:
    """Stage 3: foreground pixels' keys, in a dense prefix histogram and one count sketch per longer prefix.

    dense_bits   high bits of the key counted exactly
    sketch_bits  prefix lengths, rising, each over dense_bits; the last is the whole key
    """

    stage: ClassVar[StageName] = "counts"
    quantiser: Quantiser
    sketch: SketchSpec
    dense_bits: int
    sketch_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        bits = self.quantiser.keyspace.bits
        rising = all(a < b for a, b in zip((self.dense_bits, *self.sketch_bits), self.sketch_bits, strict=False))
        if not (1 <= self.dense_bits <= 24 and rising and (self.sketch_bits or (self.dense_bits,))[-1] == bits):
            raise PlanError(
                f"levels {self.dense_bits} | {self.sketch_bits} do not rise to the key's {bits} bits; "
                "publish prefix lengths that end with the whole key"
            )

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        table = (self.sketch.depth, self.sketch.width)
        return {
            "pixels": (1,),
            "foreground": (1,),
            "dense": (2**self.dense_bits,),
            **{f"sketch_{bits}": table for bits in self.sketch_bits},
        }


@dataclass(frozen=True)
class RecoveryPlan:
    """Stage 4, verification: exact counts of the candidate keys and of nothing else."""

    stage: ClassVar[StageName] = "recovery"
    quantiser: Quantiser
    candidates: npt.NDArray[np.uint64]  # [k], rising

    def __post_init__(self) -> None:
        check_keys("candidates", self.candidates, self.quantiser.keyspace)

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        return {"foreground": (1,), "count": (len(self.candidates),)}


@dataclass(frozen=True)
class CodebookPlan:
    """Stage 6: label images at the sites, and per cluster the pixel count and the sum of levels."""

    stage: ClassVar[StageName] = "codebook"
    quantiser: Quantiser
    keys: npt.NDArray[np.uint64]  # [k], rising
    clusters: npt.NDArray[np.uint8]  # [k]
    cluster_states: tuple[int, ...]  # state of each cluster
    states: tuple[str, ...]

    def __post_init__(self) -> None:
        check_keys("keys", self.keys, self.quantiser.keyspace)
        n = len(self.cluster_states)
        if not (
            len(self.keys) == len(self.clusters) > 0
            and 1 <= n <= 250
            and int(self.clusters.max()) < n
            and 1 <= len(self.states) <= 250
            and all(0 <= state < len(self.states) for state in self.cluster_states)
        ):
            raise PlanError("the codebook does not give every key one of its clusters and every cluster a state")

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        clusters, bands = len(self.cluster_states), len(self.quantiser.pixels.bands)
        return {"pixels": (1,), "clusters": (clusters,), "profile": (LIMBS, clusters, bands)}


@dataclass(frozen=True)
class ReplayRangesPlan:
    """A run's first round: histograms of the pooled cells of states, from which the coder's thresholds are fitted.

    grid  cells along each axis of the box; its pixels are the run's setting
    """

    stage: ClassVar[StageName] = "replay_ranges"
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (2 <= len(self.grid) <= 3 and min(self.grid) >= 1 and math.prod(self.grid) <= 64):
            raise PlanError(f"a grid of {self.grid} cells was asked for; two or three axes and up to 64 cells can be")

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        return {"transitions": (1,), "cells": (math.prod(self.grid), LEVELS)}


@dataclass(frozen=True)
class ReplayPlan:
    """A run's later rounds: the keys of the transitions that a site made, in one count sketch."""

    stage: ClassVar[StageName] = "replay"
    coder: TransitionCoder
    sketch: SketchSpec

    @property
    def table(self) -> str:
        """Name of the sketch's table."""
        return f"sketch_{self.coder.keyspace.bits}"

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        return {"transitions": (1,), self.table: (self.sketch.depth, self.sketch.width)}


@dataclass(frozen=True)
class UpdatePlan:
    """A run's round: the sites' model updates in fixed point, each times its weight, and the weights' sum.

    values  numbers of an update; for the rest see `cairn.masking.fixed_point.FixedPoint`
    """

    stage: ClassVar[StageName] = "update"
    values: int
    fraction_bits: int
    clip: float
    weight_limit: int

    def __post_init__(self) -> None:
        if not 1 <= self.values <= 2**31:
            raise PlanError(f"updates of {self.values} numbers were asked for; one to 2^31 can be")
        try:
            _ = self.form
        except MaskingError as error:
            raise PlanError(f"updates cannot be summed secretly in {error}") from error

    @property
    def form(self) -> FixedPoint:
        """How an update becomes integers."""
        return FixedPoint(self.fraction_bits, self.clip, self.weight_limit)

    def shapes(self) -> Shapes:
        """Name the tally's tables and their shapes; all are int64."""
        return {"update": (self.values + 1,)}


PixelStage = MomentsPlan | RangesPlan | CountsPlan | RecoveryPlan | CodebookPlan
ReplayStage = ReplayRangesPlan | ReplayPlan
RunStage = ReplayStage | UpdatePlan
Stage = PixelStage | RunStage


@dataclass(frozen=True)
class Secrecy:
    """How a plan's tallies are masked, so that the aggregator learns their sum alone (cairn.masking).

    bits         of the modulus: 32 or 64
    may_drop     thousandths of the sites that may be lost before the sum is refused
    may_collude  thousandths of the sites that may side with the aggregator before a site's counts are at risk
    Raises PlanError.
    """

    bits: int
    may_drop: int
    may_collude: int

    def __post_init__(self) -> None:
        if self.bits not in {32, 64} or not (0 <= self.may_drop < 500 and 0 <= self.may_collude < 500):
            raise PlanError(
                f"masking mod 2^{self.bits} with {self.may_drop} and {self.may_collude} of a thousand sites was asked "
                "for; 2^32 or 2^64, and under 500 of a thousand, can be"
            )


@dataclass(frozen=True)
class Plan:
    """One stage of one study for one window: what a site is asked to tally.

    secrecy  None: tallies are sent in plain
    privacy  None: tallies are exact
    Raises PlanError for a promise of privacy that the plan cannot keep.
    """

    study: str
    window: int
    stage: Stage
    secrecy: Secrecy | None = None
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        if self.privacy is None:
            return
        if not isinstance(self.stage, PixelStage):
            raise PlanError(f"a plan of stage {self.stage.stage} cannot be private; plans over images can")
        if self.secrecy is None and self.privacy.sites > 1:
            raise PlanError(
                f"the noise of {self.privacy.sites} sites is to hide each one's counts, and the plan is not masked; "
                "mask it, or let every site add all of the noise"
            )

    @property
    def cells(self) -> int:
        """Cells of all tables together: the words of a masked tally."""
        return sum(math.prod(shape) for shape in self.stage.shapes().values())


def fingerprint(published: bytes) -> bytes:
    """Identify a plan by the SHA-256 of its published bytes; 32 bytes."""
    return hashlib.sha256(published).digest()


def prefix_levels(keyspace: KeySpace, dense_bits: int = 20, step: int = 5) -> tuple[int, tuple[int, ...]]:
    """Choose the levels of a key space: dense high bits, then sketches at most `step` bits apart.

    returns (dense_bits, sketch_bits); steps are as equal as they can be, (20, (24, 28, 32, 36)) for 36 bits
    """
    dense = min(dense_bits, keyspace.bits)
    rest = keyspace.bits - dense
    levels = math.ceil(rest / step)
    return dense, tuple(dense + round(rest * i / levels) for i in range(1, levels + 1))


def check_keys(what: str, keys: npt.NDArray[np.uint64], keyspace: KeySpace) -> None:
    """Refuse keys that are not rising, or not of the key space. Raises PlanError."""
    if keys.ndim != 1 or keys.dtype != np.uint64 or np.any(keys[1:] <= keys[:-1]):
        raise PlanError(f"{what} must be one list of rising 64-bit keys, each once")
    if len(keys) and int(keys[-1]) >= keyspace.size:
        raise PlanError(f"{what} hold the key {keys[-1]}, over the key space's {keyspace.size}")
