"""The data of a search on this machine: the same tables as in site.toml, in a file of their own or in that one."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cairn.errors import ConfigError

KINDS: Final = ("volumes", "labelled", "scenes")


@dataclass(frozen=True)
class Data:
    """Tables by kind, as `algorithms.Place` takes them.

    folder  to which their paths are relative
    """

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    folder: Path

    def text(self, kind: str) -> str:
        """Write one kind's tables as JSON. Raises ConfigError where there are none."""
        if kind not in self.tables:
            raise ConfigError(f"the data have no [[{kind}]], which alone this algorithm reads")
        return json.dumps([dict(table) for table in self.tables[kind]])


def read_data(path: Path) -> Data:
    """Read [[volumes]], [[labelled]] and [[scenes]] of a TOML file, or of its table [training] as in site.toml.

    Raises ConfigError when it cannot be read or has none of them; what a table says is checked by who reads its data.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a TOML file with [[volumes]]") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error
    inner = found.get("training", found)
    inner = inner if isinstance(inner, dict) else {}
    tables = {kind: inner[kind] for kind in KINDS if kind in inner}
    if not tables or not all(_are_tables(value) for value in tables.values()):
        raise ConfigError(f"{path.name} has no list of tables {', '.join(f'[[{kind}]]' for kind in KINDS)}; write one")
    return Data(tables, path.resolve().parent)


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
