"""Uploads: partial files that only grow, then one transaction that counts a tally once or not at all.

    query → append, append, … → finish: check the file → blob → ledger row and audit row together

A partial file is named by (plan, site) and by the digest that the site announced. What a crash leaves is either a
shorter partial file, or a blob that no ledger row names; both do no harm, and the site goes on from what `query` says.
"""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake.parts import CHUNK, Parts
from aggregator.intake.store import BlobStore, storage_full
from cairn import codec
from cairn.errors import ChecksumMismatch, OffsetMismatch, PlanMismatch, Revoked, TooLarge, UnknownPlan, WindowClosed
from cairn.plan import Plan, Stage
from cairn.sealing import Sealer
from cairn.tally import check_table

MESSAGE = 1 << 20
_PLAN = re.compile("[0-9a-f]{64}")


class Masked(Protocol):
    """What becomes of masked words; both in a session of the caller's."""

    def receipt(self, rows: Session, plan: str, site: str, digest: str, size: int, body: bytes) -> None:
        """Take words that are whole in the store, with the receipt that their site signed. Raises MaskingError."""

    def complete(self, rows: Session, plan: str, site: str, digest: str) -> bool:
        """Tell whether they were taken before."""


@dataclass(frozen=True)
class Committed:
    """How far an upload is: bytes on the disk, or complete in the ledger."""

    size: int
    complete: bool


@dataclass(frozen=True)
class Entered:
    """An upload that entered the ledger: of which site, for which plan.

    window  of a study, or round of a run
    """

    site: str
    study: str
    stage: str
    window: int
    plan: str
    size: int


def quota(stage: Stage) -> int:
    """Most bytes that a tally file of a stage can have: int64 tables that nothing could make smaller, and the head."""
    plain = sum(8 * int(np.prod(shape, dtype=object)) for shape in stage.shapes().values())
    return plain + plain // 128 + 1024 * len(stage.shapes()) + codec.HEADER_LIMIT


class Uploads:
    """The way of a tally from a stream of messages into the ledger.

    spool    folder of partial files, on a disk of this machine
    largest  most bytes of any upload, whatever its plan
    now      the clock
    counted  told of an upload after it entered the ledger
    masked   takes the words of masked plans, of which no tally is taken in plain
    sealer   seals partial files as the store seals what is whole
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        spool: Path,
        *,
        largest: int,
        now: Callable[[], datetime],
        counted: Callable[[Entered], None],
        masked: Masked,
        sealer: Sealer | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._spool = spool
        self._parts = Parts(sealer)
        self._largest = largest
        self._now = now
        self._counted = counted
        self._masked = masked
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._quotas: dict[str, int] = {}  # of open plans; a published plan never changes
        self._locks_lock = threading.Lock()

    def query(self, plan: str, site: str, digest: str) -> Committed:
        """Say how many bytes of the file with this digest are safe on the disk; a part of another file is dropped.

        Raises UnknownPlan, WindowClosed.
        """
        if self._in_ledger(plan, site, digest):
            return Committed(0, complete=True)
        with self._alone(plan, site), storage_full("the aggregator cannot take the upload"):
            if self._in_ledger(plan, site, digest):  # meanwhile: by a call that a killed site left behind
                return Committed(0, complete=True)
            part = self._parts.begin(self._folder(plan, site), digest)
            return Committed(self._parts.committed(part), complete=False)

    def append(self, plan: str, site: str, offset: int, data: bytes) -> None:
        """Append one message's data. Not yet safe: `committed` or `query` make it so.

        Raises OffsetMismatch, TooLarge, StorageFull, UnknownPlan, WindowClosed.
        """
        with self._alone(plan, site):
            self._append(plan, site, offset, data)

    def committed(self, plan: str, site: str) -> int:
        """Make what arrived safe and say how many bytes it is."""
        with self._alone(plan, site):
            return self._parts.committed(self._part(plan, site))

    def finish(self, plan: str, site: str, offset: int, data: bytes, digest: str, receipt: bytes = b"") -> int:
        """Append the last data, check the whole file and count it, once; returns its size.

        receipt  that its site signed for masked words, empty for a tally in plain
        Finishing again with the same digest changes nothing. Raises as `append` does, and ChecksumMismatch and
        PlanMismatch (the part is dropped), Revoked, MaskingError.
        """
        with self._alone(plan, site):
            if self._in_ledger(plan, site, digest):
                shutil.rmtree(self._folder(plan, site), ignore_errors=True)
                return offset + len(data)
            self._append(plan, site, offset, data)
            part, of = self._part(plan, site), self._open_plan(plan)
            try:
                with self._parts.open(part) as file:
                    check_file(file, digest, plan, of, masked=bool(receipt))
            except (ChecksumMismatch, PlanMismatch):
                part.unlink()
                raise
            size = self._parts.size(part)
            if self._parts.sealed:
                with self._parts.open(part) as file:
                    self._store.put_open(file, digest)
            else:
                self._store.put(part, digest)
            database.together(self._engine, partial(self._enter, plan, site, digest, size, receipt))
            shutil.rmtree(self._folder(plan, site), ignore_errors=True)
        self._counted(Entered(site, of.study, of.stage.stage, of.window, plan, size))
        return size

    def forget(self, plan: str) -> None:
        """Drop the partial files of a plan that takes no more uploads."""
        shutil.rmtree(self._spool / plan, ignore_errors=True)
        with self._locks_lock:
            self._quotas.pop(plan, None)
            for key in [key for key in self._locks if key[0] == plan and not self._locks[key].locked()]:
                del self._locks[key]

    def tidy(self) -> None:
        """Drop the partial files of plans that are closed, which a crash left, or another process's closing."""
        # Listed first: a plan that opens meanwhile has no folder yet.
        kept = (
            [folder.name for folder in self._spool.iterdir() if _PLAN.fullmatch(folder.name)]
            if self._spool.is_dir()
            else []
        )
        with database.reading(self._engine) as session:
            wanted = set(session.scalars(select(tables.Plan.fingerprint).filter_by(state="open")))
        for plan in set(kept) - wanted:
            self.forget(plan)

    def _append(self, plan: str, site: str, offset: int, data: bytes) -> None:
        if len(data) > MESSAGE:
            raise TooLarge(f"a message brought {len(data)} bytes where at most {MESSAGE} are taken; send smaller ones")
        limit = self._quota(plan)
        part = self._part(plan, site)
        size = self._parts.size(part)
        if offset != size:
            raise OffsetMismatch(
                f"the upload goes on at byte {offset}, but {size} bytes are here; resume at {size}",
                self._parts.committed(part),
            )
        if size + len(data) > limit:
            part.unlink(missing_ok=True)
            raise TooLarge(f"the upload is over the {limit} bytes that a tally of this plan can have")
        with storage_full("the aggregator cannot take the upload"):
            self._parts.append(part, data, size)

    def _enter(self, plan: str, site: str, digest: str, size: int, receipt: bytes, session: Session) -> None:
        # What was true when the file was checked may have changed since: the stage closed, the site revoked, or
        # another process of this aggregator counted the same upload.
        if _counted_already(session, plan, site, digest):
            return
        _check_open(session, plan)
        member = session.get(tables.Member, site)
        if member is None or member.state != "enrolled":
            raise Revoked(f"the site {site} was revoked while it sent its tally, which is not counted")
        if receipt:
            self._masked.receipt(session, plan, site, digest, size, receipt)
            return
        progress = session.get(tables.Progress, (plan, site))
        session.add(
            tables.Upload(
                plan=plan,
                site=site,
                digest=digest,
                size=size,
                raw_bytes=progress.raw_bytes if progress else 0,
                committed_at=self._now(),
            )
        )
        database.audit(session, self._now(), f"site/{site}", "upload", plan, digest=digest, size=size)

    def _in_ledger(self, plan: str, site: str, digest: str) -> bool:
        with database.reading(self._engine) as session:
            if _counted_already(session, plan, site, digest) or self._masked.complete(session, plan, site, digest):
                return True
            _check_open(session, plan)
            return False

    def _open_plan(self, plan: str) -> Plan:
        with database.reading(self._engine) as session:
            return codec.decode_plan(_check_open(session, plan).published)

    def _quota(self, plan: str) -> int:
        with self._locks_lock:
            known = self._quotas.get(plan)
        if known is None:
            known = min(self._largest, quota(self._open_plan(plan).stage))
            with self._locks_lock:
                self._quotas[plan] = known
        return known

    def _folder(self, plan: str, site: str) -> Path:
        return self._spool / plan / site

    def _part(self, plan: str, site: str) -> Path:
        return self._parts.find(self._folder(plan, site))

    @contextmanager
    def _alone(self, plan: str, site: str) -> Iterator[None]:
        # One message at a time for an upload: a stream that a broken connection left behind must not write into the
        # file of the stream that took over.
        with self._locks_lock:
            lock = self._locks.setdefault((plan, site), threading.Lock())
        with lock:
            yield


def check_file(file: BinaryIO, digest: str, of: str, plan: Plan, *, masked: bool) -> None:
    """Check a tally file against its digest, its plan and its own checksums, one table in memory at a time.

    of      fingerprint of the plan
    masked  the file came as masked words, of which nothing but the digest can be checked here
    Raises ChecksumMismatch, PlanMismatch.
    """
    if masked != (plan.secrecy is not None):
        wanted, came = ("secretly", "in plain") if plan.secrecy else ("in plain", "masked")
        raise PlanMismatch(f"the plan {of[:12]} is summed {wanted} and a tally came {came}; update this site's Cairn")
    found = hashlib.sha256()
    while chunk := file.read(CHUNK):
        found.update(chunk)
    if found.hexdigest() != digest:
        raise ChecksumMismatch(
            f"the file that arrived has SHA-256 {found.hexdigest()[:12]}, announced was {digest[:12]}; send it again"
        )
    if masked:
        return
    file.seek(0)
    header = codec.read_header(file)
    codec.check_header(header, bytes.fromhex(of), plan.stage)
    for name, table in codec.read_tables(file, header.tables):
        check_table(name, table, noisy=plan.privacy is not None)
    if file.read(1):
        raise ChecksumMismatch("the tally file goes on after its last table; send it again")


def _counted_already(session: Session, plan: str, site: str, digest: str) -> bool:
    there = session.scalars(select(tables.Upload.digest).filter_by(plan=plan, site=site)).one_or_none()
    if there is not None and there != digest:
        raise WindowClosed(
            f"another tally of this site (SHA-256 {there[:12]}) is counted for this plan, so the one with "
            f"{digest[:12]} is not taken; a plan takes one a site"
        )
    return there is not None


def _check_open(session: Session, plan: str) -> tables.Plan:
    row = session.get(tables.Plan, plan)
    if row is None:
        raise UnknownPlan(f"no plan {plan[:12]} was published here; ask for the open plans again")
    if row.state != "open":
        raise WindowClosed(
            f"the stage {row.stage} of {row.study}, window {row.window}, is closed; its tally is not needed any more"
        )
    return row
