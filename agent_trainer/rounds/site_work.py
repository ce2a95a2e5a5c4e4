"""A site's part of a round: validate, take the federation's counts, train, hand the replay keys over, answer.

What was answered is kept until the next order, so that an order that comes twice (its answer was lost on the way, or
the middle was restarted) costs no second training.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent_trainer.config import read_config
from agent_trainer.evaluation import evaluate
from agent_trainer.practice import Practice
from agent_trainer.replay import Estimate
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import Vector, check_layout, flatten, layout_of, unflatten
from agent_trainer.rounds.models import Model, Models
from agent_trainer.rounds.wire import EXAMPLES, Order
from agent_trainer.scenes.sources import SceneSource, load_scenes
from cairn import codec, kernels
from cairn.errors import CairnError, PlanMismatch, PolicyError, TrainingError
from cairn.files import write_atomically
from cairn.hashing import Keys
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint

BUDGET: Final = 0.8  # of a round's deadline, after which a site ends its training and answers
TELL_EVERY_S: Final = 2.0


@dataclass(frozen=True)
class SiteSettings:
    """What the edge node decides.

    runs    patterns of the names of runs that this site takes part in
    folder  of the site's own files: models, learner states, frames
    spool   where replay keys are handed to the edge
    """

    runs: Sequence[str]
    sources: Sequence[SceneSource]
    device: str
    folder: Path
    spool: Path


class SiteWork:
    """Trains for one run at a time; see `client_app.Work`.

    site_seed  makes this site's exploration differ from others'
    """

    def __init__(self, settings: SiteSettings, models: Models, talk: EdgeTalk, site_seed: int) -> None:
        self._settings, self._models, self._talk, self._site_seed = settings, models, talk, site_seed
        self._practice: tuple[str, Practice] | None = None  # run and settings
        self._answered: tuple[bytes, dict[str, float], Vector] | None = None

    def train(self, order: Order, weights: Vector) -> tuple[dict[str, float], Vector]:
        """Train for a round; returns numbers and the site's weights.

        Raises PolicyError when the site does not take part or keeps its update back, Diverged, TrainingError for
        weights of another network, and what loading the scenes raises.
        """
        began = time.monotonic()
        digest = _digest(order, weights)
        if self._answered is not None and self._answered[0] == digest:
            return self._answered[1], self._answered[2]
        self._answered = None
        practice = self._begin(order)
        self._talk.round(order.run, order.number, "begins", {})
        self._take(practice, order, weights, order.number - 1)
        metrics = self._validate(practice) if order.evaluate else {}
        self._count(practice, order)
        metrics |= self._practise(practice, order, began)
        self._hand_over_replay(practice, order)
        practice.save()
        metrics |= {EXAMPLES: float(len(practice.scenes.train)), "seconds": time.monotonic() - began}
        trained = flatten(practice.learner.weights())
        self._talk.hand_over(order.run, order.number, trained)
        self._talk.round(order.run, order.number, "ends", metrics)
        self._answered = digest, metrics, trained
        return metrics, trained

    def evaluate(self, order: Order, weights: Vector) -> dict[str, float]:
        """Measure weights on the site's validation scenes."""
        practice = self._begin(order)
        self._take(practice, order, weights, order.number)
        metrics = self._validate(practice)
        self._talk.round(order.run, order.number, "ends", metrics)
        return metrics

    def _begin(self, order: Order) -> Practice:
        """Go on with the run, or load what another one needs."""
        if not any(fnmatchcase(order.run, pattern) for pattern in self._settings.runs):
            raise PolicyError(f"this site does not take part in the run {order.run}")
        name = f"{order.run} {order.seed} {order.settings}"
        if self._practice is None or self._practice[0] != name:
            self._practice = None  # its memory is free before the next one takes some
            self._practice = name, self._load(order)
        return self._practice[1]

    def _load(self, order: Order) -> Practice:
        config = read_config(order.settings)
        try:
            scenes = load_scenes(self._settings.sources, config)
        except CairnError as error:
            self._talk.problem(str(error), "the scenes of a run cannot be used")
            raise
        count = len(scenes.problems)
        self._talk.problem(
            f"{count} images cannot be used for training; the first: {scenes.problems[0]}" if count else "",
            "images cannot be used for training",
        )
        folder = self._settings.folder / "runs" / order.run
        return Practice(scenes, config, (order.seed + self._site_seed) % 2**32, self._settings.device, folder)

    def _take(self, practice: Practice, order: Order, weights: Vector, number: int) -> None:
        """Load the federation's weights, made by round `number`, and keep them for the site's page."""
        check_layout(order.layout, layout_of(practice.learner.weights()), "the run")
        found = unflatten(weights, order.layout)
        practice.learner.load(found, order.proximal_mu)
        if number:
            self._models.keep(Model(order.run, number, practice.config, found))

    def _validate(self, practice: Practice) -> dict[str, float]:
        found = evaluate(practice.scenes.validation, practice.config, practice.learner.q_values)
        return {
            f"validation/{task}/{name}": float(value)
            for task, measures in found.items()
            for name, value in measures.numbers().items()
        }

    def _count(self, practice: Practice, order: Order) -> None:
        """Take the coder of the round's plan, and the federation's counts."""
        if order.coder_plan:
            stage = codec.decode_plan(order.coder_plan).stage
            if not isinstance(stage, ReplayPlan):
                raise PlanMismatch("the round's coder comes in a plan of another kind; update the older side")
            practice.replay.code_with(stage.coder)
            if order.counts:
                practice.replay.count_with(_estimate(stage, order.counts))

    def _practise(self, practice: Practice, order: Order, began: float) -> dict[str, float]:
        told, ends = time.monotonic(), began + BUDGET * order.deadline_s
        sums = None
        for sums in practice.train(practice.config.round_updates):
            now = time.monotonic()
            if now > ends:
                break
            if now - told > TELL_EVERY_S:
                told = now
                self._talk.round(order.run, order.number, "trains", sums.numbers())
        if sums is None or not sums.updates:
            raise TrainingError(
                f"the round's deadline of {order.deadline_s:.0f} s left no time for an update; give rounds more time, "
                "or a smaller warm_up"
            )
        stats = practice.replay.stats()
        unique = {} if stats.unique_share is None else {"replay/unique_share": stats.unique_share}
        return {
            **sums.numbers(),
            **unique,
            "replay/effective": stats.effective,
            "replay/fill": stats.fill,
            "replay/bytes": float(stats.bytes),
        }

    def _hand_over_replay(self, practice: Practice, order: Order) -> None:
        """Write what the round's plan counts where the edge finds it; the edge tallies it by the plan it approved."""
        if not order.plan:
            return
        found: npt.NDArray[np.uint64] | npt.NDArray[np.uint8]
        match codec.decode_plan(order.plan).stage:
            case ReplayRangesPlan():
                found = practice.replay.take_cells()
            case ReplayPlan():
                found = practice.replay.take_keys()
            case other:
                raise PlanMismatch(f"the round's plan is of the stage {other.stage}; update the older side")
        name = fingerprint(order.plan).hex()
        with write_atomically(self._settings.spool / f"{name}.npy", 0o600) as file:
            np.save(file, found, allow_pickle=False)
        self._talk.say("replay", fingerprint=name)


def _digest(order: Order, weights: Vector) -> bytes:
    """Identify what an order asks for, whatever came with it besides."""
    asked = f"{order.run}\n{order.number}\n{order.seed}\n{order.settings}\n{order.evaluate}\n{order.proximal_mu}\n"
    return hashlib.sha256(asked.encode() + order.plan + weights.tobytes()).digest()


def _estimate(stage: ReplayPlan, counts: bytes) -> Estimate:
    """Return f̂ of the merged tally file. Raises PlanMismatch, ChecksumMismatch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.tally"
        path.write_bytes(counts)
        tally = codec.read_tally(path)
    if {name: table.shape for name, table in tally.tables.items()} != dict(stage.shapes()):
        raise PlanMismatch("the federation's counts have other tables than their plan")
    table, seeds, backend = tally.tables[stage.table], stage.sketch.seeds(), kernels.load("numba")

    def estimate(keys: Keys) -> npt.NDArray[np.int64]:
        return backend.estimate(table, keys, seeds)

    return estimate
