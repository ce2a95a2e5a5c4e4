"""Reports of many sites at once: each is answered for itself, and a thousand are not a thousand transactions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event

from aggregator.database import reading, writing
from aggregator.study.reports import Report, Reports
from aggregator.tables import Member, Plan, Progress
from cairn.errors import NotEnrolled, UnknownPlan, Unreachable

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PLAN = "ab" * 32
SITES = [f"site-{number:02}" for number in range(40)]


@pytest.fixture
def sites(engine: Engine) -> Engine:
    """Return a database with members and a plan."""
    plan = Plan(
        fingerprint=PLAN,
        study="map",
        stage="moments",
        window=0,
        published=b"",
        deadline=NOW,
        opened_at=NOW,
        state="open",
    )
    with writing(engine) as session:
        session.add(plan)
        session.add_all(Member(name=name, role="site", state="enrolled", invited_at=NOW) for name in SITES)
    return engine


def report(site: str, plan: str | None = PLAN, done: int = 7) -> Report:
    numbers = {"pixels_done": done, "pixels_total": 9, "files_done": 1, "files_total": 2, "raw_bytes": 3}
    return Report(site, plan, ["one thing"], numbers, NOW)


def test_many_at_once_are_written_together_and_each_is_answered_for_itself(sites: Engine) -> None:
    commits: list[object] = []
    event.listen(sites, "commit", commits.append)
    reports = Reports(sites)
    all_there = threading.Barrier(len(SITES) + 3)

    def note(one: Report) -> None:
        all_there.wait(60)
        reports.note(one)

    with ThreadPoolExecutor(len(SITES) + 2) as pool, writing(sites):  # the first ones wait for this writer to end
        good = [pool.submit(note, report(name, done=number)) for number, name in enumerate(SITES)]
        no_plan, no_site = pool.submit(note, report("site-00", "cd" * 32)), pool.submit(note, report("nobody"))
        all_there.wait(60)
    for one in good:
        one.result()
    with pytest.raises(UnknownPlan, match="cdcdcdcdcdcd"):
        no_plan.result()
    with pytest.raises(NotEnrolled, match="nobody"):
        no_site.result()
    with reading(sites) as session:
        kept = {name: session.get_one(Progress, (PLAN, name)) for name in SITES}
        assert [row.pixels_done for row in kept.values()] == list(range(len(SITES)))
        assert {row.pixels_total for row in kept.values()} == {9}
        assert session.get_one(Member, "site-03").problems == ["one thing"]
        assert session.get_one(Member, "site-03").working_fingerprint == PLAN
    assert len(commits) < len(SITES)


def test_of_two_reports_of_one_site_the_later_one_stays(sites: Engine) -> None:
    reports = Reports(sites)
    reports.note(report("site-00", done=1))
    reports.note(report("site-00", done=2))
    reports.note(report("site-00", None))
    with reading(sites) as session:
        assert session.get_one(Progress, (PLAN, "site-00")).pixels_done == 2
        assert session.get_one(Member, "site-00").working_fingerprint is None


def test_a_database_that_fails_fails_the_call_and_not_the_next_one(sites: Engine) -> None:
    reports = Reports(sites)

    def away(*_: object) -> None:
        raise Unreachable("the aggregator's database does not answer")

    event.listen(sites, "begin", away)
    with pytest.raises(Unreachable, match="does not answer"):
        reports.note(report("site-00"))
    event.remove(sites, "begin", away)
    reports.note(report("site-00"))
    with reading(sites) as session:
        assert session.get_one(Progress, (PLAN, "site-00")).pixels_done == 7
