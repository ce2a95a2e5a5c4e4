"""Backups: whole, checked, refused where they would overwrite, and the same on both databases."""

import hashlib
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from aggregator import database, tables
from aggregator.audit_log import verify
from aggregator.backup import archive, databases
from aggregator.backup.making import last_made, make
from aggregator.backup.named import needed
from aggregator.backup.restoring import restore
from aggregator.commands import app
from aggregator.intake.store import BlobStore
from aggregator.members.initialise import initialise
from aggregator.settings import load_settings
from cairn.errors import ChecksumMismatch, ConfigError, StorageFull, StudyError
from cairn.files import remove_folder
from tests.system.small_disk import small_disk

NOW = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
PLAN = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An aggregator's folder with a site and an open plan."""
    made = tmp_path / "aggregator"
    settings = initialise(made, "tissue", ["127.0.0.1:0"], NOW)
    open_plan(settings.database_url)
    return made


def open_plan(url: str) -> None:
    engine = database.open_database(url)
    with database.writing(engine) as rows:
        rows.add(tables.Member(name="north", role="site", state="enrolled", invited_at=NOW, problems=[]))
        rows.add(
            tables.Plan(
                fingerprint=PLAN, study="map", stage="counts", window=0, published=b"x", deadline=NOW, opened_at=NOW,
                state="open",
            )
        )  # fmt: skip
    engine.dispose()


def send(engine, store: BlobStore, spool: Path, number: int) -> str:
    """What an acknowledged upload leaves: first its blob, then its row."""
    content = f"upload {number}".encode() * 1000
    digest, site = hashlib.sha256(content).hexdigest(), f"site-{number}"
    (spool / site).write_bytes(content)
    store.put(spool / site, digest)
    with database.writing(engine) as rows:
        rows.add(tables.Member(name=site, role="site", state="enrolled", invited_at=NOW, problems=[]))
        rows.flush()
        rows.add(tables.Upload(plan=PLAN, site=site, digest=digest, size=len(content), committed_at=NOW))
        database.audit(rows, NOW, f"site/{site}", "upload", PLAN, digest=digest)
    return digest


def test_every_upload_that_was_acknowledged_before_is_in_a_backup_made_while_more_arrive(
    folder: Path, tmp_path: Path
) -> None:
    settings = load_settings(folder / "aggregator.toml")
    engine, store = database.open_database(settings.database_url), BlobStore(settings.blobs_url)
    acknowledged: list[str] = []
    stop = threading.Event()

    def arrive() -> None:
        for number in range(100_000):
            acknowledged.append(send(engine, store, tmp_path, number))
            if stop.is_set():
                return

    sending = threading.Thread(target=arrive)
    sending.start()
    try:
        for number in range(3):
            before = set(acknowledged)
            out = tmp_path / f"{number}.tar"
            make(folder, settings, out, NOW)
            restored = tmp_path / f"restored-{number}"
            restore(out, restored, NOW)
            again = load_settings(restored / "aggregator.toml")
            copy = database.open_database(again.database_url)
            assert needed(copy) >= before
            assert all(BlobStore(again.blobs_url).has(digest) for digest in needed(copy))
            assert verify(copy).broken is None
            copy.dispose()
    finally:
        stop.set()
        sending.join()
        engine.dispose()
    assert last_made(settings) == NOW.timestamp()
    assert not list(folder.glob(".backup-*"))


def test_a_backup_overwrites_nothing_and_is_its_owners_alone(folder: Path, tmp_path: Path) -> None:
    settings, out = load_settings(folder / "aggregator.toml"), tmp_path / "b.tar"
    made = make(folder, settings, out, NOW)
    assert out.stat().st_mode & 0o777 == 0o600
    assert any("CA's key" in sentence for sentence in made.warnings)
    content = out.read_bytes()
    with pytest.raises(ConfigError, match="overwrites nothing"):
        make(folder, settings, out, NOW)
    assert out.read_bytes() == content


def test_without_a_blob_that_the_database_names_no_backup_is_made(folder: Path, tmp_path: Path) -> None:
    settings = load_settings(folder / "aggregator.toml")
    engine, store = database.open_database(settings.database_url), BlobStore(settings.blobs_url)
    store.drop(send(engine, store, tmp_path, 1))
    engine.dispose()
    with pytest.raises(StudyError, match="the store lacks 1 blobs"):
        make(folder, settings, tmp_path / "b.tar", NOW)
    assert not list(tmp_path.glob("*b.tar*"))
    make(folder, settings, tmp_path / "b.tar", NOW, blobs=False)
    with pytest.raises(StudyError, match="restore the object store"):
        restore(tmp_path / "b.tar", tmp_path / "other", NOW)
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("hurt", ["changed", "cut", "no tar", "gone"])
def test_a_backup_that_was_hurt_is_refused_and_nothing_is_made(folder: Path, tmp_path: Path, hurt: str) -> None:
    out = tmp_path / "b.tar"
    make(folder, load_settings(folder / "aggregator.toml"), out, NOW)
    content = bytearray(out.read_bytes())
    if hurt == "changed":
        content[content.index(b"BEGIN")] ^= 1
    out.write_bytes({"changed": bytes(content), "cut": bytes(content[: len(content) // 2])}.get(hurt, b"not a tar"))
    if hurt == "gone":
        out.unlink()
    with pytest.raises((ChecksumMismatch, ConfigError)):
        restore(out, tmp_path / "other", NOW)
    assert not (tmp_path / "other").exists()


def test_a_restore_goes_into_an_empty_folder_only(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "b.tar", tmp_path / "other"
    make(folder, load_settings(folder / "aggregator.toml"), out, NOW)
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        restore(out, other, NOW)
    (other / "file").unlink()
    (other / "lost+found").mkdir()  # of a disk of its own
    restore(out, other, NOW)
    assert (other / "pki" / "ca.key").read_bytes() == (folder / "pki" / "ca.key").read_bytes()
    assert (other / "pki" / "ca.key").stat().st_mode & 0o077 == 0
    assert not (other / ".restoring").exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "b.tar").open("wb") as file:
        writer = archive.Writer(file)
        with Path(__file__).open("rb") as source:
            writer.add("pki/..", source, 1)
    with pytest.raises(ConfigError, match="unexpected"):
        archive.read(tmp_path / "b.tar")


def test_a_backup_follows_the_database_that_is_in_it_and_not_the_one_that_has_moved_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(folder / "aggregator.toml")
    engine, store = database.open_database(settings.database_url), BlobStore(settings.blobs_url)
    digest = send(engine, store, tmp_path, 1)
    snapshot = databases.snapshot

    def and_then_the_plan_is_done(url: str, place: Path) -> Path:
        made = snapshot(url, place)
        with database.writing(engine) as rows:
            rows.get_one(tables.Plan, PLAN).state = "done"
        store.drop(digest)
        return made

    monkeypatch.setattr(databases, "snapshot", and_then_the_plan_is_done)
    with pytest.raises(StudyError, match="the store lacks 1 blobs"):
        make(folder, settings, tmp_path / "b.tar", NOW)
    engine.dispose()


def test_a_file_of_an_odd_name_beside_the_keys_is_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    odd = folder / "pki" / "ca (copy).key"
    odd.write_text("x")
    made = make(folder, load_settings(folder / "aggregator.toml"), tmp_path / "b.tar", NOW)
    assert any(str(odd) in sentence and "not in it" in sentence for sentence in made.warnings)
    assert "pki/ca.key" in archive.read(tmp_path / "b.tar").files


def test_a_disk_that_is_full_ends_a_backup_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    settings = load_settings(folder / "aggregator.toml")
    with database.writing(engine := database.open_database(settings.database_url)) as rows:
        database.audit(rows, NOW, "a", "b", "c", much="x" * 2_000_000)
    engine.dispose()
    with small_disk(folder, "12m"):
        with (folder / "filler").open("wb") as file:
            file.write(bytes(shutil.disk_usage(folder).free - 1_000_000))
        with pytest.raises(StorageFull, match="disk is full"):
            make(folder, settings, tmp_path / "b.tar", NOW)
        assert not list(folder.glob(".backup-*"))


def test_a_password_stands_in_a_file_and_not_on_a_command_line(folder: Path, tmp_path: Path) -> None:
    out, other, secret = tmp_path / "b.tar", tmp_path / "other", tmp_path / "url"
    make(folder, load_settings(folder / "aggregator.toml"), out, NOW)
    for command in (["restore", str(out)], ["init", "--federation", "tissue", "--address", "127.0.0.1"]):
        done = CliRunner().invoke(
            app, [*command, "--dir", str(other), "--database", "postgresql+psycopg://cairn:hush@127.0.0.1/cairn"]
        )
        assert done.exit_code
        assert isinstance(done.exception, ConfigError)
        assert "--database-file" in str(done.exception)
        assert "hush" not in str(done.exception)
        assert not other.exists()
    secret.write_text(f"sqlite:///{tmp_path / 'moved.sqlite'}\n")
    done = CliRunner().invoke(app, ["restore", str(out), "--dir", str(other), "--database-file", str(secret)])
    assert done.exit_code == 0, done.output
    settings = load_settings(other / "aggregator.toml")
    assert settings.database_file == secret
    assert (tmp_path / "moved.sqlite").is_file()
    assert "moved.sqlite" not in (other / "aggregator.toml").read_text()


def test_a_checkpoint_that_is_being_written_or_deleted_is_not_in_a_backup(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(folder / "aggregator.toml")
    for place in ("round-000001", "round-000002", ".round-000003.part"):
        (settings.runs / "a-run" / place).mkdir(parents=True)
        (settings.runs / "a-run" / place / "state.json").write_text("{}")
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda place, **_: seen.append(place))  # cut off before the first file
    remove_folder(settings.runs / "a-run" / "round-000002")
    monkeypatch.undo()
    assert [place.is_dir() for place in seen] == [True]
    make(folder, settings, tmp_path / "b.tar", NOW)
    files = archive.read(tmp_path / "b.tar").files
    assert [name for name in files if name.startswith("state/runs")] == ["state/runs/a-run/round-000001/state.json"]


def test_either_database_comes_back_as_either_and_counts_on(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine = database.open_database(database_url)
    database.upgrade(engine)
    open_plan(database_url)
    store, spool = BlobStore(str(tmp_path / "blobs")), tmp_path
    for number in range(3):
        send(engine, store, spool, number)

    def rows(of):
        with database.reading(of) as session:
            return [
                [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
                for table in tables.Base.metadata.sorted_tables
            ]

    (tmp_path / "held").mkdir()
    file = databases.snapshot(database_url, tmp_path / "held")
    with pytest.raises(ConfigError, match="already"):
        databases.check_empty(database_url)
    before, head = rows(engine), verify(engine).head
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        target = database_url
    else:
        target = f"sqlite:///{tmp_path / 'again.db'}"
    engine.dispose()
    databases.check_empty(target)
    databases.load(target, file)
    again = database.open_database(target)
    assert rows(again) == before
    assert verify(again).head == head
    send(again, store, spool, 3)
    assert verify(again).broken is None
    again.dispose()
