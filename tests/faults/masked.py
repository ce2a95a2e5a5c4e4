"""Masked sums under a schedule of faults: messages lost, doubled, late and out of order, and everybody killed.

What is checked: every merge is the exact sum of the tallies of just the sites that it names, at least as many as the
study asks for; and no site's counts are in two sums.
"""

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import event, select

from aggregator import database, tables
from aggregator.intake.merging import load_merged
from aggregator.masking.service import view
from cairn import codec
from cairn.errors import CairnError, Unreachable
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Site, Sites
from tests.aggregator.simulated import Federation, spec
from tests.faults.disk import Disk, Killed
from tests.faults.ground import Ground

NAMES = ("a", "b", "c", "d")
MOST_BROKEN = 60  # turns of a schedule
HEALED_TURNS = 200


class World:
    """Four hospitals and an aggregator, all of which a seeded schedule breaks."""

    def __init__(self, seed: int, ground: Ground) -> None:
        self.rng = random.Random(seed)
        self.disk = Disk(self.rng, self.rng.choice((0.0, 0.005, 0.02, 0.05)), self.rng.choice((0.0, 0.01)))
        self.faulty = self.rng.choice((0.0, 0.1, 0.3, 0.5))
        self.clock = Clock(datetime.now(UTC))
        self.later: list[Callable[[], object]] = []
        self.old_views: list[Any] = []
        self.faults = 0
        folder = ground.cleared()
        self.federation = Federation(ground.engine, folder / "aggregator", self.clock)
        among = Sites(self.federation, NAMES, folder / "sites")
        self.sites = among.sites
        self.federation.create(spec(bands=("a", "b"), dimensions=2, min_sites=3, masking="on", min_count=1))
        for site in self.sites.values():
            site._send = self._over_the_line(site, site._send)  # type: ignore[method-assign]
            site._words = self._words_over_the_line(site, site._words)  # type: ignore[method-assign]
            site.restart()
        self._listening = (ground.engine, "commit", lambda _: self.disk.step())
        event.listen(*self._listening)

    def _over_the_line(self, site: Site, send: Callable[..., None]) -> Callable[..., None]:
        def sending(*message: Any) -> None:
            fault = self._fault(("lost", "answer", "twice", "late", "again later"))
            if fault == "lost":
                raise Unreachable("the line broke")
            if fault == "late":
                self.later.append(lambda: self._taken(send, message))
                raise Unreachable("the line broke")
            self._taken(send, message)
            if fault == "twice":
                self._taken(send, message)
            if fault == "again later":
                self.later.append(lambda: self._taken(send, message))
            if fault == "answer":
                raise Unreachable("the line broke")

        return sending

    def _words_over_the_line(self, site: Site, send: Callable[..., bool]) -> Callable[..., bool]:
        def sending(*message: Any) -> bool:
            fault = self._fault(("lost", "answer", "twice"))
            if fault == "lost":
                raise Unreachable("the line broke")
            for _ in range(2 if fault == "twice" else 1):
                self._taken(send, message)
            if fault == "answer":
                raise Unreachable("the line broke")
            return True

        return sending

    def _fault(self, kinds: tuple[str, ...]) -> str:
        if self.rng.random() >= self.faulty:
            return "none"
        self.faults += 1
        return self.rng.choice(kinds)

    def _taken(self, send: Callable[..., object], message: tuple[Any, ...]) -> None:
        """Let the aggregator take a message; when it is killed meanwhile, the line breaks."""
        try:
            with self.disk.running("aggregator"):
                send(*message)
        except Killed:
            if "aggregator" not in self.disk.dead:
                raise
            self.reopen()
            raise Unreachable("the aggregator is gone") from None

    def reopen(self) -> None:
        """Start the aggregator again: what was in its memory is gone."""
        self.disk.dead.discard("aggregator")
        self.federation.reopen()

    def look(self, site: Site) -> None:
        """Let a site do all that it can do, on what it is shown now or was shown before."""
        row = self.federation.open_plan()
        if row is None:
            return
        plan = codec.decode_plan(row.published)
        now = view(self.federation.engine, site.name)
        self.old_views.append((site.name, now))
        if self._fault(("stale",)) == "stale":
            now = self.rng.choice([seen for name, seen in self.old_views if name == site.name])
        try:
            with self.disk.running(site.name):
                sealed = site.outbox.seal(plan, site.tally(plan, row.fingerprint))
                for seen in now.sessions:
                    site.steps.answer(sealed, plan, seen)
        except Killed:
            if site.name not in self.disk.dead:
                raise
            self.restart(site)
        except (CairnError, OSError):
            pass  # the site's status says so, and it looks again

    def restart(self, site: Site) -> None:
        """Let a site come back from its disk alone."""
        self.disk.dead.discard(site.name)
        site.restart()

    def turn(self) -> None:
        """Let the aggregator do its next step."""
        try:
            with self.disk.running("aggregator"):
                self.federation.coordinator.turn()
        except Killed:
            self.reopen()

    def pass_time(self) -> None:
        """Let a step's patience pass, or the clock jump by up to a day."""
        self.clock.advance(self.rng.choice((timedelta(minutes=11), timedelta(hours=self.rng.uniform(-24, 24)))))

    def deliver_late(self) -> None:
        """Let a message arrive that was long on its way."""
        if self.later:
            with suppress(CairnError):  # nobody listens to the answer
                self.later.pop(self.rng.randrange(len(self.later)))()

    def break_things(self) -> None:
        """Do what the seed says."""
        with self.disk.failing():
            for _ in range(self.rng.randint(10, MOST_BROKEN)):
                site = self.rng.choice(list(self.sites.values()))
                acts: tuple[Callable[[], None], ...] = (
                    lambda one=site: self.look(one),  # type: ignore[misc]
                    self.turn,
                    self.pass_time,
                    self.deliver_late,
                    lambda one=site: self.restart(one),  # type: ignore[misc]
                    self.reopen,
                )
                [act] = self.rng.choices(acts, (12, 5, 1, 2, 1, 1))
                act()

    def heal(self) -> None:
        """End all faults, and let everybody finish."""
        self.disk.kill = self.disk.full = self.faulty = 0.0
        for site in self.sites.values():
            self.restart(site)
        self.reopen()
        for number in range(HEALED_TURNS):
            if self.merges():
                return
            for site in self.sites.values():
                self.look(site)
            while self.later:
                self.deliver_late()
            self.turn()
            if number % 8 == 7:
                self.clock.advance(timedelta(hours=25))
        raise AssertionError(f"not over after {HEALED_TURNS} turns without faults: {self.federation.study().message}")

    def merges(self) -> list[tables.Merge]:
        """Read what was merged."""
        with database.reading(self.federation.engine) as rows:
            return list(rows.scalars(select(tables.Merge)))

    def check(self) -> None:
        """Compare every sum with the tallies of those who are in it. Raises AssertionError."""
        with database.reading(self.federation.engine) as rows:
            for merge in self.merges():
                plan = rows.get_one(tables.Plan, merge.plan)
                decoded = codec.decode_plan(plan.published)
                who = plan.sites_expected or []
                assert len(set(who)) == len(who) >= 3
                uploads = rows.query(tables.Upload).filter_by(plan=merge.plan)
                assert sorted(row.site for row in uploads) == sorted(who)
                found = load_merged(self.federation.store, merge.digest, merge.plan, decoded.stage).tables
                tallies = [self.sites[name].tally(decoded, plan.fingerprint).tables for name in who]
                for name, cells in found.items():
                    np.testing.assert_array_equal(cells, sum(tally[name] for tally in tallies), err_msg=name)
                for name, site in self.sites.items():
                    told = site.steps.summed(bytes.fromhex(merge.plan))
                    assert not (told and name not in who), f"{name} believes that it is in a sum in which it is not"

    def happened(self) -> Counter[str]:
        """Count what the schedule did."""
        with database.reading(self.federation.engine) as rows:
            sessions = rows.query(tables.MaskingSession).count()
            uploads = rows.query(tables.Upload).count()
        return Counter(
            kills=self.disk.kills, full_disks=self.disk.refusals, line=self.faults, merges=len(self.merges()),
            uploads=uploads, sessions=sessions,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of everything."""
        event.remove(*self._listening)


def run(seed: int, ground: Ground) -> Counter[str]:
    """Run one schedule; returns what happened in it. Raises AssertionError when a sum is not exact."""
    world = World(seed, ground)
    try:
        world.break_things()
        world.heal()
        world.check()
        return world.happened()
    finally:
        world.close()
