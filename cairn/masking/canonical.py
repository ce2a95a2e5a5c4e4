"""Canonical bytes of the protocol's messages: one message has one encoding, and one encoding one message.

    message  = text("cairn.masking/1 <class name>") fields in the order of their declaration
    int      = uint64, little-endian            text, bytes = uint32 length, the bytes (text as UTF-8)
    tuple    = uint32 count, the items          message inside a message = its fields

What is signed or hashed is always a whole message, so that its class name keeps the purposes apart.
"""

import hashlib
import struct
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cairn.errors import MaskingError

VERSION = "cairn.masking/1"

M = TypeVar("M")


def encode(message: Any) -> bytes:
    """Write a message, a dataclass of int, str, bytes, tuples and such dataclasses, as its one encoding."""
    parts: list[bytes] = []
    _write(f"{VERSION} {type(message).__name__}", parts)
    _write(message, parts)
    return b"".join(parts)


def digest(message: Any) -> bytes:
    """Name a message by the SHA-256 of its encoding; 32 bytes."""
    return hashlib.sha256(encode(message)).digest()


def decode(kind: type[M], data: bytes) -> M:
    """Read a message of a class. Raises MaskingError for anything but that message's one encoding."""
    what = kind.__name__
    try:
        tag, at = _read(str, data, 0)
        message, end = _read(kind, data, at)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise MaskingError(
            f"{len(data)} bytes were received that are no {what} message; send the message again"
        ) from error
    if tag != f"{VERSION} {what}" or end != len(data):
        raise MaskingError(
            f"a message {tag[:60]!r} of {len(data)} bytes is no {what} message of {VERSION}; update Cairn"
        )
    assert isinstance(message, kind)
    return message


def _write(value: Any, parts: list[bytes]) -> None:
    kind: Any = type(value)
    if kind is int:
        parts.append(struct.pack("<Q", value))
    elif kind is bytes:
        parts.append(struct.pack("<I", len(value)))
        parts.append(value)
    elif kind is str:
        _write(value.encode(), parts)
    elif kind is tuple:
        parts.append(struct.pack("<I", len(value)))
        for item in value:
            _write(item, parts)
    else:
        for name, _ in _fields(kind):
            _write(getattr(value, name), parts)


def _read(kind: Any, data: bytes, at: int) -> tuple[Any, int]:
    if kind is int:
        (number,) = struct.unpack_from("<Q", data, at)
        return number, at + 8
    if is_dataclass(kind):
        known: Any = kind
        values = []
        for _, hint in _fields(known):
            value, at = _read(hint, data, at)
            values.append(value)
        return known(*values), at
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    # Every item of a tuple takes four bytes or more, so that a false count cannot ask for more memory than it brings.
    if size > len(data) - at:
        raise ValueError("cut short")
    if kind in {bytes, str}:
        raw = data[at : at + size]
        return (raw if kind is bytes else raw.decode()), at + size
    item_kind = _item(kind)
    items = []
    for _ in range(size):
        item, at = _read(item_kind, data, at)
        items.append(item)
    return tuple(items), at


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


@cache
def _item(kind: Any) -> Any:
    assert get_origin(kind) is tuple
    return get_args(kind)[0]
