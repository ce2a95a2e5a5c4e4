from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from cairn.config import Settings, load
from cairn.errors import ConfigError


class Images(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path
    tile: int = 512


class Site(Settings):
    state_dir: Path
    images: Images


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load(write(tmp_path, 'state_dir = "state"\n[images]\nfolder = "/data"\n'), Site)
    assert settings.state_dir == tmp_path / "state"
    assert settings.images.folder == Path("/data")


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no setting images\.foldr; did you mean images\.folder\?"):
        load(write(tmp_path, 'state_dir = "s"\n[images]\nfoldr = "x"\n'), Site)


def test_a_missing_decision_says_that_only_a_person_can_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"state_dir is missing.*only you"):
        load(write(tmp_path, '[images]\nfolder = "x"\n'), Site)


def test_a_wrong_value_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images\.tile"):
        load(write(tmp_path, 'state_dir = "s"\n[images]\nfolder = "x"\ntile = "big"\n'), Site)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_IMAGES__TILE", "64")
    assert load(write(tmp_path, 'state_dir = "s"\n[images]\nfolder = "x"\ntile = 128\n'), Site).images.tile == 64


@pytest.mark.parametrize("text", ["state_dir = ", "\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml is not TOML"):
        load(write(tmp_path, text), Site)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no settings file"):
        load(tmp_path / "none.toml", Site)
