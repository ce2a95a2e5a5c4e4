"""A list in a file that a command is given: TOML or JSON, as in site.toml."""

import json
import tomllib
from pathlib import Path

from cairn.errors import ConfigError


def read_list(path: Path, name: str) -> str:
    """Return a list in a file as JSON. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return json.dumps(values[name])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a file with a list `{name}`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has no list `{name}`; write [[{name}]] tables as in site.toml") from error
