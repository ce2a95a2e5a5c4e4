"""How a session goes on: each step is made of what is stored, and stored before anybody sees it.

    advertisements → roster → dealings → circle → masked words → survivors → votes → reveals → the sum

A step is taken when all have sent what it needs, or when its time is over and enough have; with too few, giving the
session up is put to the vote, and another attempt begins. A run's rounds have one attempt: what they would wait for is
old by then.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session as Database

from aggregator import database, tables
from aggregator.intake import merging
from aggregator.intake.store import BlobStore
from aggregator.masking import late, ledger
from aggregator.masking.ledger import Held
from cairn import codec
from cairn.errors import TooFewSurvivors
from cairn.masked import session_of, unmasked
from cairn.masking import server
from cairn.masking.canonical import encode
from cairn.masking.messages import Survivors
from cairn.masking.rules import LEAST_MEMBERS

AGGREGATOR = "aggregator"
Made = tuple[str, bytes] | None  # kind and bytes of a message of the aggregator's own


@dataclass(frozen=True)
class Wanted:
    """What a plan's sum waits for.

    sites      enrolled, and they did not refuse
    least      fewer are not summed
    deadline   of the plan: from then on the roster is made of those who are ready
    patience   for which each later step waits
    once       too few sites end it, in place of another attempt
    """

    sites: Collection[str]
    least: int
    deadline: datetime
    patience: timedelta
    once: bool = False


@dataclass(frozen=True)
class Turn:
    """What a look at a sum led to.

    message  what people should know while it waits
    merged   sites in the sum, of its last step
    """

    changed: bool
    message: str = ""
    merged: int = 0


class Sums:
    """Takes the sessions of masked plans on; every process of the aggregator may.

    folder   on a disk of this machine, for the merged file until it is in the store
    changed  called after a step: sites wait for it
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        folder: Path,
        now: Callable[[], datetime],
        changed: Callable[[], None],
    ) -> None:
        self._engine, self._store, self._folder = engine, store, folder
        self._now, self._changed = now, changed

    def turn(self, plan: tables.Plan, wanted: Wanted) -> Turn:
        """Take a plan's sum one step on, if it can go on; the last step merges and ends the plan.

        Raises TooFewSurvivors when too few are there for what has one attempt.
        """
        with database.reading(self._engine) as rows:
            sessions = ledger.of_plan(rows, plan.fingerprint)
        if not sessions or sessions[-1].given_up:
            return self._begin(plan, len(sessions) + 1)
        held = sessions[-1]
        overdue = self._now() >= held.since + wanted.patience
        try:
            if held.votes is not None:
                return self._merge(plan, held) if _revealed(held, late=overdue) else Turn(changed=False)
            made = self._roster(held, wanted) if "roster" not in held.made else _next(held, wanted, late=overdue)
        except TooFewSurvivors as error:
            if wanted.once and (overdue or "roster" not in held.made):
                raise
            if not overdue or "survivors" in held.made or "roster" not in held.made:
                return Turn(changed=False, message=str(error))
            made = "survivors", encode(Survivors(()))  # put to the vote: give up, and try again
        if made is None:
            return Turn(changed=False)
        with database.writing(self._engine) as rows:
            ledger.step(rows, held, *made, self._now())
        self._changed()
        return Turn(changed=True)

    def _begin(self, plan: tables.Plan, attempt: int) -> Turn:
        decoded, fingerprint = codec.decode_plan(plan.published), bytes.fromhex(plan.fingerprint)
        with database.writing(self._engine) as rows:
            if attempt == len(ledger.of_plan(rows, plan.fingerprint)) + 1:  # else another process began it meanwhile
                session = session_of(decoded, fingerprint, attempt, late.joinable(rows, plan))
                ledger.begin(rows, session, self._now())
        self._changed()
        return Turn(changed=True)

    def _roster(self, held: Held, wanted: Wanted) -> Made:
        """Make the roster when all are ready, or those who are at the deadline. Raises TooFewSurvivors."""
        ready = [signed for site, signed in held.advertisements.items() if site in wanted.sites]
        missing = set(wanted.sites) - held.advertisements.keys()
        if missing and self._now() < wanted.deadline:
            return None
        least = max(LEAST_MEMBERS, wanted.least)
        if len(ready) < least:
            raise TooFewSurvivors(
                f"{len(ready)} sites are ready for the masked sum and {least} are needed; the stage waits for more"
            )
        return "roster", encode(server.make_roster(held.session, ready, held.identities))

    def _merge(self, plan: tables.Plan, held: Held) -> Turn:
        """Add the survivors' words, take the masks off, and enter sum and ledger in one transaction."""
        receipts = {member: held.receipts[member].body for member in held.surviving}
        mask = server.unmask(held.on, held.within, held.circle_dealings, held.surviving, held.reveals.values())
        with ExitStack() as stack:
            uploads = [stack.enter_context(self._store.open(one.masked.hex())) for one in receipts.values()]
            fingerprint = bytes.fromhex(plan.fingerprint)
            tally = unmasked(codec.decode_plan(plan.published), fingerprint, uploads, mask)
        merged = merging.store_merged(self._store, tally, self._folder)
        size = held.session.words * held.session.bits // 8
        sites = [held.on.name(member) for member in receipts]
        with database.writing(self._engine) as rows:
            row = rows.get_one(tables.Plan, plan.fingerprint)
            if row.state != "open":
                return Turn(changed=False)
            now = self._now()
            entered = [
                tables.Upload(
                    plan=window.hex(),
                    site=site,
                    digest=receipt.masked.hex(),
                    size=size if window == fingerprint else 0,  # its bytes are booked once
                    raw_bytes=_raw_bytes(rows, window.hex(), site),
                    committed_at=now,
                )
                for site, receipt in zip(sites, receipts.values(), strict=True)
                for window in receipt.covers
            ]
            rows.add_all(entered)
            rows.flush()
            row.state, row.closed_at, row.sites_expected = "done", now, sites
            numbers = [upload.id for upload in entered]
            rows.add(tables.Merge(plan=plan.fingerprint, digest=merged, uploads=numbers, at=now))
            about = {"study": plan.study, "stage": plan.stage, "window": plan.window, "sites": sites}
            database.audit(
                rows, now, AGGREGATOR, "merge", plan.fingerprint, **about, digest=merged, uploads=numbers,
                masked=True, attempt=held.session.attempt,
            )  # fmt: skip
        ledger.forget()
        self._changed()
        return Turn(changed=True, merged=len(sites))


def _next(held: Held, wanted: Wanted, *, late: bool) -> Made:
    """Make what follows the roster; None while there is something to wait for. Raises TooFewSurvivors."""
    if "survivors" in held.made:
        asked = set(held.surviving or range(held.on.numbers.members))  # to give up, everybody
        if not late and not asked <= held.signed_votes.keys():
            return None
        return "votes", encode(server.make_votes(held.on, held.signed_votes.values(), held.identities))
    if "circle" not in held.made:
        if not late and len(held.dealings) < held.on.numbers.members:
            return None
        return "circle", encode(server.make_circle(held.on, held.dealings, held.identities))
    if not late and not set(held.within.dealers) <= held.receipts.keys():
        return None
    least = LEAST_MEMBERS if wanted.once else wanted.least  # down to the threshold, where there is no other attempt
    if len(held.receipts) < least:
        raise TooFewSurvivors(f"{len(held.receipts)} sites sent their masked tally and {least} are needed")
    receipts = held.receipts.values()
    return "survivors", encode(server.make_survivors(held.on, held.within, receipts, held.identities))


def _revealed(held: Held, *, late: bool) -> bool:
    """Tell whether to take the masks off: all survivors revealed their shares, or enough did and the time is over.

    Raises TooFewSurvivors.
    """
    enough = len(held.reveals) >= held.on.numbers.threshold
    if late and not enough:
        raise TooFewSurvivors(
            f"{len(held.reveals)} sites revealed their shares and {held.on.numbers.threshold} are needed; the sum "
            "waits for more of them"
        )
    return enough and (late or set(held.surviving) <= held.reveals.keys())


def _raw_bytes(rows: Database, plan: str, site: str) -> int:
    progress = rows.get(tables.Progress, (plan, site))
    return progress.raw_bytes if progress else 0
