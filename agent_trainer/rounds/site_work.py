"""A site's part of a round: validate, take the federation's counts, train, hand the replay keys over, answer.

What was answered is kept until the next order, so that an order that comes twice (its answer was lost on the way, or
the middle was restarted) costs no second training.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from agent_trainer.algorithms import Place, Practice, Weights, algorithm
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.replay import Replay
from agent_trainer.rounds import masked_updates, site_replay
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import Vector, check_layout, flatten, layout_of, unflatten
from agent_trainer.rounds.models import Model, Models
from agent_trainer.rounds.wire import EXAMPLES, Order
from agent_trainer.search.training import reward_of
from cairn.errors import CairnError, PlanMismatch, PolicyError, TrainingError
from cairn.figures import told

BUDGET: Final = 0.8  # of a round's deadline, after which a site ends its training and answers
TELL_EVERY_S: Final = 2.0
JOB: Final = "job"  # folder of a search's job in its run's, empty when a job begins
REMARKS: Final = 10  # on the data for training that a site's page shows at once


@dataclass(frozen=True)
class SiteSettings:
    """What the edge node decides.

    runs     patterns of the names of runs that this site takes part in
    sources  tables of data by kind, see `algorithms.Place`
    folder   of the site's own files: models, learner states, frames
    spool    where replay keys are handed to the edge
    run_digests  of the exact runs that it takes part in, see `run_digest`; None: all that fit a name
    against_plain, against_masked  why it takes part in no run whose updates are not masked, and in none whose are;
                                   None: it does. A search's jobs are not masked
    processes    that may learn together
    """

    runs: Sequence[str]
    sources: Mapping[str, Sequence[Mapping[str, Any]]]
    device: str
    folder: Path
    spool: Path
    run_digests: Sequence[str] | None = None
    against_plain: str | None = None
    against_masked: str | None = None
    processes: int = 1


def run_digest(order: Order) -> str:
    """Return the digest of what a run asks a site to do, the same in all its rounds: SHA-256 of a line of JSON."""
    about = {"run": order.run, "algorithm": order.algorithm, "settings": order.settings, "seed": order.seed}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class SiteWork:
    """Trains for one run at a time; see `client_app.Work`.

    site_seed  makes this site's exploration differ from others'
    """

    def __init__(self, settings: SiteSettings, models: Models, talk: EdgeTalk, site_seed: int) -> None:
        self._settings, self._models, self._talk, self._site_seed = settings, models, talk, site_seed
        self._practice: tuple[str, Practice] | None = None  # run, algorithm and settings
        self._answered: tuple[bytes, dict[str, float], Vector | None] | None = None

    def train(self, order: Order, weights: Vector) -> tuple[dict[str, float], Vector | None]:
        """Train for a round; returns numbers and the site's weights, which of a masked run go to the edge node instead.

        Raises PolicyError when the site does not take part or keeps its update back, Diverged, TrainingError for
        weights of another network, and what loading the data raises.
        """
        began = time.monotonic()
        digest = _digest(order, weights)
        if self._answered is not None and self._answered[0] == digest:
            return self._answered[1], self._answered[2]
        self._answered = None
        self._check_kind(order)
        practice = self._begin(order)
        self._talk.round(order.run, order.number, "begins", {})
        self._take(practice, order, weights, order.number - 1)
        metrics = practice.validate() if order.evaluate else {}
        replay = _replay(practice, order)
        if replay is not None:
            site_replay.take_counts(replay, order)
        metrics |= self._practise(practice, order, practice.config.round_updates, began)
        self._tell_problems(practice, order)
        if replay is not None and order.plan:
            self._talk.say("replay", fingerprint=site_replay.hand_over(replay, order.plan, self._settings.spool))
        practice.save()
        metrics |= {EXAMPLES: float(practice.examples), "seconds": time.monotonic() - began}
        trained = flatten(practice.weights())
        if order.update_plan:
            spool = self._settings.spool
            handed = masked_updates.hand_over(order, weights, trained, practice.examples, spool)
            self._talk.say("replay", fingerprint=handed)
        else:
            self._talk.hand_over(order.run, order.number, trained)
        self._talk.round(order.run, order.number, "ends", metrics)
        answer = (masked_updates.told(metrics, order), None) if order.update_plan else (metrics, trained)
        self._answered = digest, *answer
        return answer

    def job(self, order: Order, weights: Vector) -> tuple[dict[str, float], Vector | None]:
        """Do a search's job, or a leg of one at several sites; see `Order`.

        A job begins with nothing that this site learned before, and of one at this site alone nothing stays.
        Raises as `train`; TrainingError also when there was no time for all updates, or nothing to validate with.
        """
        began = time.monotonic()
        digest = _digest(order, weights)
        if self._answered is not None and self._answered[0] == digest:
            return self._answered[1], self._answered[2]
        self._answered = None
        self._check_kind(order)
        practice = self._begin(order, anew=order.leg == 0)
        self._talk.round(order.run, order.number, "begins", {}, job=True)
        self._put(practice, order, weights)
        metrics = self._measured(practice, order, began)
        self._tell_problems(practice, order)
        metrics |= {EXAMPLES: float(practice.examples), "seconds": time.monotonic() - began}
        trained = None
        if order.validations:
            self._practice = None
            shutil.rmtree(self._folder_of(order), ignore_errors=True)
        else:
            trained = flatten(practice.weights())
            self._talk.hand_over(order.run, order.number, trained)
        self._talk.round(order.run, order.number, "ends", metrics, job=True)
        self._answered = digest, metrics, trained
        return metrics, trained

    def _measured(self, practice: Practice, order: Order, began: float) -> dict[str, float]:
        """Train a job; returns the numbers of the best of its validations, or without any those of the training."""
        best: dict[str, float] | None = None
        reward, done, metrics = -math.inf, 0, {}
        for point in range(1, max(1, order.validations) + 1):
            until = order.updates * point // max(1, order.validations)
            metrics = self._practise(practice, order, until - done, began)
            done += int(metrics["updates"])
            metrics["updates"] = float(done)
            if done < until:
                raise TrainingError(
                    f"the job's deadline of {order.deadline_s:.0f} s left time for {done} of its {order.updates} "
                    "updates; give jobs more time, or ask for fewer updates"
                )
            if order.validations:
                figures = algorithm(order.algorithm).merge_validation([_validated(practice)])
                found = reward_of(order.algorithm, figures)
                if math.isnan(found):
                    return {**metrics, **told(figures)}  # the goal will be missing in the answer
                if best is None or found > reward:
                    reward, best = found, {**metrics, **told(figures)}
        return metrics if best is None else best

    def evaluate(self, order: Order, weights: Vector) -> dict[str, float]:
        """Measure weights on the images that the site sets aside; those of a job are not kept for the page."""
        if order.updates:
            practice = self._begin(order)
            self._put(practice, order, weights)
            metrics = _validated(practice)
        else:
            practice = self._begin(order)
            self._take(practice, order, weights, order.number)
            metrics = practice.validate()
        self._talk.round(order.run, order.number, "ends", metrics, job=order.updates > 0)
        return metrics

    def _check_kind(self, order: Order) -> None:
        """Refuse what the site does not let out of this kind of run, before anything is learned. Raises PolicyError."""
        self._check_name(order)
        masked = bool(order.update_plan)
        against = self._settings.against_masked if masked else self._settings.against_plain
        if against is not None:
            kind = (
                "a search, whose jobs are not masked" if order.updates else f"a {'masked' if masked else 'plain'} run"
            )
            sentence = f"{against}; {order.run} is {kind}"
            self._talk.problems([sentence], "a run is refused by this site's policy")
            raise PolicyError(sentence)

    def _check_name(self, order: Order) -> None:
        if not any(fnmatchcase(order.run, pattern) for pattern in self._settings.runs):
            raise PolicyError(f"this site does not take part in the run {order.run}")
        if (allowed := self._settings.run_digests) is not None and (found := run_digest(order)) not in allowed:
            raise PolicyError(f"this site has not approved the run {order.run} of digest {found} (policy.runs)")

    def _begin(self, order: Order, *, anew: bool = False) -> Practice:
        """Go on with the run, or load what another one needs. Of a job only the first leg loads anything."""
        self._check_name(order)
        name = f"{order.run} {order.seed} {order.algorithm} {order.settings}"
        if order.updates:
            name = f"job {order.number} of {name}"
        if anew or self._practice is None or self._practice[0] != name:
            if order.updates and not anew:
                raise TrainingError(f"this site was started anew in the middle of job {order.number}")
            self._practice = None  # its memory is free before the next one takes some
            self._practice = name, self._load(order)
        return self._practice[1]

    def _folder_of(self, order: Order) -> Path:
        folder = self._settings.folder / "runs" / order.run
        return folder / JOB if order.updates else folder

    def _load(self, order: Order) -> Practice:
        chosen = algorithm(order.algorithm)
        config = chosen.read_config(order.settings)
        seed = (order.seed + self._site_seed) % 2**32
        folder = self._folder_of(order)
        if order.updates:
            shutil.rmtree(folder, ignore_errors=True)  # of a job that did not come to its end
        place = Place(self._settings.sources, seed, self._settings.device, folder, self._settings.processes)
        try:
            practice = chosen.begin(config, place)
        except CairnError as error:
            self._talk.problems([str(error)], "the data of a run cannot be used")
            raise
        self._tell_problems(practice, order)
        return practice

    def _tell_problems(self, practice: Practice, order: Order) -> None:
        problems, processes = list(practice.problems), self._settings.processes
        chosen = algorithm(order.algorithm)
        why = chosen.alone(practice.config) if chosen.learner else f"{order.algorithm} learns in one"
        if processes > 1 and why:
            problems.append(f"training.processes is {processes}, and {why}; it does so")
        self._talk.problems(shown(problems), "something is wrong with the data for training")

    def _take(self, practice: Practice, order: Order, weights: Vector, number: int) -> None:
        """Load the federation's weights, made by round `number`, and keep them for the site's page."""
        self._put(practice, order, weights)
        if number:
            # With what stays at home, so that the site's page answers as its validation does
            self._models.keep(Model(order.run, number, order.algorithm, practice.config, practice.weights()))

    def _put(self, practice: Practice, order: Order, weights: Vector) -> Weights:
        check_layout(order.layout, layout_of(practice.weights()), "the run")
        found = unflatten(weights, order.layout)
        practice.load(found, order.proximal_mu)
        return found

    def _practise(self, practice: Practice, order: Order, updates: int, began: float) -> dict[str, float]:
        told, ends = time.monotonic(), began + BUDGET * order.deadline_s
        done = None
        for done in practice.train(updates):
            now = time.monotonic()
            if now > ends:
                break
            if now - told > TELL_EVERY_S:
                told = now
                self._talk.round(order.run, order.number, "trains", done.numbers(), job=order.updates > 0)
        if done is None or not done.updates:
            raise TrainingError(
                f"the round's deadline of {order.deadline_s:.0f} s left no time for an update; give rounds more time, "
                "or ask for less before the first update"
            )
        return {**done.numbers(), **practice.figures()}


def _validated(practice: Practice) -> dict[str, float]:
    """Measure a job's weights. Raises TrainingError where nothing is set aside."""
    found = practice.validate()
    if not found:
        raise TrainingError("this site sets too little aside to measure a strategy by; raise validation_share")
    return found


def shown(problems: Sequence[str]) -> list[str]:
    """Choose what the site's page shows: the newest first, as what training does to masks comes behind the data."""
    newest = list(reversed(problems))
    more = len(newest) - REMARKS
    return newest if more <= 0 else [*newest[:REMARKS], f"and {more} more remarks on the data for training"]


def _replay(practice: Practice, order: Order) -> Replay | None:
    """Return the replay of a DQN run. Raises PlanMismatch for a replay plan in another."""
    if isinstance(practice, DqnPractice):
        return practice.replay
    if order.plan or order.coder_plan:
        raise PlanMismatch(f"a replay plan came in a run of {order.algorithm}, which has no replay")
    return None


def _digest(order: Order, weights: Vector) -> bytes:
    """Identify what an order asks for, whatever came with it besides."""
    asked = f"{order.run}\n{order.number}\n{order.seed}\n{order.settings}\n{order.evaluate}\n{order.proximal_mu}\n"
    asked += f"{order.updates} {order.validations} {order.leg}\n"
    return hashlib.sha256(asked.encode() + order.plan + order.update_plan + weights.tobytes()).digest()
