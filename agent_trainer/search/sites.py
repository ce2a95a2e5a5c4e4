"""Jobs of a search at the sites of a federation: which site gets which job, and what becomes of those that fail."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from agent_trainer.search.jobs import Answer, Job
from cairn.errors import CairnError, TooFewSites, Unreachable

FAULTS: Final = 3  # jobs in a row that fail at a site through the site itself, after which it gets no more
REST_S: Final = 30.0  # for which a site gets nothing when a job was lost on its way there: half a deadline at most
POLL_S: Final = (0.05, 0.5)  # between two looks for answers: at first, and in a long job
Blame: TypeAlias = Literal["", "strategy", "site", "way", "policy"]


class Stopped(Exception):
    """A person has asked the search to stop, and no site works on a job any more."""


@dataclass(frozen=True)
class Part:
    """A site's part in a job.

    state   "trained", "late" or "failed"
    reason  one sentence when not trained
    """

    site: str
    state: str = "trained"
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0


@dataclass(frozen=True)
class Ended:
    """What became of a job at the sites that had it.

    reward  None when there is none; then `blame` says what it lay at: the strategy, which would fail elsewhere too, a
            site that cannot do it, one that was lost on the way, or one that takes no part
    why     a sentence, where there is no reward
    """

    parts: tuple[Part, ...]
    reward: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    blame: Blame = ""
    why: str = ""

    @property
    def culprits(self) -> list[str]:
        """The sites that did not train."""
        return [part.site for part in self.parts if part.state != "trained"]


class Errands(Protocol):
    """The way to the sites."""

    def known(self) -> Collection[str]:
        """Name the sites that may train."""

    def here(self) -> Collection[str]:
        """Name those of them that are online."""

    def begin(self, job: Job, sites: Sequence[str]) -> None:
        """Give a job to sites that are here. Raises CairnError when nobody could do it."""

    def ended(self) -> Mapping[int, Ended]:
        """Return the jobs that have ended since the last call."""

    def drop(self, job: int) -> None:
        """Forget a job; unknown ones are no error."""


class Sites:
    """A runner whose workers are sites; see `jobs.Runner`. A job waits until enough of them are free.

    per_job     sites of a job
    deadline_s  of a job; also how long the search waits while too few sites are there for any
    stopped     tells whether a person has asked the search to stop: what sites work on is waited for, nothing begins
    log         told what people should know of sites
    told        what became of each job at its last sites
    """

    def __init__(
        self,
        errands: Errands,
        per_job: int,
        deadline_s: float,
        stopped: Callable[[], bool],
        log: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._errands, self._per_job, self._deadline_s = errands, per_job, deadline_s
        self._stopped, self._log, self._now, self._sleep = stopped, log, now, sleep
        self._queue: list[Job] = []
        self._at: dict[int, tuple[Job, tuple[str, ...]]] = {}
        self._ready: list[Answer] = []
        self._tried: dict[int, set[str]] = {}  # sites at which a job was lost or failed
        self._given: Counter[str] = Counter()  # jobs of each site: the one with the fewest is next
        self._faults: Counter[str] = Counter()  # in a row
        self._out: dict[str, str] = {}  # sites that get no more jobs, and why
        self._resting: dict[str, float] = {}  # sites, and until when
        self._slots = 0
        self._hopeful = now()  # when there was work last
        self.told: dict[int, tuple[Part, ...]] = {}

    def room(self) -> int:
        """Return how many jobs may be in flight now; one waits where no site is there, none begins when stopped."""
        return 0 if self._stopped() else max(1, self._slots)

    def submit(self, job: Job) -> None:
        """Give a job to sites as soon as enough of them are free."""
        self._queue.append(job)

    def withdraw(self, job: int) -> None:
        """Give up a job."""
        self._queue = [one for one in self._queue if one.number != job]
        self._at.pop(job, None)
        self._errands.drop(job)

    def answers(self, timeout_s: float) -> list[Answer]:
        """Wait for a job's end, or until there are more sites than before.

        Raises TooFewSites when there is no hope for more, Stopped, Unreachable.
        """
        began = self._now()
        while True:
            for number, ended in self._errands.ended().items():
                self._judge(number, ended)
            more = self._count_slots()
            if not self._stopped():
                self._give()
            found, self._ready = self._ready, []
            waited = self._now() - began
            if found or more or waited >= timeout_s:
                return found
            if self._stopped() and not self._at:
                raise Stopped
            self._check_hope()
            self._sleep(min(max(POLL_S[0], waited / 100), POLL_S[1]))

    def _count_slots(self) -> bool:
        """Count the jobs that the sites could do at a time; returns whether these have become more."""
        before, self._slots = self._slots, len(self._usable()) // self._per_job
        return self._slots > before

    def _usable(self) -> list[str]:
        now = self._now()
        return [site for site in self._errands.here() if site not in self._out and self._resting.get(site, now) <= now]

    def _give(self) -> None:
        """Give jobs to free sites, in their order."""
        for job in list(self._queue):
            if not (sites := self._choose(job.number)):
                continue  # a later job may fit where this one has failed already
            self._queue.remove(job)
            try:
                self._errands.begin(job, sites)
            except Unreachable:
                raise
            except CairnError as error:
                self._ready.append(Answer(job.number, why=str(error)))
            else:
                self._given.update(sites)
                self._at[job.number] = job, sites

    def _choose(self, job: int) -> tuple[str, ...]:
        """Choose free sites for a job, not those where it failed unless there are no others; () when too few are."""
        usable, tried = self._usable(), self._tried.get(job, set())
        if len(usable) - len(tried & set(usable)) < self._per_job:
            tried = set()
        busy = {site for _, sites in self._at.values() for site in sites}
        free = sorted((site for site in usable if site not in busy | tried), key=lambda site: (self._given[site], site))
        return tuple(free[: self._per_job]) if len(free) >= self._per_job else ()

    def _judge(self, number: int, ended: Ended) -> None:
        job, sites = self._at.pop(number)
        self.told[number] = ended.parts
        self._hopeful = self._now()
        for site in sites:
            if ended.blame == "" or site not in ended.culprits:
                self._faults[site] = 0 if ended.blame in ("", "strategy") else self._faults[site]
                continue
            if ended.blame in ("site", "way"):
                self._tried.setdefault(number, set()).add(site)
            if ended.blame == "way":
                self._resting[site] = self._now() + min(REST_S, self._deadline_s / 2)
            if ended.blame == "site":
                self._faults[site] += 1
            if ended.blame == "policy" or self._faults[site] >= FAULTS:
                self._out[site] = ended.why
                self._log(f"{site} gets no more jobs: {ended.why}")
        if ended.blame == "policy":
            self._queue.insert(0, job)  # nobody has tried it
        elif ended.blame in ("site", "way"):
            self._ready.append(Answer(number, why=ended.why, lost=True))
        else:
            self._ready.append(Answer(number, ended.reward, ended.why, figures=ended.figures))

    def _check_hope(self) -> None:
        """Raise TooFewSites when no site works, and none has been able to begin for too long, or ever will."""
        if self._at or len(self._usable()) >= self._per_job:
            self._hopeful = self._now()
            return
        known = self._errands.known()
        reasons = "; ".join(dict.fromkeys(self._out.values()))
        if known and len(set(known) - set(self._out)) < self._per_job:
            raise TooFewSites(
                f"a job needs {self._per_job} sites, and {len(set(known) - set(self._out))} of {len(known)} can still "
                f"do one ({reasons or 'no more are enrolled'}); resume the search when that has changed"
            )
        if self._now() - self._hopeful >= self._deadline_s:
            here = len(self._usable())
            raise TooFewSites(
                f"a job needs {self._per_job} sites, and for {self._deadline_s:.0f} s {here} could do one"
                f"{f' ({reasons})' if reasons else ''}; resume the search when they are back"
            )
