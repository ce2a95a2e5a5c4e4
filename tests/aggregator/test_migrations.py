"""A database that an earlier version filled comes up with everything that was in it."""

from datetime import UTC, datetime
from importlib.resources import as_file, files

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError

from aggregator.database import open_database, reading, upgrade, writing
from aggregator.tables import Answer, Base, Certificate, Member, Plan, Upload

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
OLD_ROWS = (
    "INSERT INTO member (name, role, state, invited_at, token_hash, revoke_reason, version, problems)"
    " VALUES ('north', 'site', 'enrolled', '2026-01-01', 'x', '', '0.1.0', '[]'),"
    " ('ada', 'operator', 'enrolled', '2026-01-01', NULL, '', '', '[]')",
    "INSERT INTO certificate (serial, member, public_key, chain_pem, issued_at, not_after)"
    " VALUES ('1', 'north', 'k', 'p', '2026-01-01', '2027-01-01')",
    "INSERT INTO study (name, spec, state, window, created_at, message, results)"
    " VALUES ('map', '{}', 'moments', 0, '2026-01-01', '', '{}')",
    "INSERT INTO plan (fingerprint, study, stage, window, published, deadline, opened_at, state)"
    " VALUES ('f', 'map', 'moments', 0, 'bytes', '2026-01-02', '2026-01-01', 'open')",
    "INSERT INTO answer (plan, site, accepted, reason, at) VALUES ('f', 'north', true, '', '2026-01-01')",
    "INSERT INTO upload (plan, site, digest, size, raw_bytes, committed_at)"
    " VALUES ('f', 'north', 'd', 1, 0, '2026-01-01')",
)


@pytest.fixture
def old(database_url: str) -> Engine:
    """Make a database of revision 0001 with a row in every table that points at another."""
    engine = open_database(database_url)
    with as_file(files("aggregator") / "migrations") as folder, engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in OLD_ROWS:
            connection.execute(text(statement.replace("window", '"window"')))
    return engine


def test_a_filled_database_of_the_first_version_keeps_every_row_and_every_constraint(old: Engine) -> None:
    upgrade(old)
    with old.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with reading(old) as session:
        assert sorted(session.scalars(select(Member.name))) == ["ada", "north"]
        assert session.get_one(Member, "north").supernode_key is None
        assert session.scalars(select(Certificate.member)).all() == ["north"]
        assert session.scalars(select(Plan.study)).all() == ["map"]
        assert (session.scalars(select(Upload.site)).all(), session.scalars(select(Answer.site)).all()) == (
            ["north"],
            ["north"],
        )
    with pytest.raises(IntegrityError), writing(old) as session:
        session.add(Upload(plan="f", site="nobody", digest="e", size=1, committed_at=NOW))
    with pytest.raises(IntegrityError), writing(old) as session:
        session.add(Upload(plan="g", site="north", digest="e", size=1, committed_at=NOW))
    with pytest.raises(IntegrityError), writing(old) as session:
        session.add(Member(name="x", role="king", state="enrolled", invited_at=NOW))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError), writing(old) as session:
        session.add(Member(name="x", role="site", state="invited", invited_at=NOW, token_hash="x"))
    old.dispose()


def test_a_plan_may_be_of_a_run_and_a_member_the_trainer(old: Engine) -> None:
    upgrade(old)
    with writing(old) as session:
        session.add(Member(name="trainer", role="trainer", state="enrolled", invited_at=NOW))
        session.add(
            Plan(
                fingerprint="r",
                study="sella-run",
                stage="replay",
                window=2,
                published=b"",
                deadline=NOW,
                opened_at=NOW,
                state="open",
            )
        )
    with reading(old) as session:
        assert session.get_one(Plan, "r").study == "sella-run"
    old.dispose()
