"""Jobs of a search as messages to the sites: many at a time, each to sites of its own.

A job at one site is one message: train, validate, answer figures. A job at several is a small run of its own: in each
leg they train, their weights are joined by examples, and the joined weights are validated at the same sites.

What is lost is not sent again: the search gives the job to others.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from agent_trainer.algorithms import Weights, algorithm
from agent_trainer.first_files import without_files
from agent_trainer.rounds.errand import GONE, Errand, Fault, Figures, fault_of, joined
from agent_trainer.rounds.layout import check_finite, flatten, layout_of
from agent_trainer.rounds.server_app import LATE_S, LOOK_S, Clock, Post
from agent_trainer.rounds.validation import merged_metrics
from agent_trainer.rounds.wire import (
    EVALUATE,
    EXAMPLES,
    ROUND,
    TRAIN,
    WEIGHTS,
    Order,
    arrays,
    order_record,
    read_metrics,
    read_update,
)
from agent_trainer.search.jobs import Job
from agent_trainer.search.sites import Blame, Ended, Part
from agent_trainer.search.spec import SearchSpec
from agent_trainer.search.training import reward_of
from cairn.errors import Diverged, TrainingError
from cairn.figures import VALIDATION, told

ASK_S: Final = 10.0  # between two questions which sites are registered
VALIDATIONS_SHARE: Final = 0.2  # of the deadline of a job at several sites


class Errands:
    """See `agent_trainer.search.sites.Errands`.

    run    its name
    sites  asks which sites are registered: node id → site
    given  weights that jobs begin with wherever they fit by name and shape
    Raises Unreachable when SuperLink, or the aggregator, stays away.
    """

    def __init__(
        self,
        run: str,
        spec: SearchSpec,
        post: Post,
        sites: Callable[[], Mapping[int, str]],
        given: Weights | None = None,
        clock: Clock = time,
    ) -> None:
        self._run, self._spec, self._post, self._ask, self._clock = run, spec, post, sites, clock
        self._given = given or {}
        self._algorithm = algorithm(spec.algorithm)
        self._deadline_s = spec.deadline.total_seconds()
        self._sites: Mapping[int, str] = {}
        self._online: Mapping[int, NodeInfo] = {}
        self._asked = self._looked = -math.inf
        self._errands: dict[int, Errand] = {}

    def known(self) -> list[str]:
        """Name the registered sites."""
        self._look()
        return sorted(self._sites.values())

    def here(self) -> list[str]:
        """Name those of them whose SuperNode is online."""
        self._look()
        return sorted(site for node_id, site in self._sites.items() if node_id in self._online)

    def begin(self, job: Job, sites: Sequence[str]) -> None:
        """Send a job to sites that are here. Raises ConfigError for settings that the algorithm refuses."""
        config = self._algorithm.read_config(json.dumps(dict(job.settings)))
        first = self._algorithm.first_weights(without_files(config), job.seed)
        fitting = {name: array for name, array in self._given.items() if _fits(array, first.get(name))}
        weights = {**first, **fitting}
        nodes = {node_id: self._online[node_id].last_activated_at for node_id, s in self._sites.items() if s in sites}
        alone = len(sites) == 1
        legs = self._spec.validations
        order = Order(
            run=self._run,
            number=job.number,
            algorithm=self._spec.algorithm,
            settings=config.model_dump_json(),
            seed=job.seed,
            layout=layout_of(weights),
            evaluate=False,
            deadline_s=self._deadline_s if alone else self._deadline_s * (1 - VALIDATIONS_SHARE) / legs,
            updates=self._spec.updates if alone else self._updates(0),
            validations=legs if alone else 0,
        )
        errand = Errand(order, flatten(weights), nodes, self._clock.monotonic())
        self._errands[job.number] = errand
        self._send(errand, TRAIN)

    def ended(self) -> dict[int, Ended]:
        """Take what has come, go on with jobs at several sites, and return the jobs that have ended."""
        self._look()
        self._collect()
        found = {}
        for job, errand in list(self._errands.items()):
            self._miss(errand)
            if errand.faults:
                found[job] = self._failed(errand)
            elif not errand.waiting and (end := self._next(errand)) is not None:
                found[job] = end
        for job in found:
            del self._errands[job]
        return found

    def drop(self, job: int) -> None:
        """Forget a job; its answers are passed over."""
        self._errands.pop(job, None)

    def _look(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked >= ASK_S:
            self._asked, self._sites = now, self._ask()
        if now - self._looked >= LOOK_S:
            self._looked, self._online = now, {node.node_id: node for node in self._post.get_nodes()}

    def _updates(self, leg: int) -> int:
        """Return the optimiser steps of a leg: evenly over the job's validations."""
        legs = self._spec.validations
        return self._spec.updates * (leg + 1) // legs - self._spec.updates * leg // legs

    def _send(self, errand: Errand, kind: str) -> None:
        content = RecordDict({WEIGHTS: arrays(errand.weights), ROUND: order_record(errand.order)})
        left = self._deadline_s - (self._clock.monotonic() - errand.began)
        messages = [
            Message(
                content,
                node_id,
                kind.format(self._spec.algorithm),
                ttl=max(0.0, left) + LATE_S,
                group_id=str(errand.order.number),
            )
            for node_id in errand.nodes
        ]
        for node_id, identifier in zip(errand.nodes, self._post.push_messages(messages), strict=True):
            if identifier:
                errand.waiting[identifier] = node_id
                errand.sent[node_id] = errand.sent.get(node_id, 0) + errand.weights.nbytes
            else:
                errand.faults[node_id] = Fault("way", "SuperLink refused its message")

    def _collect(self) -> None:
        at = {name: errand for errand in self._errands.values() for name in errand.waiting}
        for reply in self._post.pull_messages(list(at)) if at else ():
            name = reply.metadata.reply_to_message_id
            errand = at[name]
            node_id = errand.waiting.pop(name)
            if not reply.has_content():
                errand.faults[node_id] = fault_of(reply)
                continue
            try:
                self._read(errand, node_id, reply)
            except Diverged as error:
                errand.faults[node_id] = Fault("strategy", f"Diverged: {error}")
            except TrainingError as error:
                errand.faults[node_id] = Fault("site", f"TrainingError: {error}")

    def _read(self, errand: Errand, node_id: int, reply: Message) -> None:
        if errand.joining:
            errand.validated[node_id] = read_metrics(reply)
        elif errand.order.validations:
            found = read_metrics(reply)
            errand.numbers[node_id] = errand.validated[node_id] = found
        else:
            update, errand.numbers[node_id] = read_update(reply, len(errand.weights))
            errand.updates[node_id] = update
            errand.sent[node_id] += update.nbytes

    def _miss(self, errand: Errand) -> None:
        """Note the sites that are no longer there, or late."""
        late = self._clock.monotonic() - errand.began >= self._deadline_s
        for node_id in errand.waiting.values():
            now = self._online.get(node_id)
            if now is None or now.last_activated_at != errand.nodes[node_id]:
                errand.faults[node_id] = Fault("way", GONE)
            elif late:
                sentence = f"it did not answer within the job's deadline of {self._deadline_s:.0f} s"
                errand.faults[node_id] = Fault("way", sentence, "late")

    def _next(self, errand: Errand) -> Ended | None:
        """Go on where all sites have answered; returns the job's end when that is it."""
        if not errand.order.validations and not errand.joining:
            errand.weights = joined((errand.updates[n], errand.numbers[n][EXAMPLES]) for n in errand.nodes)
            try:
                check_finite(errand.weights)
            except Diverged as error:
                return Ended(self._parts(errand), blame="strategy", why=f"the joined weights diverged: {error}")
            errand.joining = True
            errand.validated.clear()
            self._send(errand, EVALUATE)
            return None
        figures = self._validation(errand)
        try:
            reward = reward_of(self._spec.algorithm, figures)
        except TrainingError:
            reward = math.nan  # sites leave out what is not finite
        if math.isnan(reward):
            why = f"the {self._spec.goal.words} of its validation is no finite number"
            return Ended(self._parts(errand), blame="strategy", why=why)
        if errand.best is None or reward > errand.best[0]:
            errand.best = reward, figures, dict(errand.validated)
        leg = errand.order.leg + 1
        if errand.order.validations or leg == self._spec.validations:
            return self._finished(errand, errand.best)
        errand.order, errand.joining = replace(errand.order, leg=leg, updates=self._updates(leg)), False
        self._send(errand, TRAIN)
        return None

    def _validation(self, errand: Errand) -> Figures:
        if errand.order.validations:  # the site has merged it
            return {name: value for numbers in errand.validated.values() for name, value in _of(numbers)}
        return told(self._algorithm.merge_validation(list(errand.validated.values())))

    def _finished(self, errand: Errand, best: tuple[float, Figures, dict[int, Figures]]) -> Ended:
        reward, figures, errand.validated = best
        trained = merged_metrics(list(errand.numbers.values()))
        return Ended(self._parts(errand), reward, {**trained, **figures})

    def _failed(self, errand: Errand) -> Ended:
        """End a job by the gravest of its faults: a strategy fails elsewhere too, a site's is the site's alone."""
        order: tuple[Blame, ...] = ("strategy", "policy", "site", "way")
        blame = min((fault.blame for fault in errand.faults.values()), key=order.index)
        why = "; ".join(f"{self._name(n)}: {fault.why}" for n, fault in errand.faults.items() if fault.blame == blame)
        return Ended(self._parts(errand, blame), blame=blame, why=why)

    def _parts(self, errand: Errand, blame: Blame = "") -> tuple[Part, ...]:
        """Tell of the sites that trained, and of those at which the job failed."""
        parts = []
        for node_id in errand.nodes:
            site, sent = self._name(node_id), errand.sent.get(node_id, 0)
            fault = errand.faults.get(node_id)
            if fault is not None and fault.blame == blame:
                parts.append(Part(site, fault.state, fault.why, bytes=sent))
            elif node_id in errand.numbers:
                metrics = {**told(errand.numbers[node_id]), **dict(_of(told(errand.validated.get(node_id, {}))))}
                parts.append(Part(site, metrics=metrics, bytes=sent))
        return tuple(parts)

    def _name(self, node_id: int) -> str:
        return self._sites.get(node_id, "a site that was revoked")


def _fits(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], place: object) -> bool:
    return getattr(place, "shape", None) == array.shape


def _of(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in numbers.items() if name.startswith(VALIDATION)]
