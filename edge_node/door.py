"""The one door: everything that could tell of a site's images passes here, and is first written into the audit log.

The hours delay; the bytes of a day delay until the next; what is larger than a whole day's bytes, or was refused by a
person, does not leave at all. What left today is read from the audit log, so a restart forgets nothing.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from edge_node.audit import AuditLog, Departure, read
from edge_node.decisions import read_decisions
from edge_node.policy import open_at, opens
from edge_node.settings import Policy

COUNTED = frozenset({"tally", "update", "masking"})


@dataclass(frozen=True)
class Shut:
    """Why something does not leave now.

    kind      what the aggregator is told too
    sentence  the whole, for the site
    final     no waiting helps
    """

    kind: str
    sentence: str
    final: bool = False


class Door:
    """Asked before anything leaves; safe to use from all threads.

    decisions  folder of what people decided; None: nobody can
    now        the clock, aware
    updates    why model updates do not leave as they are; None: they do. Masked ones pass as masked sums
    """

    def __init__(
        self,
        policy: Policy,
        audit: AuditLog,
        decisions: Path | None,
        now: Callable[[], datetime],
        updates: str | None = None,
    ) -> None:
        self._policy, self._audit, self._decisions, self._now, self._updates = policy, audit, decisions, now, updates
        self._lock = threading.Lock()

    @classmethod
    def wide(cls, audit: AuditLog) -> Self:
        """Make the door of a site without a policy: everything leaves, and stands in the audit log first."""
        return cls(Policy(), audit, None, lambda: datetime.now(UTC))

    def closed(self) -> Shut | None:
        """Say whether the hours keep everything back now."""
        local = self._now().astimezone()
        if open_at(self._policy.hours, local):
            return None
        until = opens(self._policy.hours, local)
        return Shut(
            "waits for the hours in which this site sends",
            f"nothing leaves outside of this site's hours (policy.hours); they begin at {until:%a %H:%M}",
        )

    def leave(self, departure: Departure) -> Shut | None:
        """Write a departure into the audit log, once, and let it go; or say why not. Raises OSError on a full disk."""
        with self._lock:
            if (shut := self._refused(departure) or self.closed() or self._over(departure)) is not None:
                return shut
            self._audit.append_once(departure)
            return None

    def _refused(self, departure: Departure) -> Shut | None:
        if self._updates is not None and departure.event == "update":
            return Shut("a model update in plain was kept back", self._updates, final=True)
        decided = read_decisions(self._decisions).get(departure.plan) if self._decisions else None
        if decided is None or decided.verdict != "refuse":
            return None
        return Shut("a plan was refused here", f"{departure.study} was refused here by {decided.words}")

    def _over(self, departure: Departure) -> Shut | None:
        most = self._policy.bytes_per_day
        if most is None or departure.event not in COUNTED:
            return None
        if departure.size > most:
            sentence = (
                f"the {departure.what} of {departure.study} has {departure.size:,} bytes, and this site lets out "
                f"{most:,} a day (policy.bytes_per_day)"
            )
            return Shut("larger than what this site lets out in a day", sentence, final=True)
        local = self._now().astimezone()
        left = 0
        for line in read(self._audit.path):
            if (line.event, line.plan, line.digest) == (departure.event, departure.plan, departure.digest):
                return None  # it was let out before, and is counted in its own day
            if line.event in COUNTED and datetime.fromisoformat(line.time).astimezone().date() == local.date():
                left += line.size
        if left + departure.size <= most:
            return None
        sentence = (
            f"{left:,} bytes left this site today and {departure.size:,} more would be over {most:,} "
            "(policy.bytes_per_day); the rest waits for tomorrow"
        )
        return Shut("waits, as the bytes of the day have left", sentence)
