"""Archives with checksums: a tar of MANIFEST.json and zstd-compressed parts. Images for a clinic, or a backup.

read_archive → everything is compared with its SHA-256 → opened part by part
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from cairn.errors import ChecksumMismatch, ConfigError

MANIFEST = "MANIFEST.json"
FORMAT = "cairn-archive/1"
CHUNK = 1 << 20
Moved = Callable[[int], None]


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    kind   images or state
    about  what its maker said; `bytes` is what it takes unpacked
    parts  name = SHA-256 of the compressed part
    sha256 of the whole file
    """

    path: Path
    kind: str
    about: Mapping[str, Any]
    parts: Mapping[str, str]
    sha256: str


def write_archive(
    out: Path,
    kind: str,
    about: Mapping[str, Any],
    parts: Mapping[str, Iterable[bytes]],
    moved: Moved,
    mode: int = 0o644,
) -> Contents:
    """Write an archive, whole or not at all. Raises ConfigError when there is a file of that name, or no room.

    moved  is told how many bytes were taken in
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; name another file")
    scratch = [out.with_name(f".{out.name}.{number}.part") for number in range(len(parts) + 1)]
    try:
        sums, taken = {}, 0
        for path, (name, chunks) in zip(scratch, parts.items(), strict=False):
            sums[name], size = _compress(path, chunks, moved)
            taken += size
        about = {**about, "bytes": taken}
        manifest = {"format": FORMAT, "kind": kind, "about": about, "parts": sums}
        text = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
        scratch[-1].touch(mode)
        with tarfile.open(scratch[-1], "w") as tar:
            entry = tarfile.TarInfo(MANIFEST)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            for path, name in zip(scratch, parts, strict=False):
                tar.add(path, name, recursive=False, filter=_nobody)
                path.unlink()
        scratch[-1].rename(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        for path in scratch:
            path.unlink(missing_ok=True)
    return Contents(out, kind, about, sums, _digest_of(out))


def _compress(path: Path, chunks: Iterable[bytes], moved: Moved) -> tuple[str, int]:
    size = 0
    path.touch(0o600)
    packer = zstandard.ZstdCompressor(level=3, threads=-1)
    with path.open("wb") as file, packer.stream_writer(file, closefd=False) as packed:
        for chunk in chunks:
            packed.write(chunk)
            size += len(chunk)
            moved(len(chunk))
    return _digest_of(path), size


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode, entry.mtime = 0o644, 0
    return entry


def read_archive(path: Path, kind: str, sha256: str | None = None) -> Contents:
    """Compare every part with its checksum. Raises ChecksumMismatch, ConfigError; then nothing was taken from it.

    sha256  of the whole file, as somebody told it over another way than the file's
    """
    if not path.is_file():
        raise ConfigError(f"there is no archive {path}; `cairn deploy bundle` makes one")
    whole = _digest_of(path)
    if sha256 and whole != sha256:
        raise ChecksumMismatch(f"{path} has the SHA-256 {whole[:16]}… and {sha256[:16]}… was expected; fetch it again")
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
            file = tar.extractfile(first) if first and first.name == MANIFEST else None
            if file is None:
                raise ConfigError(f"{path} is no archive of `cairn deploy`; it does not begin with {MANIFEST}")
            manifest = json.loads(file.read(CHUNK))
            found = {entry.name: _digest(tar, entry) for entry in tar if entry.name != MANIFEST}
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ChecksumMismatch(f"{path} is damaged or cut off ({error}); fetch it again") from error
    if manifest.get("format") != FORMAT or manifest.get("kind") != kind:
        raise ConfigError(f"{path} is of the kind {manifest.get('kind')!r} where {kind!r} is expected")
    for name, wanted in manifest["parts"].items():
        if found.get(name) != wanted:
            raise ChecksumMismatch(f"{path}: the part {name} does not have the checksum that it should; fetch it again")
    return Contents(path, kind, manifest["about"], manifest["parts"], whole)


@contextmanager
def open_part(contents: Contents, name: str) -> Iterator[Iterator[bytes]]:
    """Read one part, decompressed, in chunks."""
    with tarfile.open(contents.path, "r:") as tar:
        file = tar.extractfile(name)
        assert file is not None  # its checksum was compared
        yield zstandard.ZstdDecompressor().read_to_iter(file, read_size=CHUNK)


def _digest(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    file = tar.extractfile(entry)
    return _sha256(file) if file else ""


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _sha256(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
