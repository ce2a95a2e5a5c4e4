"""Bytes out of a file, and failures into one sentence; what all readers do alike."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError

# What these log about a broken file reaches the user as one ImageError instead. One of them sets its level anew when
# it is imported, another brings a handler for the terminal, so both ways out are closed.
for library in ("tifffile", "nibabel.global", "pydicom", "wsidicom"):
    logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    logging.getLogger(library).addHandler(logging.NullHandler())
    logging.getLogger(library).propagate = False

CACHED_BYTES = 64 << 10
UNREADABLE = "corrupt or truncated, its pixels cannot be decoded; copy or export it again"


def read_into(file: BinaryIO, offset: int, out: npt.NDArray[Any], name: str) -> None:
    """Fill a C-contiguous array with the bytes at an offset, without a copy between. Raises ImageError when short."""
    view = out.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = os.preadv(file.fileno(), [view[done:]], offset + done)
        if count == 0:
            raise ImageError(f"{name}: truncated, the file ends before its pixels do; copy or export it again")
        done += count


def read_bytes(file: BinaryIO, offset: int, count: int, name: str) -> bytes:
    """Return `count` bytes at an offset. Raises ImageError when short."""
    data = os.pread(file.fileno(), count, offset)
    if len(data) < count:
        raise ImageError(f"{name}: truncated, the file ends before its pixels do; copy or export it again")
    return data


def bands_first(values: npt.NDArray[Any], bands: Sequence[int]) -> npt.NDArray[Any]:
    """Turn interleaved values[h, w, all bands] into values[wanted bands, h, w] in native byte order.

    Row by row, as a row fits the processor's cache: 5 to 8 times as fast as one transposition or band by band. Short
    rows, as of colours, go many at once: 1.6 to 7 times as fast, and other threads wait less for the interpreter.
    """
    out = np.empty((len(bands), *values.shape[:2]), values.dtype.newbyteorder("="))
    everything = list(bands) == list(range(values.shape[2]))
    planes = values.transpose(2, 0, 1)
    rows = CACHED_BYTES // max(1, values[:1].nbytes)
    for i in range(0, len(values), rows) if rows >= 4 else range(len(values)):
        at = slice(i, i + rows) if rows >= 4 else i
        out[:, at] = planes[:, at] if everything else planes[:, at][list(bands)]
    return out


def listed(names: Sequence[str], most: int = 60) -> str:
    """Write band names for a message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


class _Quiet:
    """Ignores warnings while any thread is inside.

    Python has one list of filters for all threads: would each keep it and put it back for itself, the last to leave
    could put back what another had set.
    """

    def __init__(self) -> None:
        self._turn, self._inside = threading.Lock(), 0
        self._found = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._turn:
            if self._inside == 0:
                self._found = warnings.catch_warnings()
                self._found.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *failed: object) -> None:
        with self._turn:
            self._inside -= 1
            if self._inside == 0:
                self._found.__exit__(None, None, None)


_QUIET = _Quiet()


@contextmanager
def explained(name: str, otherwise: str = UNREADABLE) -> Iterator[None]:
    """Turn whatever a library raises into ImageError, and keep its warnings from the user.

    A decoder fed with broken bytes raises anything at all; its text may quote the file, so it is only chained.
    """
    try:
        with _QUIET:
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file any more; expected it to stay while it is read") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read by this user; grant read permission") from error
    except MemoryError as error:
        raise ImageError(f"{name}: needs more memory than there is; store it in tiles") from error
    except Exception as error:
        raise ImageError(f"{name}: {otherwise}") from error


@contextmanager
def unpacking(name: str) -> Iterator[None]:
    """Turn what a disk raises when it takes no more into ImageError."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"{name}: cannot be unpacked to the temporary folder; make room there") from error
