"""What both ends give Flower's programs, and whether these are there; nothing of Flower is imported."""

import importlib.util
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from cairn.files import write_atomically

PACKAGES: Final = ("flwr", "torch")
# Flower speaks to nobody but its own, installs nothing, and sends weights in few pieces.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(32 << 20),
    "PYTHONUNBUFFERED": "1",
}


def missing_packages(packages: Iterable[str] = PACKAGES) -> list[str]:
    """List the packages that training needs and that are not installed; none is imported."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def keep_secret(path: Path) -> None:
    """Make the secret between a program of Flower's and its executor, unless it is there; only its owner reads it."""
    if not path.exists():
        with write_atomically(path, 0o600) as file:
            file.write(secrets.token_hex(32).encode())
