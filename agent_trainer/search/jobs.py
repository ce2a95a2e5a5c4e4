"""Algorithm 1 of paper 2, asynchronously: n jobs in flight, each result changes the proposer and launches the next."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from agent_trainer.search.journal import Event, Journal, Record, finite
from agent_trainer.search.spec import Proposer, SearchSpec
from cairn.errors import TrainingError

SAME: Final = 1e-5  # units of a strategy that is proposed again on another machine
HOPELESS: Final = 10  # jobs that fail before any has a reward


@dataclass(frozen=True)
class Job:
    """Train with a strategy and measure it: T(C) of algorithm 1.

    attempt   1 at first
    seed      of the training; a job's own, the same at every attempt
    settings  of the run, the strategy's among them
    """

    number: int
    attempt: int
    seed: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What became of a job.

    reward   validation Dice, or whatever else is searched for; None when there is none
    why      a sentence, where there is no reward
    lost     whether nobody trained it to its end, so that another attempt may do better
    figures  what else there is to tell
    """

    job: int
    reward: float | None = None
    why: str = ""
    lost: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> None:
        """Start a job; returns at once. Raises CairnError when no job can be started at all."""

    def answers(self, timeout_s: float) -> Sequence[Answer]:
        """Wait until a job has ended, not longer than the timeout; return all answers that there are, perhaps none."""

    def withdraw(self, job: int) -> None:
        """Give up a job: nobody waits for its answer, which may come all the same. Unknown jobs are no error."""


class Search:
    """A search that goes on where its journal ends.

    room  tells how many jobs may be in flight now, where that changes; under 1: those that are end, none is launched
    """

    def __init__(
        self,
        spec: SearchSpec,
        proposer: Proposer,
        journal: Journal,
        runner: Runner,
        now: Callable[[], float] = time.monotonic,
        room: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._spec, self._proposer, self._journal, self._runner, self._now = spec, proposer, journal, runner, now
        self._room = room
        self._began: dict[int, float] = {}
        self._fruitless = 0
        for event in journal.events:
            self._again(event)

    def run(self) -> Iterator[Event]:
        """Search until all jobs have ended, or the proposer has nothing left to try; yields what was written down.

        Raises TrainingError when the first ten jobs all failed.
        """
        for record in list(self._open()):
            self._submit(record)  # those that were in flight when the search was stopped
        while True:
            yield from self._fill()
            if not self._began:
                return
            for answer in self._runner.answers(self._patience_s()):
                yield from self._take(answer)
            yield from self._late()

    def _open(self) -> Iterator[Record]:
        return (record for record in self._journal.records.values() if record.state == "open")

    def _fill(self) -> Iterator[Event]:
        """Launch jobs up to n; lines 3, 7 and 8."""
        while (
            len(self._began) < min(self._spec.in_flight, self._room())
            and (job := len(self._journal.records)) < self._spec.jobs
        ):
            units = self._proposer.propose(job)
            if units is None:
                return
            event = self._note(Event(kind="launched", job=job, units=tuple(units.tolist())))
            self._submit(self._journal.records[job])
            yield event

    def _submit(self, record: Record) -> None:
        seed = int(np.random.SeedSequence([self._spec.seed, record.job]).generate_state(1)[0])
        settings = self._spec.space.run_settings(record.strategy)
        self._began[record.job] = self._now()
        self._runner.submit(Job(record.job, record.attempts, seed, settings))

    def _patience_s(self) -> float:
        """Return the seconds until the first deadline."""
        return max(0.0, min(self._began.values()) + self._spec.deadline.total_seconds() - self._now())

    def _take(self, answer: Answer) -> Iterator[Event]:
        """Take an answer; lines 5 and 6. One to a job that has ended by another attempt is passed over."""
        job = answer.job
        if job not in self._began:
            return
        if answer.lost:
            yield self._issue_again(job, answer.why)
            return
        seconds = round(self._now() - self._began[job], 3)
        if answer.reward is not None and math.isfinite(answer.reward):
            event = Event(
                kind="finished", job=job, reward=answer.reward, figures=finite(answer.figures) or None, seconds=seconds
            )
        else:
            why = answer.why or f"the reward is {answer.reward}, which is no finite number"
            event = Event(kind="failed", job=job, why=why, seconds=seconds)
        yield self._end(event)

    def _late(self) -> Iterator[Event]:
        """Issue jobs again whose deadline is over."""
        limit = self._spec.deadline.total_seconds()
        for job in [job for job, began in self._began.items() if self._now() - began >= limit]:
            yield self._issue_again(job, f"no answer within {limit:g} s")

    def _issue_again(self, job: int, why: str) -> Event:
        if self._journal.records[job].attempts >= self._spec.attempts:
            return self._end(Event(kind="lost", job=job, why=f"{why}, at {self._spec.attempts} attempts"))
        self._runner.withdraw(job)
        event = self._note(Event(kind="reissued", job=job, why=why))
        self._submit(self._journal.records[job])
        return event

    def _end(self, event: Event) -> Event:
        self._runner.withdraw(event.job)  # an attempt may still be under way
        del self._began[event.job]
        self._note(event)
        self._learn(event)
        self._fruitless += event.kind != "finished"
        if self._fruitless >= HOPELESS and not any(r.state == "finished" for r in self._journal.records.values()):
            raise TrainingError(f"none of {self._fruitless} jobs gave a reward; the last: {event.why}")
        return event

    def _note(self, event: Event) -> Event:
        self._journal.append(event)
        return event

    def _learn(self, event: Event) -> None:
        if event.kind == "finished":
            assert event.reward is not None  # written with every finished job
            self._proposer.learn(event.job, event.reward)
        elif event.kind == "failed" and self._spec.failed_as is not None:
            self._proposer.learn(event.job, self._spec.failed_as)
        elif event.kind in ("failed", "lost"):
            self._proposer.drop(event.job)

    def _again(self, event: Event) -> None:
        """Take the proposer through an event of the journal. Raises TrainingError when it would propose otherwise."""
        if event.kind != "launched":
            self._learn(event)
            return
        units = self._proposer.propose(event.job)
        if units is None or not np.allclose(units, event.units or (), rtol=0, atol=SAME):
            raise TrainingError(
                f"job {event.job} of the journal is not what this version proposes; the search cannot go on: export "
                "its best strategy, or begin anew under another journal"
            )
