"""The database: one schema on both kinds, one writer at a time, nothing half-written."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from aggregator.database import audit, open_database, reading, upgrade, writing
from aggregator.tables import Audit, Base, Member, Plan, Study, Upload
from cairn.errors import ConfigError, StorageFull, Unreachable

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def a_member(name: str = "north") -> Member:
    return Member(name=name, role="site", state="enrolled", invited_at=NOW)


def a_plan(fingerprint: str) -> Plan:
    return Plan(
        fingerprint=fingerprint,
        study="map",
        stage="moments",
        window=0,
        published=b"\0\xff",
        deadline=NOW,
        opened_at=NOW,
        state="open",
    )


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_upgrading_twice_changes_nothing(engine: Engine) -> None:
    with writing(engine) as session:
        session.add(a_member())
    upgrade(engine)
    with reading(engine) as session:
        assert session.get_one(Member, "north").state == "enrolled"


def test_two_processes_that_upgrade_an_empty_database_at_once_both_succeed(database_url: str) -> None:
    code = "import sys; from aggregator.database import *; e = open_database(sys.argv[1]); upgrade(e); e.dispose()"
    starters = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(2)]
    assert [starter.wait(60) for starter in starters] == [0, 0]


def test_a_database_of_a_newer_version_is_refused_with_one_sentence(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer version of Cairn"):
        upgrade(engine)


def test_moments_come_back_in_utc_whatever_zone_they_went_in(engine: Engine) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
    with writing(engine) as session:
        session.add(Member(name="east", role="site", state="invited", invited_at=elsewhere))
    with reading(engine) as session:
        found = session.get_one(Member, "east").invited_at
        assert (found, found.tzinfo) == (NOW, UTC)
        assert session.scalar(select(Member.name).where(Member.invited_at > NOW - timedelta(seconds=1))) == "east"
        assert session.scalar(select(Member.name).where(Member.invited_at > NOW)) is None


def test_a_moment_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(StatementError, match="without a time zone"), writing(engine) as session:
        session.add(Member(name="east", role="site", state="invited", invited_at=datetime(2026, 1, 1)))


def test_the_audit_can_neither_be_changed_nor_shortened(engine: Engine) -> None:
    with writing(engine) as session:
        audit(session, NOW, "aggregator", "invite", "north", role="site")
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="the audit only grows"), engine.begin() as connection:
            connection.execute(text(statement))
    with reading(engine) as session:
        row = session.scalars(select(Audit)).one()
        assert (row.actor, row.action, row.subject, row.detail) == ("aggregator", "invite", "north", {"role": "site"})


def test_the_ledger_takes_one_upload_for_a_plan_and_a_site(engine: Engine) -> None:
    with writing(engine) as session:
        session.add_all([a_member(), Study(name="map", spec={}, state="moments", window=0, created_at=NOW)])
        session.flush()
        session.add(a_plan("a" * 64))
        session.flush()
        session.add(Upload(plan="a" * 64, site="north", digest="b" * 64, size=1, committed_at=NOW))
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.add(Upload(plan="a" * 64, site="north", digest="c" * 64, size=1, committed_at=NOW))


def test_a_row_that_points_nowhere_is_refused(engine: Engine) -> None:
    with pytest.raises(IntegrityError), writing(engine) as session:
        session.add(Upload(plan="a" * 64, site="north", digest="b" * 64, size=1, committed_at=NOW))


def test_a_state_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO member (name, role, state, invited_at, revoke_reason, version, problems) "
                "VALUES ('x', 'site', 'asleep', '2026-01-01', '', '', '[]')"
            )
        )


def test_a_block_that_fails_changes_nothing(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="stop"), writing(engine) as session:  # noqa: PT012
        session.add(a_member())
        session.flush()
        raise RuntimeError("stop")
    with reading(engine) as session:
        assert session.get(Member, "north") is None


def test_a_check_and_the_change_that_rests_on_it_are_one_step_between_writers(engine: Engine) -> None:
    with writing(engine) as session:
        session.add(Study(name="map", spec={}, state="moments", window=0, created_at=NOW))

    def count_up(_writer: int) -> None:
        for _ in range(20):
            with writing(engine) as session:
                study = session.get_one(Study, "map")
                study.window += 1

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(count_up, range(4)))
    with reading(engine) as session:
        assert session.get_one(Study, "map").window == 80


def test_a_reader_sees_one_state_and_never_waits_for_a_writer(engine: Engine) -> None:
    with writing(engine) as session:
        session.add(a_member())
    with writing(engine) as session:
        session.add(a_member("south"))
        session.flush()
        with reading(engine) as reader:
            assert reader.scalar(select(func.count()).select_from(Member)) == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://host/name", "'mysql'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_database(url)


def test_a_database_that_does_not_answer_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    engine = open_database(f"postgresql+psycopg://cairn:geheim@/cairn?host={tmp_path}")
    with pytest.raises(Unreachable, match="does not answer") as raised:
        upgrade(engine)
    assert "geheim" not in str(raised.value)


def test_a_database_that_went_away_is_one_sentence_and_answers_again_when_it_is_back(postgresql: str) -> None:
    engine = open_database(postgresql)
    with pytest.raises(Unreachable, match="does not answer"), reading(engine) as session:  # noqa: PT012
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        killer = open_database(postgresql)
        with killer.begin() as other:
            other.execute(text(f"SELECT pg_terminate_backend({backend})"))
        killer.dispose()
        session.execute(text("SELECT 1"))
    with reading(engine) as session:
        assert session.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        upgrade(open_database(f"sqlite:///{tmp_path / 'nowhere' / 'cairn.db'}"))


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cairn.db").write_bytes(b"these are not the bytes of a database, and there are many of them" * 100)
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    with pytest.raises(ConfigError, match="damaged or no database"):
        upgrade(engine)
    engine.dispose()


def test_a_full_disk_changes_nothing_and_is_said_in_one_sentence(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    upgrade(engine)
    with engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()

    @sqlalchemy.event.listens_for(engine, "begin")
    def no_room(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StorageFull, match="no room"), writing(engine) as session:
        session.add(Study(name="map", spec={"x": "y" * 1_000_000}, state="moments", window=0, created_at=NOW))
    with reading(engine) as session:
        assert session.get(Study, "map") is None
    engine.dispose()


def test_what_was_committed_survives_a_kill_and_what_was_not_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cairn.db'}"
    code = (
        "import os, signal, sys\n"
        "from datetime import UTC, datetime\n"
        "from aggregator.database import *\n"
        "from aggregator.tables import *\n"
        "engine = open_database(sys.argv[1]); upgrade(engine); now = datetime.now(UTC)\n"
        "with writing(engine) as s: s.add(Member(name='north', role='site', state='enrolled', invited_at=now))\n"
        "with writing(engine) as s:\n"
        "    s.add(Member(name='south', role='site', state='enrolled', invited_at=now)); s.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, url], timeout=60, check=False).returncode == -9
    engine = open_database(url)
    upgrade(engine)
    with reading(engine) as session:
        assert session.scalars(select(Member.name)).all() == ["north"]
    engine.dispose()


def test_a_copied_file_is_a_backup(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    upgrade(engine)
    with writing(engine) as session:
        session.add(a_member())
    engine.dispose()  # the last connection folds the write-ahead log into the file
    shutil.copy(tmp_path / "cairn.db", tmp_path / "backup.db")
    backup = open_database(f"sqlite:///{tmp_path / 'backup.db'}")
    with reading(backup) as session:
        assert session.scalars(select(Member.name)).all() == ["north"]
    backup.dispose()
