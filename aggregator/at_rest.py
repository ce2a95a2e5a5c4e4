"""What lies on the aggregator's disk, sealed (`cairn.sealing`): blobs and checkpoints, once a key is set.

The key-encryption key comes from a file, `at_rest.key_file`, or from the environment variable CAIRN_AT_REST_KEY; the
data keys that it wraps are in `data-keys.json` of the state folder.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from aggregator.settings import AggregatorSettings
from cairn.errors import ConfigError
from cairn.sealing import VARIABLE, Sealer, open_data_keys, read_keys


def data_keys(settings: AggregatorSettings) -> Path:
    """Say where the wrapped data keys are. Back this file up: without it nothing that is sealed opens."""
    return settings.state_dir / "data-keys.json"


def encryption_keys(settings: AggregatorSettings, environment: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """Read the key-encryption keys, the one in use first; none when none is set. Raises ConfigError."""
    path = settings.at_rest.key_file
    if path is None:
        return read_keys(environment[VARIABLE]) if environment.get(VARIABLE) else ()
    try:
        return read_keys(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"at_rest.key_file {path} cannot be read; mount it, or make one with `at-rest key`"
        ) from error


def open_keys(settings: AggregatorSettings) -> bool:
    """Tell whether a key is set and opens what is there; nothing is made. Raises ConfigError."""
    keys = encryption_keys(settings)
    if data_keys(settings).exists():
        open_sealer(settings)
    return bool(keys)


def open_sealer(settings: AggregatorSettings) -> Sealer | None:
    """Open the data keys; None when no key is set and nothing was ever sealed. Raises ConfigError."""
    keys = encryption_keys(settings)
    if keys:
        return open_data_keys(data_keys(settings), keys)
    if data_keys(settings).exists():
        raise ConfigError(
            f"files here are sealed and no key is set; set at_rest.key_file in aggregator.toml, or {VARIABLE}"
        )
    return None


def wrapped_by(settings: AggregatorSettings) -> tuple[str, ...]:
    """Name the key-encryption keys in which the data keys are wrapped; none when nothing was ever sealed."""
    try:
        kept = json.loads(data_keys(settings).read_bytes())["keys"].values()
        return tuple(sorted({str(one["by"]) for one in kept}))
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("data-keys.json is damaged: without it nothing that is sealed opens; restore it") from error
