"""Blobs by content address, in a folder or in any object store that fsspec reaches (file://, s3://, …).

A blob is there whole or not at all, never changes, and is found by the SHA-256 of its bytes. Putting it twice is
putting it once, so every step that ends in a blob may be repeated after a crash. With a key set (aggregator/at_rest.py)
its bytes are sealed on the disk; its name is the digest of the plain ones all the same.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cairn.errors import ConfigError, StorageFull, StudyError
from cairn.files import sync_folder
from cairn.sealing import MAGIC, Sealer, open_any

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CHUNK = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")


class BlobStore:
    """The blobs under one URL.

    url      file:///path (or a bare path), s3://bucket/prefix, …
    options  for the fsspec file system, such as an endpoint or a profile
    sealer   seals what is put from now on; what was put in plain is read as it is
    Raises ConfigError when the URL's scheme is not known or its library is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, sealer: Sealer | None = None) -> None:
        self._sealer = sealer
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"blobs cannot be kept there: {error}") from error
        self._root = str(self._root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def folder(self) -> Path | None:
        """Where the blobs are, on a disk of this machine; None for an object store."""
        return Path(self._root) if self._local else None

    def put(self, source: Path, digest: str) -> None:
        """Move a file into the store; afterwards it is no longer at `source`. Raises StorageFull.

        digest  SHA-256 of the file, lower-case hex, computed by the caller from these very bytes
        """
        if self._sealer is not None:
            with source.open("rb") as plain:
                self.put_open(plain, digest)
            source.unlink()
            return
        with storage_full(f"the aggregator cannot store {source.stat().st_size} bytes"):
            if self.has(digest):
                source.unlink()
            else:
                self._move(source, digest)

    def put_open(self, plain: BinaryIO, digest: str) -> None:
        """Seal what an open file has in plain into the store, which has a key. Raises StorageFull."""
        assert self._sealer is not None  # who opens a file that is nowhere in plain has the store's own key
        with storage_full("the aggregator cannot store a blob"):
            if not self.has(digest):
                self._put_sealed(plain, digest, self._sealer)

    def drop(self, digest: str) -> None:
        """Delete a blob that nobody reads again; one that is not there is no error."""
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(digest))

    def has(self, digest: str) -> bool:
        """Tell whether the store holds a blob."""
        # A listing that another process has changed since would answer for the past.
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._path(digest)))

    @contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Open a blob for reading in a stream. Raises StudyError when it is gone."""
        try:
            file = self._fs.open(self._path(digest), "rb")
        except FileNotFoundError as error:
            raise StudyError(
                f"the blob {digest[:12]} is missing from the aggregator's store; restore it from a backup"
            ) from error
        with file:
            yield open_any(cast("BinaryIO", file), self._sealer, context(digest))

    def listed(self) -> Iterator[str]:
        """List the blobs that are there now, by their digests."""
        self._fs.invalidate_cache()
        for path in self._fs.find(self._root):
            if _DIGEST.fullmatch(digest := str(path).rpartition("/")[2]):
                yield digest

    @contextmanager
    def open_raw(self, digest: str) -> Iterator[tuple[BinaryIO, int]]:
        """Open a blob as it lies in the store, sealed or not, and say its size. Raises StudyError when it is gone."""
        try:
            size = int(self._fs.size(self._path(digest)))
            file = self._fs.open(self._path(digest), "rb")
        except FileNotFoundError as error:
            raise StudyError(f"the blob {digest[:12]} is missing from the aggregator's store") from error
        with file:
            yield cast("BinaryIO", file), size

    def put_raw(self, source: Path, digest: str) -> None:
        """Move a file into the store as it is, as `open_raw` gave it. Raises StorageFull.

        In the place of one of its name: that may be damaged, or sealed by a key that is gone.
        """
        with storage_full("the aggregator cannot store a blob"):
            self._move(source, digest)

    def seal_old(self) -> int:
        """Seal the blobs that were put in plain before there was a key; returns their number. Raises StorageFull."""
        assert self._sealer is not None  # who asks for it has set a key
        sealed = 0
        for digest in self.listed():
            with self._fs.open(self._path(digest), "rb") as file:
                if file.read(len(MAGIC)) == MAGIC:
                    continue
                file.seek(0)
                with storage_full("the aggregator cannot seal a blob"):
                    self._put_sealed(cast("BinaryIO", file), digest, self._sealer)
            sealed += 1
        return sealed

    def _put_sealed(self, plain: BinaryIO, digest: str, sealer: Sealer) -> None:
        with self._beside(digest) as part:
            with part.open("wb") as target:
                sealer.seal(plain, target, context(digest))
            self._move(part, digest)

    @contextmanager
    def _beside(self, digest: str) -> Iterator[Path]:
        """Give a place for a file that becomes a blob: for its owner alone, never read, and gone afterwards."""
        folder = Path(self._path(digest)).parent if self._local else None
        if folder:
            folder.mkdir(exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(".part", f".{digest[:12]}.", folder)
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _move(self, source: Path, digest: str) -> None:
        if self._local:
            self._put_local(source, Path(self._path(digest)))
        else:
            self._fs.put_file(str(source), self._path(digest))
            source.unlink()

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"

    @staticmethod
    def _put_local(source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(source, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(source, target)
            source.unlink()
        sync_folder(target.parent)
        sync_folder(target.parent.parent)


def context(digest: str) -> str:
    """Say what a sealed blob is: it opens under its own name alone."""
    return f"blob {digest}"


@contextmanager
def storage_full(what: str) -> Iterator[None]:
    """Raise StorageFull for a full disk or quota inside the block; `what` begins its sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageFull(f"{what}: its disk is full; nothing was kept half, try again when there is room") from error


def _copy(source: Path, target: Path) -> None:
    # To another disk a rename cannot go: copy under a name that is never read, then rename there.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as reader, part.open("wb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
            writer.flush()
            os.fsync(writer.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
