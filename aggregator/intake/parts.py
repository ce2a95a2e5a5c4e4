"""Partial files of uploads, which only grow; with a key set, nothing of them is on the disk in plain.

    data key ──HKDF-SHA256(salt, context)──► a key for each file ──AES-256-CTR──► its bytes, each in its place

A sealed partial file is the data key's number, a salt, and the bytes. A counter needs no whole blocks, so that it grows
by messages of any length and goes on after a restart. What guards its bytes against change is what guards plain ones
too: the digest of the whole, which is checked before anything is counted.
"""

import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from cairn.files import sync_folder
from cairn.sealing import NUMBER, SALT, Sealer

CHUNK = 1 << 20
CONTEXT = "partial upload"
UNNAMED = "unnamed"  # a partial file whose digest the site has not announced
_SEALED = ".sealed"
_BLOCK = 16  # bytes of AES


class Parts:
    """How partial files lie on the disk: a folder for each upload, with one of them in it.

    sealer  seals them; None leaves them in plain. What lies there in the other way is no partial file any more
    """

    def __init__(self, sealer: Sealer | None = None) -> None:
        self._sealer = sealer
        self.sealed = sealer is not None
        self._head = NUMBER + SALT if sealer else 0

    def begin(self, folder: Path, digest: str) -> Path:
        """Return the partial file of a digest, empty when it is new; every other of its folder is dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / self._name(digest)
        for other in set(folder.iterdir()) - {part}:
            other.unlink()
        part.touch(0o600)
        return part

    def find(self, folder: Path) -> Path:
        """Return the folder's partial file; where none was begun, one for an unknown digest, which may not be there."""
        there = folder.iterdir() if folder.exists() else ()
        return next((part for part in there if part.name == self._name(part.stem)), folder / self._name(UNNAMED))

    def size(self, part: Path) -> int:
        """Say how many bytes of the upload are there."""
        return max(0, part.stat().st_size - self._head) if part.exists() else 0

    def committed(self, part: Path) -> int:
        """Make safe what is there, and say how many bytes of the upload it is."""
        if not part.exists():
            return 0
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(part.parent)
        return self.size(part)

    def append(self, part: Path, data: bytes, size: int) -> None:
        """Append a message's data, all of it or nothing, to the `size` bytes of the upload that are there."""
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if self._sealer is not None:
                head = os.pread(descriptor, self._head, 0) if size else self._sealer.newest + secrets.token_bytes(SALT)
                sealed = _crypt(self._key(head), data, size)
                data = sealed if size else head + sealed
            os.lseek(descriptor, size and size + self._head, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size and size + self._head)
            raise
        finally:
            os.close(descriptor)

    def open(self, part: Path) -> BinaryIO:
        """Open a partial file for reading, in plain."""
        file = part.open("rb")
        if self._sealer is None:
            return file
        return cast("BinaryIO", io.BufferedReader(_Opened(file, self._key(file.read(self._head)), self._head), CHUNK))

    def _name(self, digest: str) -> str:
        return digest + _SEALED if self._sealer else digest

    def _key(self, head: bytes) -> bytes:
        assert self._sealer is not None  # only what is sealed has a head
        return self._sealer.file_key(head[:NUMBER], head[NUMBER:], CONTEXT)


class _Opened(io.RawIOBase):
    """A sealed partial file as if it were plain."""

    def __init__(self, file: BinaryIO, key: bytes, head: int) -> None:
        self._file, self._key, self._head = file, key, head

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._head

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + self._head * (whence == os.SEEK_SET), whence) - self._head

    def readinto(self, buffer: Any) -> int:
        at = self.tell()
        found = _crypt(self._key, self._file.read(len(buffer)), at)
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def _crypt(key: bytes, data: bytes, at: int) -> bytes:
    """Encrypt or decrypt bytes that begin at byte `at`: key stream of the counter that is there, and exclusive or."""
    cipher = Cipher(AES(key), CTR((at // _BLOCK).to_bytes(_BLOCK, "big"))).encryptor()
    cipher.update(bytes(at % _BLOCK))
    return cipher.update(data)
