"""What lies on the aggregator's disk is sealed when a key is set, and its commands."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from typer.testing import CliRunner

from agent_trainer.rounds.checkpoints import Checkpoint, Checkpoints, Progress
from aggregator import at_rest
from aggregator.commands import app
from aggregator.intake.store import BlobStore
from aggregator.members.initialise import initialise
from aggregator.runs import superlink
from aggregator.runs.checkpoints import open_weights
from aggregator.settings import load_settings
from cairn.errors import CairnError, ChecksumMismatch, ConfigError, TrainingError
from cairn.sealing import MAGIC, VARIABLE, Sealer, open_data_keys

NOW = datetime(2026, 3, 29, tzinfo=UTC)
KEY = "ab" * 32


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return open_data_keys(tmp_path / "data-keys.json", [bytes.fromhex(KEY)])


def put(store: BlobStore, folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "file").write_bytes(content)
    store.put(folder / "file", digest)
    assert not (folder / "file").exists()
    return digest


def read(store: BlobStore, digest: str) -> bytes:
    with store.open(digest) as file:
        return file.read()


def on_disk(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_blob_is_sealed_on_the_disk_and_plain_to_who_has_the_key(tmp_path: Path, sealer: Sealer) -> None:
    store, content = BlobStore(f"file://{tmp_path}/blobs", sealer=sealer), b"counts of north" * 100_000
    digest = put(store, tmp_path, content)
    assert put(store, tmp_path, content) == digest
    assert read(store, digest) == content
    [path] = on_disk(tmp_path / "blobs")
    assert path.read_bytes().startswith(MAGIC)
    assert b"counts of north" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="no key is set"):
        read(BlobStore(f"file://{tmp_path}/blobs"), digest)


def test_a_blob_does_not_open_under_the_name_of_another(tmp_path: Path, sealer: Sealer) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs", sealer=sealer)
    one, other = put(store, tmp_path, b"one"), put(store, tmp_path, b"other")
    blobs = {path.name: path for path in on_disk(tmp_path / "blobs")}
    blobs[one].write_bytes(blobs[other].read_bytes())
    with pytest.raises(ChecksumMismatch):
        read(store, one)


def test_blobs_from_before_the_key_are_read_as_they_are_and_sealed_by_the_command(
    tmp_path: Path, sealer: Sealer
) -> None:
    plain = put(BlobStore(f"file://{tmp_path}/blobs"), tmp_path, b"plain")
    store = BlobStore(f"file://{tmp_path}/blobs", sealer=sealer)
    assert read(store, plain) == b"plain"
    put(store, tmp_path, b"sealed")
    assert store.seal_old() == 1
    assert store.seal_old() == 0
    assert read(store, plain) == b"plain"
    assert all(path.read_bytes().startswith(MAGIC) for path in on_disk(tmp_path / "blobs"))
    assert len(on_disk(tmp_path / "blobs")) == 2


def checkpoint(number: int) -> Checkpoint:
    weights = {"layer": np.arange(1000, dtype=np.float32)}
    return Checkpoint(Progress(number), weights, {"momentum": np.ones(3, np.float32)}, b"tally")


def test_a_checkpoint_is_sealed_goes_on_and_is_given_out_in_plain(tmp_path: Path, sealer: Sealer) -> None:
    kept = Checkpoints(tmp_path / "runs" / "sella-1", {"run": "sella-1"}, sealer)
    place = kept.save(checkpoint(3))
    for name in ("weights.safetensors", "strategy.safetensors", "replay.tally"):
        assert (place / name).read_bytes().startswith(MAGIC), name
    latest = kept.latest()
    assert latest is not None
    assert np.array_equal(latest.weights["layer"], np.arange(1000, dtype=np.float32))
    assert (latest.replay, latest.strategy["momentum"].sum()) == (b"tally", 3.0)
    with open_weights(tmp_path / "runs", "sella-1", 3, sealer) as file:
        assert np.array_equal(load(file.read())["layer"], latest.weights["layer"])
    with pytest.raises(ConfigError, match="no key is set"), open_weights(tmp_path / "runs", "sella-1", 3) as file:
        file.read()
    (place / "weights.safetensors").rename(tmp_path / "elsewhere")
    other = Checkpoints(tmp_path / "runs" / "sella-2", {}, sealer)
    (other.save(checkpoint(3)) / "weights.safetensors").write_bytes((tmp_path / "elsewhere").read_bytes())
    with pytest.raises(TrainingError, match="cannot be read"):
        other.load(3)


def set_key_file(folder: Path, key: object) -> None:
    path = folder / "aggregator.toml"
    path.write_text(path.read_text().replace('# key_file = "/etc/cairn/at-rest.key"', f'key_file = "{key}"'))


def said(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(done.exception, CairnError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_the_key_is_made_set_changed_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    folder, key = tmp_path / "a", tmp_path / "at-rest.key"
    initialise(folder, "tissue", ["127.0.0.1:0"], NOW)
    with pytest.raises(ConfigError, match="no key is set"):
        said("at-rest", "rotate", "--dir", folder)
    put(BlobStore(load_settings(folder / "aggregator.toml").blobs_url), tmp_path, b"plain")
    Checkpoints(folder / "runs" / "sella-1", {}).save(checkpoint(1))
    shown = said("at-rest", "key", key)
    assert key.stat().st_mode & 0o077 == 0
    set_key_file(folder, key)
    shown += said("at-rest", "seal", "--dir", folder)
    assert "1 blobs and 3 files of checkpoints are sealed" in shown
    first = key.read_text().strip()
    said("at-rest", "key", key)
    assert json.loads(said("at-rest", "rotate", "--dir", folder, "--json")) == {"data_keys": 1}
    key.write_text(key.read_text().splitlines()[0])  # the former key is taken out
    settings = load_settings(folder / "aggregator.toml")
    opened = at_rest.open_sealer(settings)
    assert opened is not None
    assert Checkpoints(folder / "runs" / "sella-1", {}, opened).load(1).replay == b"tally"
    assert first not in shown
    (folder / "aggregator.toml").write_text((folder / "aggregator.toml").read_text().replace("key_file", "# key_file"))
    with pytest.raises(ConfigError, match="files here are sealed and no key is set"):
        at_rest.open_sealer(load_settings(folder / "aggregator.toml"))


def test_a_key_of_the_environment_reaches_the_trainer_and_no_list_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    folder = tmp_path / "a"
    initialise(folder, "tissue", ["127.0.0.1:0"], NOW, training=True)
    settings = load_settings(folder / "aggregator.toml")
    assert at_rest.open_sealer(settings) is not None
    places = superlink.places(settings, 1, 2, "127.0.0.1:3")
    assert places.data_keys == at_rest.data_keys(settings)
    command = superlink.Superlink.__new__(superlink.Superlink)
    vars(command).update(
        _places=places, _programs=superlink.Programs(), _now=lambda: NOW, _admitted_until=NOW.replace(year=2099)
    )
    built = command._trainer_command()
    assert KEY not in " ".join(built.arguments)
    assert built.environment[VARIABLE] == KEY
    assert VARIABLE not in command._environment()


def with_key_of(service: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as docs/OPERATING.md says, with a stand-in for the command that asks the key service."""
    script = Path(__file__).parents[2] / "deploy/with_at_rest_key.sh"
    command = [sys.executable, "-m", "cairn", "aggregator", "at-rest", *words, "--dir", str(folder), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"KMS_FILE": str(service)}
    return subprocess.run(
        ["sh", str(script), 'cat "$KMS_FILE"', *command], env=environment, capture_output=True, text=True, check=False
    )


def test_a_key_services_key_seals_is_changed_and_without_it_nothing_is_started(tmp_path: Path) -> None:
    folder, service = tmp_path / "a", tmp_path / "service"
    initialise(folder, "tissue", ["127.0.0.1:0"], NOW)
    put(BlobStore(load_settings(folder / "aggregator.toml").blobs_url), tmp_path, b"plain")
    for given in (None, ""):
        if given is not None:
            service.write_text(given)
        away = with_key_of(service, folder, "seal")
        assert (away.returncode, "nothing was started" in away.stderr) == (1, True)
    former, new = "11" * 32, "22" * 32
    service.write_text(former)
    assert json.loads(with_key_of(service, folder, "seal").stdout) == {"blobs": 1, "checkpoint_files": 0}
    service.write_text(f"{new}\n{former}\n")
    assert json.loads(with_key_of(service, folder, "rotate").stdout) == {"data_keys": 1}
    service.write_text(new)
    assert json.loads(with_key_of(service, folder, "seal").stdout) == {"blobs": 0, "checkpoint_files": 0}
    service.write_text(former)
    refused = with_key_of(service, folder, "seal")
    assert refused.returncode != 0
    assert former not in refused.stdout + refused.stderr


def test_check_warns_of_what_lies_in_plain_or_open_and_ends_with_1_when_the_audit_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = tmp_path / "a"
    initialise(folder, "tissue", ["127.0.0.1:0"], NOW)
    found = json.loads(said("check", "--dir", folder, "--json"))
    assert [sentence for sentence in found["warnings"] if "in plain" in sentence]
    assert not [sentence for sentence in found["warnings"] if "others of this machine" in sentence]
    assert found["faults"] == []
    said("at-rest", "key", folder / "at-rest.key")
    folder.chmod(0o755)
    text = (folder / "aggregator.toml").read_text()
    (folder / "aggregator.toml").write_text(
        text.replace('# key_file = "/etc/cairn/at-rest.key"', 'key_file = "at-rest.key"')
    )
    found = json.loads(said("check", "--dir", folder, "--json"))
    assert [sentence for sentence in found["warnings"] if "whoever takes one takes both" in sentence]
    assert [sentence for sentence in found["warnings"] if f"may look into {folder}; chmod 700" in sentence]
    assert "blobs and checkpoints are sealed on the disk" in found["fine"]
    with sqlite3.connect(folder / "cairn.db") as database:
        database.execute("DROP TRIGGER audit_refuses_update")
        database.execute("UPDATE audit SET actor = 'nobody' WHERE id = 1")
    assert "it was changed" in said("check", "--dir", folder, code=1)
