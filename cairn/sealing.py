"""Files that only their key opens: envelope encryption in chunks, so that what is larger than memory streams.

    key-encryption key ──AES key wrap (RFC 3394)──► data keys, kept wrapped in one small file
    data key ──HKDF-SHA256(salt, context)──► a key for each file ──AES-256-GCM──► chunks of 1 MiB

A sealed file is MAGIC, the data key's number, a salt, and the chunks, each with its tag. A chunk's nonce is its number
and whether it is the last, so that a file that was cut, put together anew or moved to another place does not open. To
change the key-encryption key, the small file alone is written anew.
"""

import io
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cairn.errors import ChecksumMismatch, ConfigError
from cairn.files import write_atomically

MAGIC: Final = b"CAIRNSEAL\x01"
NUMBER, SALT, TAG, KEY = 8, 16, 16, 32  # bytes
HEAD: Final = len(MAGIC) + NUMBER + SALT
CHUNK: Final = 1 << 20
VARIABLE: Final = "CAIRN_AT_REST_KEY"  # of the environment, for key-encryption keys


@dataclass(frozen=True)
class Sealer:
    """The data keys, opened: seals with the newest, opens what any of them has sealed."""

    newest: bytes
    keys: dict[bytes, bytes] = field(repr=False)

    def seal(self, source: BinaryIO, target: BinaryIO, context: str) -> None:
        """Write what is left of a file, sealed.

        context  what the file is; it opens as nothing else
        """
        head = MAGIC + self.newest + secrets.token_bytes(SALT)
        cipher = self._cipher(head, context)
        target.write(head)
        number, chunk = 0, source.read(CHUNK)
        while True:
            following = source.read(CHUNK) if len(chunk) == CHUNK else b""
            target.write(cipher.encrypt(_nonce(number, last=not following), chunk, head))
            if not following:
                return
            number, chunk = number + 1, following

    def seal_bytes(self, content: bytes, context: str) -> bytes:
        """Seal what is in memory."""
        sealed = io.BytesIO()
        self.seal(io.BytesIO(content), sealed, context)
        return sealed.getvalue()

    def file_key(self, number: bytes, salt: bytes, context: str) -> bytes:
        """Derive the key of one file from a data key. Raises ConfigError when that is not here."""
        if number not in self.keys:
            raise ConfigError(
                f"a file was sealed with the data key {number.hex()}, which is not here; restore the file of data keys"
            )
        return HKDF(hashes.SHA256(), KEY, salt, b"cairn file " + context.encode()).derive(self.keys[number])

    def _cipher(self, head: bytes, context: str) -> AESGCM:
        return AESGCM(self.file_key(head[len(MAGIC) : -SALT], head[-SALT:], context))


class _Opened(io.RawIOBase):
    """A sealed file as if it were plain; one chunk of it is in memory."""

    def __init__(self, file: BinaryIO, cipher: AESGCM, head: bytes) -> None:
        self._file, self._cipher, self._head = file, cipher, head
        body = file.seek(0, os.SEEK_END) - HEAD
        self._chunks = max(1, -(-body // (CHUNK + TAG)))
        self._size = body - TAG * self._chunks
        self._at = 0
        self._held: tuple[int, bytes] = (-1, b"")
        if self._size < 0:
            raise ChecksumMismatch(BROKEN)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from any place."""
        return True

    def tell(self) -> int:
        """Say where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte of the plain file."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read what the present chunk has. Raises ChecksumMismatch when the file was changed."""
        if self._at >= self._size and self._held[0] >= 0:
            return 0
        number = min(self._at // CHUNK, self._chunks - 1)
        if self._held[0] != number:
            self._file.seek(HEAD + number * (CHUNK + TAG))
            sealed = self._file.read(CHUNK + TAG)
            try:
                plain = self._cipher.decrypt(_nonce(number, last=number == self._chunks - 1), sealed, self._head)
            except InvalidTag as error:
                raise ChecksumMismatch(BROKEN) from error
            self._held = number, plain
        found = memoryview(self._held[1])[self._at - number * CHUNK :][: len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Close the sealed file too."""
        self._file.close()
        super().close()


BROKEN: Final = "a sealed file does not open: it was changed or cut, or is another than it is taken for; restore it"


def open_any(file: BinaryIO, sealer: Sealer | None, context: str) -> BinaryIO:
    """Return a file to read in plain, whether it is sealed or was written before there was a key.

    Raises ConfigError for a sealed file without its key, ChecksumMismatch for one that was changed.
    """
    head = file.read(HEAD)
    if not head.startswith(MAGIC):
        file.seek(0)
        return file
    if sealer is None:
        raise ConfigError(f"a file is sealed and no key is set; set at_rest.key_file, or {VARIABLE}")
    if len(head) < HEAD:
        raise ChecksumMismatch(BROKEN)
    return cast("BinaryIO", io.BufferedReader(_Opened(file, sealer._cipher(head, context), head), CHUNK))


def checkpoint_context(run: str, number: int, name: str) -> str:
    """Say what a sealed file of a checkpoint is; the trainer writes it and the aggregator reads it."""
    return f"checkpoint {run} {number} {name}"


def is_sealed(path: Path) -> bool:
    """Tell whether a file is sealed."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_keys(text: str) -> tuple[bytes, ...]:
    """Read key-encryption keys, one of 64 hexadecimal digits a line, the one in use first. Raises ConfigError.

    Lines that begin with # say something to people.
    """
    words = [word for line in text.splitlines() if not line.startswith("#") for word in line.replace(",", " ").split()]
    try:
        found = tuple(bytes.fromhex(word) for word in words)
    except ValueError:
        found = ()
    if not found or any(len(key) != KEY for key in found):
        # The text is not repeated: it may be most of a key.
        raise ConfigError("a key-encryption key is 64 hexadecimal digits, one key a line, the one in use first")
    return found


def open_data_keys(path: Path, keys: Sequence[bytes]) -> Sealer:
    """Open the data keys of a file; the first is made where there is no file yet. Raises ConfigError.

    keys  key-encryption keys, the one in use first
    """
    if not path.exists():
        _write(path, keys[0], {secrets.token_bytes(NUMBER): secrets.token_bytes(KEY)})
    by_name = {_name(key): key for key in keys}
    opened: dict[bytes, bytes] = {}
    try:
        for number, kept in json.loads(path.read_bytes())["keys"].items():
            if kept["by"] not in by_name:
                raise ConfigError(
                    f"{path.name} was sealed with the key-encryption key {kept['by']}, which is not among those that "
                    "are set; add it as a further line"
                )
            opened[bytes.fromhex(number)] = keywrap.aes_key_unwrap(by_name[kept["by"]], bytes.fromhex(kept["key"]))
    except (ValueError, KeyError, TypeError, AttributeError, keywrap.InvalidUnwrap) as error:
        raise ConfigError(f"{path.name} is damaged: without it nothing that is sealed opens; restore it") from error
    return Sealer(next(reversed(opened)), opened)


def rotate(path: Path, keys: Sequence[bytes], *, new_data_key: bool) -> int:
    """Wrap all data keys in the key-encryption key in use; returns their number.

    new_data_key  what is written from now on gets a new data key too
    Raises ConfigError.
    """
    opened = dict(open_data_keys(path, keys).keys)
    if new_data_key:
        opened[secrets.token_bytes(NUMBER)] = secrets.token_bytes(KEY)
    _write(path, keys[0], opened)
    return len(opened)


def _write(path: Path, key: bytes, opened: dict[bytes, bytes]) -> None:
    kept = {
        number.hex(): {"by": _name(key), "key": keywrap.aes_key_wrap(key, one).hex()} for number, one in opened.items()
    }
    with write_atomically(path, 0o600) as file:
        file.write(json.dumps({"keys": kept}, indent=1).encode() + b"\n")


def _name(key: bytes) -> str:
    return sha256(b"cairn key-encryption key" + key).hexdigest()[:16]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
