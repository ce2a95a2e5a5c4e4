"""A federation whose every part fails as a seed says: real intake, real outboxes and uplinks, one thread.

What is checked is DESIGN §7's invariant: the merged tables equal the exact sum of the acknowledged uploads, each once.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from io import StringIO

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import event, select

from aggregator import database, tables
from aggregator.intake.merging import load_merged
from aggregator.intake.tallies_service import TalliesService
from aggregator.members import enrolment_service, pki
from aggregator.server import ROLES
from cairn import codec
from cairn.errors import CairnError, IdentityError
from cairn.plan import Stage
from cairn.rpc import Admission, Identity
from cairn.tally import Tables, Tally, add, zeros
from cairn.v1 import tallies_pb2_grpc
from edge_node import audit
from edge_node.outbox import Outbox
from edge_node.status import make_log
from edge_node.uplink import Pace, Uplink
from tests.aggregator.conftest import Clock
from tests.aggregator.simulated import Federation, count, spec, tissue
from tests.faults.disk import Disk, Killed
from tests.faults.ground import Ground
from tests.faults.line import Broken, Line, Services

SITES = ("north", "south", "west")
AT_ONCE = Pace(*[timedelta(microseconds=1)] * 4)
MESSAGE = 700  # bytes of an upload's message, so that a tally takes several
HEALED_TURNS = 60
MOST_BROKEN = 25  # turns of a schedule
Variant = Callable[["World"], None]


class World:
    """Three hospitals, a line each, and an aggregator, all of which a seeded schedule breaks.

    ground  a database with its tables and nothing in them, and room for files
    broken  makes a part wrong, for the test of this test
    """

    def __init__(self, seed: int, ground: Ground, broken: Variant | None = None) -> None:
        self.rng = random.Random(seed)
        self.disk = Disk(self.rng, self.rng.choice((0.0, 0.002, 0.01, 0.03)), self.rng.choice((0.0, 0.01)))
        self.faulty = self.rng.choice((0.0, 0.2, 0.4, 0.6))
        self.clock = Clock(datetime(2026, 1, 1, tzinfo=UTC))
        self.later: list[Callable[[], object]] = []
        self.interleaved = 0.0
        self.stages = self.rng.choice((1, 1, 1, 2))
        self.folder = ground.cleared()
        self.federation = Federation(ground.engine, self.folder / "aggregator", self.clock)
        self.broken = broken
        self.federation.enrol(*SITES)
        self.authority = pki.make_authority("trial", self.clock())
        self.sites = {name: Site(self, name, number) for number, name in enumerate(SITES)}
        self.federation.create(
            spec(bands=("a", "b", "c"), dimensions=3, min_sites=self.rng.choice((1, 2, 3)), masking="off")
        )
        event.listen(ground.engine, "commit", self._before_commit)
        self._end = lambda: event.remove(ground.engine, "commit", self._before_commit)
        self.reopen()

    def reopen(self) -> None:
        """Start the aggregator, first or again: what was in its memory is gone."""
        self.disk.dead.discard("aggregator")
        self.federation.reopen()
        self.federation.uploads.tidy()
        if self.broken:
            self.broken(self)
        self.services = Services()
        servicer = TalliesService(self.federation.engine, self.federation.store, self.federation.uploads)
        tallies_pb2_grpc.add_TalliesServicer_to_server(servicer, self.services)  # type: ignore[arg-type]
        gate = enrolment_service.Gate(self.federation.engine, "trial", self.clock)
        self.admission = Admission(ROLES, gate, self._failed)

    def _failed(self, method: str, error: Exception, _who: Identity | None) -> None:
        unforeseen = not isinstance(error, (CairnError, Broken, OSError))
        if unforeseen:
            raise AssertionError(f"{method} failed") from error

    def _before_commit(self, _connection: object) -> None:
        self.disk.step()

    def serve(self, _site: str, call: Callable[[], bytes]) -> bytes:
        """Run a call in the aggregator, and now and then something else before it."""
        if self.rng.random() < self.interleaved:
            self.rng.choice((self.turn, self.pass_time, self.deliver_late))()
        try:
            with self.disk.running("aggregator"):
                return call()
        except Killed:
            if "aggregator" not in self.disk.dead:
                raise
            self.reopen()
            raise Broken(grpc.StatusCode.UNAVAILABLE) from None

    def turn(self) -> None:
        """Let the aggregator do its next step."""
        try:
            with self.disk.running("aggregator"):
                self.federation.coordinator.turn()
        except Killed:
            self.reopen()

    def pass_time(self) -> None:
        """Set the aggregator's clock on or back by up to a day."""
        self.clock.advance(timedelta(hours=self.rng.uniform(-24, 24)))

    def deliver_late(self) -> None:
        """Let a message arrive that was long on its way."""
        if self.later:
            self.later.pop(self.rng.randrange(len(self.later)))()

    def revoke(self) -> None:
        """Take a site out, now and then."""
        if self.rng.random() < 0.05:
            site = self.sites[self.rng.choice(SITES)]
            self.federation.revoke(site.name)
            site.shut_out = True

    def break_things(self) -> None:
        """Do what the seed says."""
        self.interleaved = 0.2
        with self.disk.failing():
            for _ in range(self.rng.randint(5, MOST_BROKEN)):
                site = self.rng.choice(list(self.sites.values()))
                acts = (site.turn, self.turn, self.pass_time, self.deliver_late, site.restart, self.reopen, self.revoke)
                [act] = self.rng.choices(acts, (12, 6, 1, 2, 1, 1, 1))
                act()
        self.interleaved = 0.0

    def go_straight(self) -> None:
        """Do what a federation does in which nothing fails but the one write that finds no room."""
        with self.disk.failing():
            for _ in range(HEALED_TURNS):
                for site in self.sites.values():
                    site.turn()
                self.turn()
                if self.over():
                    return

    def heal(self) -> None:
        """End all faults, and let everybody finish."""
        self.disk.kill = self.disk.full = self.faulty = 0.0
        self.disk.full_at = -1
        for site in self.sites.values():
            site.restart()
        self.reopen()
        for _ in range(HEALED_TURNS):
            if self.over():
                return
            for site in self.sites.values():
                site.turn()
            while self.later:
                self.deliver_late()
            self.turn()
            self.clock.advance(timedelta(hours=3))
        raise AssertionError(f"not over after {HEALED_TURNS} turns without faults: {self.federation.study().message}")

    def over(self) -> bool:
        """Whether all of the stages are merged and no site has anything to send."""
        with database.reading(self.federation.engine) as session:
            merged = len(session.scalars(select(tables.Merge.plan)).all())
        waiting = any(site.outbox.listed("pending") for site in self.sites.values() if not site.shut_out)
        return (merged >= self.stages and not waiting) or self.federation.study().state == "failed" or self.stuck()

    def stuck(self) -> bool:
        """Whether too many sites are revoked for the study to go on."""
        return sum(not site.shut_out for site in self.sites.values()) < self.federation.study().spec["min_sites"]

    def check(self) -> None:
        """Compare what was merged, the ledger, and what the sites were told. Raises AssertionError."""
        with database.reading(self.federation.engine) as session:
            rows = list(session.scalars(select(tables.Upload)))
            ledger = {(row.plan, row.site): row for row in rows}
            assert len(ledger) == len(rows), "a site is twice in the ledger for one plan"
            for merge in session.scalars(select(tables.Merge)):
                plan = session.get_one(tables.Plan, merge.plan)
                counted = [row for row in rows if row.id in merge.uploads]
                assert sorted(row.site for row in counted) == sorted(plan.sites_expected or []), "others were merged"
                assert len(set(merge.uploads)) == len(merge.uploads), "an upload was merged twice"
                stage = codec.decode_plan(plan.published).stage
                expected = zeros(stage)
                for row in counted:
                    add(expected, self.sites[row.site].counts(plan).tables)
                found = self.merged(merge, stage)
                for name, table in expected.items():
                    np.testing.assert_array_equal(found[name], table, err_msg=f"{plan.stage} {name}")
            for site in self.sites.values():
                for sealed in site.outbox.listed("sent"):
                    row = ledger.get((sealed.fingerprint.hex(), site.name))
                    assert row is not None, f"{site.name} was told that its {sealed.stage} counts, and it does not"
                    assert row.digest == sealed.digest().hex(), f"another file of {site.name} is in the ledger"
                for sealed in site.outbox.listed("parked"):
                    assert (sealed.fingerprint.hex(), site.name) not in ledger, "a tally set aside was counted"
                for line in audit.read(site.audit_path):
                    if line.event == "acknowledged":
                        assert ledger[line.plan, site.name].digest == line.digest, "acknowledged and not in the ledger"

    def merged(self, merge: tables.Merge, stage: Stage) -> Tables:
        """Read what was merged."""
        return load_merged(self.federation.store, merge.digest, merge.plan, stage).tables

    def happened(self) -> Counter[str]:
        """Count what the schedule did."""
        with database.reading(self.federation.engine) as session:
            merges = len(session.scalars(select(tables.Merge.plan)).all())
            uploads = len(session.scalars(select(tables.Upload.id)).all())
        faults = sum(site.faults for site in self.sites.values())
        return Counter(
            kills=self.disk.kills, full_disks=self.disk.refusals, line=faults, merges=merges, uploads=uploads
        )

    def close(self) -> None:
        """Let go of everything."""
        self._end()
        for site in self.sites.values():
            site.audit_log.close()


class Site:
    """One hospital: its folder, and what its process has in memory until it is killed."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world, self.name, self.number = world, name, number
        self.folder = world.folder / name
        self.audit_path = self.folder / "audit.jsonl"
        self.shut_out = False
        self.faults = 0
        key = ec.generate_private_key(ec.SECP256R1())
        with database.writing(world.federation.engine) as rows:
            member = rows.get_one(tables.Member, name)
            self.certificate = enrolment_service.certify(rows, world.authority, member, key.public_key(), world.clock())
        self.restart()

    def restart(self) -> None:
        """Come back from the disk alone."""
        world = self.world
        world.disk.dead.discard(self.name)
        if hasattr(self, "audit_log"):
            self.audit_log.close()
            self.faults += self.line.faults
        self.line = line = Line(
            self.name,
            self.certificate,
            lambda: world.admission,
            lambda: world.services,
            world.serve,
            world.disk,
            world.rng,
            world.faulty,
            world.later,
        )
        self.outbox = Outbox(self.folder / "outbox")
        self.audit_log = audit.AuditLog(self.audit_path, world.clock)
        self.uplink = Uplink(
            channel=lambda: line,  # type: ignore[arg-type,return-value]
            outbox=self.outbox,
            audit_log=self.audit_log,
            stop=threading.Event(),
            sent=lambda _: None,
            trouble=lambda _: None,
            log=make_log(StringIO()),
            pace=AT_ONCE,
        )

    def counts(self, plan: tables.Plan) -> Tally:
        """Count for a plan: always the same."""
        return Tally(bytes.fromhex(plan.fingerprint), counted(self.number, plan.published))

    def turn(self) -> None:
        """Seal a tally for the open plan, and send what is sealed."""
        if self.shut_out:
            return
        try:
            with self.world.disk.running(self.name):
                row = self.world.federation.open_plan()
                if row is not None and self.outbox.find(bytes.fromhex(row.fingerprint)) is None:
                    self.outbox.seal(codec.decode_plan(row.published), self.counts(row))
                for sealed in self.outbox.listed("pending"):
                    self.uplink.deliver(sealed)
        except Killed:
            if self.name not in self.world.disk.dead:
                raise
            self.restart()
        except OSError:
            pass  # a full disk: the site says so and tries again
        except IdentityError:
            self.shut_out = True


@cache
def counted(number: int, published: bytes) -> Tables:
    """Count a hospital's pixels for a plan."""
    return count(codec.decode_plan(published).stage, tissue(number, 300)[:3])


def run(seed: int, ground: Ground, broken: Variant | None = None) -> Counter[str]:
    """Run one schedule; returns what happened in it. Raises AssertionError when the invariant does not hold."""
    world = World(seed, ground, broken)
    try:
        world.break_things()
        world.heal()
        world.check()
        return world.happened()
    finally:
        world.close()


def run_full(number: int, ground: Ground) -> Counter[str]:
    """Run one study of three sites in which just this write or commit finds a full disk; see `Disk.full_at`.

    A number beyond the last write refuses none: then the count of refusals is 0. Raises AssertionError as `run`.
    """
    world = World(0, ground)
    world.disk.kill = world.disk.full = world.faulty = 0.0
    world.stages, world.disk.full_at = 1, number
    for site in world.sites.values():
        site.restart()
    try:
        world.go_straight()
        world.heal()
        world.check()
        return world.happened()
    finally:
        world.close()
