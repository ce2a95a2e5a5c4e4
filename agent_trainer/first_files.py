"""The files that a run begins with: named by paths in its settings where it is asked for, by name and digest elsewhere.

A setting that is a path names a file on the machine of whoever asks for the run. `Algorithm.first_weights` reads it
there, and the weights travel; the settings that travel say only what the file was: "densenet169.pth sha256:4f9a…".
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from cairn.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def files(config: BaseModel) -> dict[str, Path]:
    """Return the paths in a config by the names of their settings; of a nested table "table.setting"."""
    found: dict[str, Path] = {}
    for name, value in config:
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, BaseModel):
            found |= {f"{name}.{inner}": path for inner, path in files(value).items()}
    return found


def without_files(config: M) -> M:
    """Return a config that names no file: of what it makes, names, shapes and their order are the same."""
    changes: dict[str, Any] = {name: None for name, value in config if isinstance(value, Path)}
    changes |= {name: without_files(value) for name, value in config if isinstance(value, BaseModel)}
    return config.model_copy(update=changes)


def told(settings: Mapping[str, Any], config: BaseModel) -> dict[str, Any]:
    """Return settings as they may travel, each path replaced by the file's name and SHA-256.

    settings  of which the config was made
    Raises ConfigError for a file that cannot be read.
    """
    said = dict(settings)
    for name, path in files(config).items():
        *tables, last = name.split(".")
        table = said
        for inner in tables:
            table[inner] = dict(table[inner])
            table = table[inner]
        table[last] = _described(name, path)
    return said


def _described(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read ({error.strerror}); name a file on this machine") from error
