"""Sites that send without end: processes around the edge node's own outbox, and what their aggregator made of it."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import select

from aggregator import tables
from cairn import enrolment, invitation
from cairn.errors import Unreachable
from cairn.files import write_atomically
from cairn.study import StudySpec
from cairn.tally import add, zeros
from deploy.processes import run
from tests.system.observing import Observed, assert_same
from tests.system.uploading import tally_of, upload

SITES = ("site-1", "site-2", "site-3")
STAGES = ("moments", "ranges", "counts")
OPEN = 6  # studies that are collected at a time
PATIENCE_S = 300.0
POLL_S = 0.05


@dataclass
class Senders:
    """Three sites' processes, and a thread that keeps studies open and hands their plans to the sites.

    seen  the aggregator's folder and its operator, in this machine's view
    """

    seen: Observed
    folder: Path
    sites: list[BaseProcess] = field(default_factory=list)
    studies: int = 0
    failed: list[str] = field(default_factory=list)
    _more: threading.Event = field(default_factory=threading.Event)
    _end: threading.Event = field(default_factory=threading.Event)
    _supplier: threading.Thread | None = None

    def start(self, address: str) -> None:
        """Enrol the sites and let them send."""
        plans = self.folder / "plans"
        plans.mkdir(parents=True)
        context = multiprocessing.get_context("spawn")
        for site in SITES:
            place = self.folder / site
            place.mkdir()
            text = place / "invitation.txt"
            run(["aggregator", "invite", site, "--profile", str(self.seen.running.profile), "--out", str(text)])
            enrolment.enrol(invitation.parse(text.read_text(encoding="utf-8")), place / "identity")
            self.sites.append(context.Process(target=upload, args=(site, place, plans, address), daemon=True))
            self.sites[-1].start()
        self._more.set()
        self._supplier = threading.Thread(target=self._supply, args=(plans,), daemon=True)
        self._supplier.start()

    def stop(self) -> None:
        """End sites and supply."""
        self._end.set()
        if self._supplier:
            self._supplier.join()
        for site in self.sites:
            site.kill()
            site.join()

    def _supply(self, plans: Path) -> None:
        while not self._end.wait(POLL_S):
            try:
                self._hand_on(plans)
            except Exception as error:  # said by whoever waits
                self.failed.append(repr(error))
                raise

    def _hand_on(self, plans: Path) -> None:
        with self.seen.session() as session:
            states = session.scalars(select(tables.Study.state)).all()
            asked = select(tables.Plan).where(tables.Plan.state == "open", tables.Plan.stage.in_(STAGES))
            wanted = {plan.fingerprint: plan.published for plan in session.scalars(asked)}
        there = {path.name: path for path in plans.iterdir()}
        for name in there.keys() - wanted.keys():
            there[name].unlink()
        for name in wanted.keys() - there.keys():
            with write_atomically(plans / name) as file:
                file.write(wanted[name])
        self.studies = len(states)  # also one whose answer did not arrive
        if self._more.is_set() and sum(state in STAGES for state in states) < OPEN:
            with suppress(Unreachable):  # while the aggregator is being upgraded
                self.seen.create(a_study(self.studies))

    def wait_for_acknowledged(self, count: int) -> None:
        """Wait until so many more uploads are acknowledged than now."""
        wanted = len(self.acknowledged()) + count
        self._wait(f"{count} more uploads", lambda: len(self.acknowledged()) >= wanted)

    def finish(self) -> None:
        """Ask for no more studies, and wait until all that were asked for have all tallies."""
        self._more.clear()

        def none_is_open() -> bool:
            with self.seen.session() as session:
                states = session.scalars(select(tables.Study.state)).all()
            return len(states) == self.studies and not set(states) & set(STAGES)

        self._wait("the end of all studies", none_is_open)

    def _wait(self, what: str, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not so():
            assert not self.failed, self.failed
            assert all(site.is_alive() for site in self.sites), [
                (self.folder / site / "log").read_text(encoding="utf-8")[-500:] for site in SITES
            ]
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
            self._end.wait(POLL_S)

    def acknowledged(self) -> list[tuple[datetime, str, str, str]]:
        """List what the sites' audit logs say was acknowledged: when, by which site, plan and digest; in order."""
        found = []
        for site in SITES:
            path = self.folder / site / "audit.jsonl"
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
                said = json.loads(line)
                if said["event"] == "acknowledged":
                    found.append((datetime.fromisoformat(said["time"]), site, said["plan"], said["digest"]))
        return sorted(found)

    def troubled(self) -> list[str]:
        """Name the sites that said that an upload had to wait."""
        logs = {site: self.folder / site / "log" for site in SITES}
        return [site for site, log in logs.items() if "trying again" in log.read_text(encoding="utf-8")]

    def plans(self) -> set[str]:
        """Name the plans for which anything was acknowledged."""
        return {plan for _, _, plan, _ in self.acknowledged()}

    def lost(self) -> int:
        """Check each sum against what the sites sent; gives how many acknowledged uploads are in none, or not whole."""
        entered = set()
        for number in range(self.studies):
            plans = self.seen.plans(f"study-{number}")
            for stage in STAGES:
                fingerprint, plan = plans[stage, 0]
                ledger = self.seen.uploads(fingerprint)
                assert sorted(row.site for row in ledger) == sorted(SITES)
                expected = zeros(plan.stage)
                for site in SITES:
                    add(expected, tally_of(site, bytes.fromhex(fingerprint), plan.stage).tables)
                assert_same(self.seen.merged(f"study-{number}", stage), expected)
                entered |= {(row.site, fingerprint, row.digest) for row in ledger}
        said = [entry[1:] for entry in self.acknowledged()]
        assert len(said) == len(set(said)), "an upload was acknowledged twice"
        return len(set(said) ^ entered)


def a_study(number: int) -> StudySpec:
    """A study whose counts are a tally of some megabytes that nothing makes smaller."""
    return StudySpec(
        name=f"study-{number}",
        bands=("a", "b", "c", "d"),
        min_sites=len(SITES),
        depth=5,
        width=100_000,
        top_k=100,
        masking="off",  # a masked tally is sent when all sites are there, not site by site
    )
