"""A backup's file: a tar of plain files, the last of which names all others with size and SHA-256."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from cairn.errors import ChecksumMismatch, ConfigError

ABOUT: Final = "backup.json"
FORMAT: Final = 1
_BLOCK: Final = 1 << 20
_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class About:
    """What is in a backup.

    format    of the file; this version reads FORMAT
    made      when, ISO 8601 in UTC
    cairn     version that made it
    revision  of the database's schema
    blobs     whether they are in it
    sealed_by names of the key-encryption keys without which nothing that is sealed opens; they are not in it
    files     name → size in bytes and SHA-256
    """

    format: int
    made: str
    cairn: str
    federation: str
    revision: str
    blobs: bool
    sealed_by: tuple[str, ...]
    files: Mapping[str, tuple[int, str]] = field(repr=False)


class Hashed:
    """A file as it is read, and the SHA-256 of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.found = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read as the file does."""
        block = self._file.read(size)
        self.found.update(block)
        return block


Taker = Callable[[str, Hashed], None]


def is_name(name: str) -> bool:
    """Tell whether a file may be called so in a backup: ASCII letters, digits, `_ . -` and slashes between."""
    return bool(_NAME.fullmatch(name)) and not any(set(part) == {"."} for part in name.split("/"))


class Writer:
    """Puts files one after another into a backup; `close` ends it with the list of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in `close`
        self.files: dict[str, tuple[int, str]] = {}

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        """Add the next `size` bytes of a file; one that only grows may grow meanwhile."""
        assert _NAME.fullmatch(name)
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        hashed = Hashed(source)
        self._tar.addfile(info, hashed)
        self.files[name] = (size, hashed.found.hexdigest())

    def close(self, about: About) -> None:
        """Write the list and end the file."""
        content = json.dumps(asdict(about)).encode()
        info = tarfile.TarInfo(ABOUT)
        info.size, info.mode = len(content), 0o600
        self._tar.addfile(info, io.BytesIO(content))
        self._tar.close()


def read(path: Path, take: Taker | None = None) -> About:
    """Read a backup from one end to the other and compare every file with the list.

    take  is given the name and the bytes of every file, before anything is compared: call `read` without it first
    Raises ConfigError when it is no backup, or of a newer version; ChecksumMismatch when it was cut or changed.
    """
    found: dict[str, tuple[int, str]] = {}
    about = b""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if not member.isreg() or file is None or not is_name(member.name) or member.name in found or about:
                    raise ConfigError(f"{path} is no backup of an aggregator: {member.name[:80]!r} is unexpected")
                if member.name == ABOUT:
                    about = file.read()
                    continue
                hashed = Hashed(file)
                if take is not None:
                    take(member.name, hashed)
                while hashed.read(_BLOCK):
                    pass
                found[member.name] = (member.size, hashed.found.hexdigest())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no backup {path}") from error
    except tarfile.TarError as error:
        raise ChecksumMismatch(f"{path} is cut off or no backup of an aggregator; take another one") from error
    if not about:
        raise ChecksumMismatch(f"{path} has no list of its files at its end: it was cut off; take another backup")
    known = _about(about, path)
    if found != known.files:
        wrong = sorted(name for name in {*found, *known.files} if found.get(name) != known.files.get(name))
        raise ChecksumMismatch(f"{path} was changed: {wrong[0]} is not what its list says; take another backup")
    return known


def _about(content: bytes, path: Path) -> About:
    try:
        values: dict[str, Any] = json.loads(content)
        if values["format"] > FORMAT:
            raise ConfigError(f"{path} was made by Cairn {values['cairn']}, which is newer than this one; update this")
        files = {name: (int(size), str(digest)) for name, (size, digest) in values.pop("files").items()}
        return About(**{**values, "sealed_by": tuple(values["sealed_by"])}, files=files)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no backup of an aggregator: its list of files cannot be read") from error
