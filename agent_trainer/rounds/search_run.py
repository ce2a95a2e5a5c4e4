"""A search at the middle: its jobs at the sites, each told of as a round; its journal lies in the run's folder.

The journal is the whole state: whoever is killed goes on where it ends, and the jobs that were under way begin again.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from agent_trainer.algorithms import Weights
from agent_trainer.rounds.errands import Errands
from agent_trainer.rounds.reports import RoundReport, SiteReport
from agent_trainer.rounds.run import Desk
from agent_trainer.rounds.server_app import Clock, Post
from agent_trainer.search.as_run import search_of
from agent_trainer.search.jobs import Search
from agent_trainer.search.journal import Event, Journal, Record
from agent_trainer.search.leaderboard import best, said
from agent_trainer.search.sites import Part, Sites, Stopped
from agent_trainer.search.spec import proposer
from agent_trainer.search.training import check
from cairn.errors import ConfigError
from cairn.run import RunSpec

JOURNAL: Final = "search.jsonl"  # the aggregator reads it by this name
ENDS: Final = ("finished", "failed", "lost")
NEVER: Final = timedelta(days=36_500)  # the errands have the deadline: a job may wait for a free site for long
STRATEGY: Final = "strategy/"  # before the values of a job's parameters, among its figures


class SearchRun:
    """A run that is a search; see `run.Run`.

    folder    of the run
    reported  jobs that the aggregator was told of; those that have ended since are told of first
    given     weights that all jobs begin with wherever they fit
    Raises ConfigError for a search, or settings, that cannot be.
    """

    def __init__(
        self,
        run: RunSpec,
        folder: Path,
        desk: Desk,
        reported: int = 0,
        given: Weights | None = None,
        clock: Clock = time,
    ) -> None:
        self._run, self._folder, self._desk, self._clock, self._given = run, folder, desk, clock, given
        self._spec = search_of(run)
        self._told = reported
        check(self._spec)
        if self._spec.algorithm == "dqn" and str(run.settings.get("replay", "")).startswith("sketched"):
            raise ConfigError('a search has no merged replay; take replay = "uniform" or "prioritised"')
        folder.mkdir(parents=True, exist_ok=True)

    def play(
        self, post: Post, sites: Callable[[], Mapping[int, str]], report: Callable[[RoundReport], None]
    ) -> tuple[str, str]:
        """Search until all jobs have ended or a person has asked to stop; returns the run's state and a sentence.

        sites  node id → site, of all that are registered
        Raises TooFewSites, TrainingError when no job has a reward, ConfigError for a journal that cannot be read,
        Unreachable.
        """
        spec = self._spec
        with Journal(self._folder / JOURNAL, spec) as journal:
            self._tell_again(journal, report)
            errands = Errands(self._run.name, spec, post, sites, self._given, self._clock)
            runner = Sites(
                errands,
                self._run.min_sites,
                spec.deadline.total_seconds(),
                self._desk.stopping,
                self._desk.log,
                self._clock.monotonic,
                self._clock.sleep,
            )
            patient = spec.model_copy(update={"deadline": NEVER})
            search = Search(patient, proposer(spec), journal, runner, self._clock.monotonic, runner.room)
            try:
                for event in search.run():
                    self._tell(event, journal, runner.told.get(event.job, ()), report)
            except Stopped:
                pass
            if self._desk.stopping() and _ended(journal) < spec.jobs:
                return "stopped", f"stopped by an operator after {_ended(journal)} jobs"
            first = best(journal.records.values())
        goal, value = spec.goal, first.reward or 0.0
        found = goal.said(value if goal.larger_is_better else -value)
        return "done", (f"all {_ended(journal)} jobs have ended; the best is job {first.job} with {goal.words} {found}")

    def _tell_again(self, journal: Journal, report: Callable[[RoundReport], None]) -> None:
        """Tell of the jobs whose end was written down and not told of before all was over."""
        ends = [event for event in journal.events if event.kind in ENDS]
        if journal.events:
            self._desk.log(f"the search goes on behind {len(ends)} jobs that have ended")
        for number, event in enumerate(ends, 1):
            if number > self._told:
                report(report_of(number, event, journal.records[event.job], ()))
        self._told = len(ends)

    def _tell(
        self, event: Event, journal: Journal, parts: tuple[Part, ...], report: Callable[[RoundReport], None]
    ) -> None:
        record = journal.records[event.job]
        if event.kind in ENDS:
            self._told += 1
            report(report_of(self._told, event, record, parts))
        if event.kind != "launched":
            self._desk.log(self._line(event, record, parts))

    def _line(self, event: Event, record: Record, parts: tuple[Part, ...]) -> str:
        values = ", ".join(f"{name} {said(value)}" for name, value in record.strategy.items())
        if event.kind == "reissued":
            return f"job {event.job} is given out again: {event.why}"
        if event.kind != "finished":
            return f"job {event.job} {event.kind}: {event.why} ({values})"
        goal, reward = self._spec.goal, event.reward or 0.0
        at = f" at {', '.join(part.site for part in parts)}" if parts else ""
        found = goal.said(reward if goal.larger_is_better else -reward)
        return f"job {event.job}{at}: {goal.words} {found} ({values})"


def report_of(number: int, event: Event, record: Record, parts: tuple[Part, ...]) -> RoundReport:
    """Tell of a job's end as of a round: its figures, its number and its strategy.

    number  of ends so far: jobs end in any order, and rounds rise
    """
    numbers = {
        f"{STRATEGY}{name}": float(value) for name, value in record.strategy.items() if isinstance(value, int | float)
    }
    metrics = {**(event.figures or {}), "job": float(event.job), **numbers}
    sites = tuple(SiteReport(part.site, part.state, part.reason, part.metrics, part.bytes) for part in parts)
    return RoundReport(number, event.seconds or 0.0, sites, metrics)


def _ended(journal: Journal) -> int:
    return sum(event.kind in ENDS for event in journal.events)
