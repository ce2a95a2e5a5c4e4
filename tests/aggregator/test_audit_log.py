"""The aggregator's audit: a chain, like a site's."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from aggregator import audit_log
from aggregator.commands import app
from aggregator.database import audit, open_database, reading, upgrade, writing
from aggregator.members.initialise import initialise
from cairn import chain

NOW = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)


def fill(engine: Engine, number: int = 5) -> None:
    with writing(engine) as session:  # two in one transaction, the others in one each
        audit(session, NOW, "operator/ada", "invite", "north", zone="Ä", role="site")
        audit(session, NOW, "aggregator", "merge", "ab" * 32, uploads=(3, 1, 2), digest="cd" * 32)
    for count in range(number - 2):
        with writing(engine) as session:
            audit(session, NOW, "site/north", "upload", f"plan{count}", size=2**40 + count, masked=True, reason=None)


def test_every_row_holds_the_digest_of_the_row_before_in_both_kinds_of_database(engine: Engine) -> None:
    fill(engine)
    found = audit_log.verify(engine)
    assert (found.lines, found.before, found.broken) == (5, 0, None)
    with reading(engine) as session:
        exported = list(audit_log.lines(session))
    assert chain.verify(exported) == found
    assert json.loads(exported[0])["previous"] == chain.FIRST
    assert [json.loads(line)["action"] for line in exported] == ["invite", "merge", "upload", "upload", "upload"]
    assert audit_log.verify(engine, known=chain.digest(exported[2])).whole
    assert not audit_log.verify(engine, known="ab" * 32).whole


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("UPDATE audit SET actor = 'operator/eve' WHERE id = 2", 3),
        ("UPDATE audit SET detail = '{}' WHERE id = 3", 4),
        ("UPDATE audit SET previous = NULL WHERE id = 4", 4),
        ("DELETE FROM audit WHERE id = 2", 2),
    ],
)
def test_a_row_that_was_changed_past_the_triggers_breaks_the_chain(tmp_path: Path, change: str, broken: int) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    upgrade(engine)
    fill(engine)
    with engine.begin() as connection:
        for trigger in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER audit_refuses_{trigger}"))
        connection.execute(text(change))
    assert audit_log.verify(engine).broken == broken
    engine.dispose()


def test_rows_from_before_the_chain_stand_at_its_beginning(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    upgrade(engine)
    columns, values = "at, actor, action, subject, detail", "'2026-01-01 00:00:00.000000', 'a', 'b', 'c', '{}'"
    old = f"INSERT INTO audit ({columns}) VALUES ({values})"
    with engine.begin() as connection:
        connection.execute(text(old))
        connection.execute(text(old))
    fill(engine)
    found = audit_log.verify(engine)
    assert (found.lines, found.before, found.broken) == (7, 2, None)
    assert "2 of them from before the chain began" in chain.show(found, as_json=False)
    engine.dispose()


def test_the_audit_is_verified_and_exported_at_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    initialise(folder, "tissue", ["127.0.0.1:0"], NOW)

    def said(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["audit", *arguments, "--dir", str(folder)])
        assert done.exit_code == code, done.output
        return done.output

    first = json.loads(said("verify", "--json"))
    assert first["whole"]
    assert first["lines"] >= 2
    out = tmp_path / "audit.jsonl"
    said("export", "--out", str(out))
    assert "the log is whole" in said("verify", "--file", str(out), "--known", first["head"])
    out.write_bytes(out.read_bytes().replace(b'"init"', b'"none"'))
    assert "the log was changed" in said("verify", "--file", str(out), code=1)
    token = (folder / "operator" / "dashboard-token").read_text().strip()
    assert token not in said("export")
