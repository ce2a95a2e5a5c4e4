"""A log that shows when it was changed: lines of JSON, each with the SHA-256 of the line before it.

A line that was changed, taken out or slipped in later breaks the chain at its place. Whoever can write the whole log
can also make a new chain: note the last digest elsewhere from time to time, and ask for it with `known`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

FIRST = "0" * 64  # stands before the first line


@dataclass(frozen=True)
class Verdict:
    """What a look at a whole log has shown.

    lines   that were read
    before  of them, those at the beginning that are older than the chain and say of no line before
    broken  number, from 1, of the first line that does not follow from the one before; None: whole
    head    digest of the last line; `FIRST` of an empty log
    knows   whether the digest that was asked for is that of a line here; True when none was asked for
    """

    lines: int
    before: int
    broken: int | None
    head: str
    knows: bool

    @property
    def whole(self) -> bool:
        """Nothing is wrong."""
        return self.broken is None and self.knows


def write_line(fields: Mapping[str, object], previous: str | None) -> bytes:
    """Write a line of the log, without its end; `previous` is the digest of the line before."""
    return json.dumps({**fields, "previous": previous}, ensure_ascii=False, separators=(",", ":")).encode()


def digest(line: bytes) -> str:
    """Return a line's digest, which the next one holds."""
    return hashlib.sha256(line).hexdigest()


def verify(lines: Iterable[bytes], known: str = "") -> Verdict:
    """Read a log from its beginning; it is read to its end also when it is broken.

    known  the digest of a line that must be there, as it was noted elsewhere; "" asks for none
    """
    head, number, before = FIRST, 0, 0
    broken: int | None = None
    knows = known in {"", FIRST}
    for number, line in enumerate(lines, 1):
        said = _previous(line)
        if said == "" and before == number - 1:
            before = number
        elif said != head and broken is None:
            broken = number
        head = digest(line)
        knows = knows or head == known
    return Verdict(number, before, broken, head, knows)


def show(found: Verdict, *, as_json: bool) -> str:
    """Say a verdict in words, or as one JSON object."""
    if as_json:
        return json.dumps({**asdict(found), "whole": found.whole})
    older = f", {found.before} of them from before the chain began" if found.before else ""
    if found.broken is not None:
        return f"line {found.broken} of {found.lines} does not follow from the line before it: the log was changed"
    if not found.knows:
        return f"the chain of {found.lines} lines holds, but no line has the digest that you noted: the log is another"
    return f"the log is whole: {found.lines} lines{older}; the last one's digest is {found.head}"


def _previous(line: bytes) -> str | None:
    """Say which digest a line holds; "" where it says that it has none, None where it is no line of a log."""
    try:
        value = json.loads(line)["previous"]
    except (ValueError, KeyError, TypeError):
        return None
    return "" if value is None else value if isinstance(value, str) and value else None
