"""Writers that wait together: each is answered for itself, and many calls are not as many transactions."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest
import sqlalchemy
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from aggregator.audit_log import verify
from aggregator.database import audit, reading, together, writing
from aggregator.group_commit import GroupCommit, Work
from aggregator.tables import Audit, Member
from cairn.errors import StorageFull, UnknownPlan

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SITES = [f"site-{number:02}" for number in range(40)]


def member(name: str) -> Member:
    return Member(name=name, role="site", state="enrolled", invited_at=NOW)


def enter(session: Session, name: str) -> None:
    """Enter a member, with its line in the audit; some names are not taken."""
    session.add(member(name))
    audit(session, NOW, "test", "enter", name)
    if name == "unknown":
        raise UnknownPlan("no such plan")


def names(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return list(session.scalars(select(Member.name).order_by(Member.name)))


def test_many_at_once_share_transactions_and_each_is_answered_for_itself(engine: Engine) -> None:
    with writing(engine) as session:
        session.add(member("twice"))
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    wanted = [*SITES[:20], "unknown", "twice", *SITES[20:]]
    all_there = threading.Barrier(len(wanted) + 1)

    def call(name: str) -> None:
        all_there.wait(60)
        together(engine, lambda session: enter(session, name))

    with ThreadPoolExecutor(len(wanted)) as pool, writing(engine):  # the first ones wait for this writer to end
        calls = {name: pool.submit(call, name) for name in wanted}
        all_there.wait(60)
    for name in SITES:
        calls[name].result()
    with pytest.raises(UnknownPlan, match="no such plan"):
        calls["unknown"].result()
    with pytest.raises(IntegrityError):
        calls["twice"].result()
    assert names(engine) == [*SITES, "twice"]
    with reading(engine) as session:
        assert set(session.scalars(select(Audit.subject))) == set(SITES)
    assert verify(engine).broken is None
    assert len(commits) < len(wanted)


def test_more_than_go_into_one_transaction_are_all_kept(engine: Engine) -> None:
    group = GroupCommit(most=2)

    def call(number: int) -> None:
        for turn in range(5):
            group.keep(partial(writing, engine), partial(enter, name=f"{turn}-{number:02}"))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call, range(12), timeout=60))
    assert names(engine) == [f"{turn}-{number:02}" for turn in range(5) for number in range(12)]


def test_what_ends_a_transaction_ends_that_of_nobody_else(engine: Engine) -> None:
    all_there = threading.Barrier(13)

    def call(work: Work) -> None:
        all_there.wait(60)
        together(engine, work)

    def fatal(session: Session) -> None:
        session.connection().invalidate()
        session.execute(text("SELECT 1"))

    with ThreadPoolExecutor(12) as pool, writing(engine):
        good = [pool.submit(call, partial(enter, name=name)) for name in SITES[:11]]
        bad = pool.submit(call, fatal)
        all_there.wait(60)
    with pytest.raises(SQLAlchemyError):
        bad.result()
    for one in good:
        one.result()
    assert names(engine) == SITES[:11]


def test_work_that_would_wait_for_itself_is_refused(engine: Engine) -> None:
    with pytest.raises(AssertionError, match="wait for itself"):
        together(engine, lambda _: together(engine, lambda _: None))
    together(engine, lambda session: enter(session, "north"))
    assert names(engine) == ["north"]


def test_work_that_follows_sees_what_went_before(engine: Engine) -> None:
    together(engine, lambda session: enter(session, "north"))

    def rename(session: Session) -> None:
        session.get_one(Member, "north").version = "1.2.3"

    together(engine, rename)
    with reading(engine) as session:
        assert session.get_one(Member, "north").version == "1.2.3"
        assert session.scalar(select(func.count()).select_from(Audit)) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # its limit of pages stands in for the disk
def test_a_full_disk_fails_the_call_and_the_next_one_is_taken(engine: Engine) -> None:
    def no_room(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")

    def room(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")

    def large(session: Session) -> None:
        session.add(Member(name="north", role="site", state="enrolled", invited_at=NOW, revoke_reason="x" * 100_000))

    event.listen(engine, "begin", no_room)
    with pytest.raises(StorageFull, match="no room"):
        together(engine, large)
    event.remove(engine, "begin", no_room)
    event.listen(engine, "begin", room)
    together(engine, large)
    assert names(engine) == ["north"]
