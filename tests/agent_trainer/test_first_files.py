"""Files that a run begins with: found in its settings, and told by name and digest."""

import hashlib
from pathlib import Path

import pytest
from pydantic import BaseModel

from agent_trainer.first_files import files, told, without_files
from cairn.errors import ConfigError


class Transfer(BaseModel):
    weights: Path | None = None
    mode: str = "all"


class Settings(BaseModel):
    masker: Path | None = None
    transfer: Transfer = Transfer()


def test_paths_are_found_in_nested_tables_and_travel_as_names_and_digests(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"a")
    settings = {"masker": str(tmp_path / "a.pt"), "transfer": {"weights": str(tmp_path / "a.pt"), "mode": "frozen"}}
    config = Settings.model_validate(settings)
    assert list(files(config)) == ["masker", "transfer.weights"]
    named = f"a.pt sha256:{hashlib.sha256(b'a').hexdigest()}"
    assert told(settings, config) == {"masker": named, "transfer": {"weights": named, "mode": "frozen"}}
    assert settings["masker"] == str(tmp_path / "a.pt"), "what was given is not changed"
    assert without_files(config) == Settings(transfer=Transfer(mode="frozen"))


def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path) -> None:
    settings = {"transfer": {"weights": str(tmp_path / "none.pt")}}
    with pytest.raises(ConfigError, match=r"transfer\.weights: .*none\.pt cannot be read \(No such file"):
        told(settings, Settings.model_validate(settings))
