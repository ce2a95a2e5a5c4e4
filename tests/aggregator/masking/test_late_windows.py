"""A window that was sealed too late for its own sum is in a later one, and in the ledger once."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from aggregator import database, tables
from aggregator.database import open_database, upgrade
from aggregator.intake.merging import load_merged
from aggregator.masking import ledger
from aggregator.masking.sums import Sums, Wanted
from aggregator.study.records import publish
from cairn import codec
from cairn.errors import MaskingError
from cairn.pixels import PixelLevels
from cairn.plan import MomentsPlan, Plan, Secrecy, UpdatePlan, fingerprint
from cairn.tally import Tables, add
from edge_node.outbox import Sealed
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Sites
from tests.aggregator.simulated import Federation

ALL = ("a", "b", "c", "d")
STAGE = MomentsPlan(PixelLevels(("dapi", "keratin", "cd45"), 0.0, 1.0))


class Windows:
    """One stage, window after window, without the study around it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        engine = open_database(f"sqlite:///{folder}/aggregator.sqlite")
        upgrade(engine)
        self.federation, self.clock = Federation(engine, folder / "aggregator", clock), clock
        self.sites = Sites(self.federation, ALL, folder / "sites")
        self.sums = Sums(engine, self.federation.store, folder / "spool", clock, lambda: None)

    def plan(self, window: int) -> Plan:
        return Plan("breast", window, STAGE, Secrecy(64, 400, 0))

    def name(self, window: int) -> bytes:
        return fingerprint(codec.encode_plan(self.plan(window)))

    def sum(self, window: int, *silent: str) -> Tables:
        """Publish a window, and let those who are not silent come to its sum."""
        now, of = self.clock(), self.name(window).hex()
        with database.writing(self.federation.engine) as rows:
            publish(rows, self.plan(window), now + timedelta(hours=1), now)
        self.clock.advance(timedelta(hours=1))
        wanted = Wanted(ALL, 3, now + timedelta(hours=1), timedelta(minutes=10))
        for _ in range(40):
            with database.reading(self.federation.engine) as rows:
                row = rows.get_one(tables.Plan, of)
                merge = rows.get(tables.Merge, of)
            if merge is not None:
                return load_merged(self.federation.store, merge.digest, of, STAGE).tables
            for name, site in self.sites.sites.items():
                if name not in silent:
                    site.look()
            if not self.sums.turn(row, wanted).changed:
                self.clock.advance(timedelta(minutes=3))
        raise AssertionError(f"window {window} came to no sum")

    def tally(self, name: str, window: int) -> Tables:
        return self.sites.sites[name].tally(self.plan(window), self.name(window).hex()).tables

    def park(self, name: str, window: int) -> Sealed:
        """Seal a window at a site and put it away, as the node does when its plan is over."""
        site, plan = self.sites.sites[name], self.plan(window)
        sealed = site.outbox.seal(plan, site.tally(plan, self.name(window).hex()))
        return site.outbox.move(sealed, "parked")

    def ledger(self, window: int) -> list[str]:
        with database.reading(self.federation.engine) as rows:
            query = select(tables.Upload.site).filter_by(plan=self.name(window).hex())
            return sorted(rows.scalars(query))

    def late(self, window: int) -> tuple[bytes, ...]:
        with database.reading(self.federation.engine) as rows:
            return ledger.of_plan(rows, self.name(window).hex())[-1].session.late


@pytest.fixture
def windows(tmp_path: Path, clock: Clock) -> Iterator[Windows]:
    made = Windows(tmp_path, clock)
    yield made
    made.federation.engine.dispose()


def summed(*found: Tables) -> Tables:
    total = {name: table.copy() for name, table in found[0].items()}
    for other in found[1:]:
        add(total, other)
    return total


def check_equal(found: Tables, expected: Tables) -> None:
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name], table, err_msg=name)


def test_a_window_sealed_offline_joins_the_next_sum_and_is_booked_once(windows: Windows) -> None:
    check_equal(windows.sum(0, "d"), summed(*(windows.tally(name, 0) for name in "abc")))
    assert windows.ledger(0) == ["a", "b", "c"]
    windows.park("d", 0)
    expected = summed(*(windows.tally(name, 1) for name in ALL), windows.tally("d", 0))
    check_equal(windows.sum(1), expected)
    assert windows.late(1) == (windows.name(0),)
    assert windows.ledger(0) == windows.ledger(1) == list(ALL)
    check_equal(windows.sum(2), summed(*(windows.tally(name, 2) for name in ALL)))
    assert windows.late(2) == (), "nobody lacks a window any more"
    assert windows.sites.sites["d"].steps.summed(windows.name(0))


def test_a_site_lost_on_the_way_sets_its_window_free_by_the_votes_and_it_joins_the_next_sum(windows: Windows) -> None:
    lost = windows.sites.sites["d"]
    lost.lose_words = True  # masked and signed for, and never there
    check_equal(windows.sum(0), summed(*(windows.tally(name, 0) for name in "abc")))
    (memory,) = lost.memories.of_plan(windows.name(0))
    assert memory.tally
    windows.park("d", 0)
    lost.lose_words = False
    check_equal(windows.sum(1), summed(*(windows.tally(name, 1) for name in ALL), windows.tally("d", 0)))
    assert windows.ledger(0) == list(ALL)


def test_a_window_that_is_in_a_sum_is_taken_into_no_other(windows: Windows) -> None:
    windows.sum(0, "d")
    windows.park("a", 0)
    site = windows.sites.sites["a"]
    shutil.rmtree(site.folder / "masking")  # restored from a backup that lacks what it remembers
    site.restart()
    with pytest.raises(MaskingError, match="is in a sum already"):
        windows.sum(1, "d")


def test_a_window_stays_where_it_is_when_its_stage_was_another(windows: Windows) -> None:
    windows.sum(0, "d")
    sealed = windows.park("d", 0)
    other = Plan("breast", 1, MomentsPlan(PixelLevels(("dapi", "keratin", "cd45"), 0.0, 2.0)), Secrecy(64, 400, 0))
    now = windows.clock()
    with database.writing(windows.federation.engine) as rows:
        publish(rows, other, now + timedelta(hours=1), now)
        publish(rows, Plan("breast", 2, UpdatePlan(3, 20, 1.0, 5), Secrecy(64, 400, 0)), now + timedelta(hours=1), now)
    wanted = Wanted(ALL, 3, now, timedelta(minutes=10))
    for window in (1, 2):
        with database.reading(windows.federation.engine) as rows:
            row = rows.scalars(select(tables.Plan).filter_by(window=window)).one()
        windows.sums.turn(row, wanted)
        with database.reading(windows.federation.engine) as rows:
            assert ledger.of_plan(rows, row.fingerprint)[0].session.late == ()
    assert sealed.path.exists()
