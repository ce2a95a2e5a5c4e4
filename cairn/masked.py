"""A tally as masked words, and the sum of masked words as a tally: what site and aggregator must do alike.

The words are the cells of all tables in the plan's order, each mod 2^bits, little-endian.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np

from cairn.errors import MaskingError
from cairn.masking.messages import Session
from cairn.masking.stream import Mask, Words, from_words, to_words
from cairn.plan import Plan
from cairn.tally import Tables, Tally, check_table, zeros

SLICE: Final = 1 << 18  # words at a time


def session_of(plan: Plan, fingerprint: bytes, attempt: int, late: tuple[bytes, ...] = ()) -> Session:
    """Name the session of a masked plan: the same at every party. Raises MaskingError for a plan in plain.

    late  fingerprints of earlier windows that sites may add to their tally
    """
    if plan.secrecy is None:
        raise MaskingError(f"the plan of {plan.study}, {plan.stage.stage} is not masked; send its tally in plain")
    return Session(fingerprint, plan.stage.stage, plan.window, attempt, plan.cells, **vars(plan.secrecy), late=late)


def plain_digest(plan: Plan, tally: Tally, members: int) -> bytes:
    """Return the SHA-256 of a tally's words before they are masked. Raises MaskingError for too large a cell."""
    found = hashlib.sha256()
    for words in _slices(plan, tally, members):
        found.update(words.data)
    return found.digest()


def write_masked(file: BinaryIO, plan: Plan, tally: Tally, members: int, mask: Mask) -> bytes:
    """Write a tally's masked words; returns their SHA-256. Raises MaskingError for too large a cell, OSError."""
    found = hashlib.sha256()
    for words in _slices(plan, tally, members):
        mask.apply(words)
        found.update(words.data)
        file.write(words.data)
    return found.digest()


def _slices(plan: Plan, tally: Tally, members: int) -> Iterator[Words]:
    assert plan.secrecy is not None  # the caller has a session of it
    for name in plan.stage.shapes():
        cells = tally.tables[name].reshape(-1)
        for first in range(0, len(cells), SLICE):
            yield to_words(cells[first : first + SLICE], plan.secrecy.bits, members)


def unmasked(plan: Plan, fingerprint: bytes, uploads: list[BinaryIO], mask: Mask) -> Tally:
    """Add masked uploads and take the masks off their sum: the plain sum of their tallies, bit for bit.

        Σ x_i = Σ y_i + mask mod 2^bits        `masking.server.unmask`

    uploads  the survivors' words, from their beginning
    Raises MaskingError when an upload is too short; PlanMismatch for a sum that no counts can have.
    """
    assert plan.secrecy is not None
    kind = np.dtype(f"<u{plan.secrecy.bits // 8}")
    tables: Tables = zeros(plan.stage)
    for table in tables.values():
        cells = table.reshape(-1)
        for first in range(0, len(cells), SLICE):
            part = cells[first : first + SLICE]
            total = np.zeros(len(part), kind)
            for upload in uploads:
                data = upload.read(part.size * kind.itemsize)
                if len(data) != total.nbytes:
                    raise MaskingError("a masked upload is shorter than its plan; restore the store from a backup")
                total += np.frombuffer(data, kind)
            mask.apply(total)
            part[:] = from_words(total)
    for name, table in tables.items():
        check_table(name, table, noisy=plan.privacy is not None)
    return Tally(fingerprint, tables)
