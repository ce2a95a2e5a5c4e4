"""What is asked of a run: its TOML file, and the algorithm's own settings with those of --set."""

import tomllib
from pathlib import Path
from typing import Any

from cairn.errors import ConfigError


def read_settings(config: Path | None, settings: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a run's file says of the run, and the algorithm's own settings with those of --set.

    config    the file, if there is one
    settings  NAME=VALUE, each
    Raises ConfigError.
    """
    values = _read_file(config) if config else {}
    own = _own(values, config)
    for name, value in map(_setting, settings or []):
        own = _put(own, name, value)
    return values, own


def _own(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the algorithm's own settings of a run's file. Raises ConfigError."""
    own = values.get("settings", {})
    if not isinstance(own, dict):
        raise ConfigError(f"{config}: settings is {own!r}; write them as a table, [settings]")
    return dict(own)


def _put(own: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return settings with one more; "table.setting" stands in a table. Raises ConfigError where that is none."""
    table, dot, inner = name.partition(".")
    if not dot:
        return {**own, name: value}
    held = own.get(table, {})
    if not isinstance(held, dict):
        raise ConfigError(f"--set {name}: {table} is {held!r}; expected a table of settings")
    return {**own, table: _put(held, inner, value)}


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a value that is no TOML is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not NAME=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a run's TOML file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error
