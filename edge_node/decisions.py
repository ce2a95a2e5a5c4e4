"""What this site's people decided about single plans: `state_dir/decisions.json`, whole or not at all.

A decision stands in the audit log first, then in the file; the service looks at the file every second. A command that
is killed between the two leaves a line that says what was to be, and the file as it was: decide again.
"""

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cairn.errors import ConfigError
from cairn.files import write_atomically
from edge_node.audit import AuditLog, Departure

FILE = "decisions.json"
Verdict = Literal["approve", "refuse"]
REASON = 200  # characters; the aggregator is told of a refusal


@dataclass(frozen=True)
class Decision:
    """One person's word about one plan.

    by  who, as the machine knows them or as they said
    at  ISO 8601
    """

    verdict: Verdict
    by: str
    at: str
    reason: str = ""
    study: str = ""
    stage: str = ""
    window: int = 0

    @property
    def words(self) -> str:
        """Who and why, in a few words."""
        return f"{self.by}: {self.reason}" if self.reason else self.by


def read_decisions(state_dir: Path) -> Mapping[str, Decision]:
    """Read all decisions by the plan's fingerprint in hex. Raises ConfigError for a file that is damaged."""
    try:
        kept = json.loads((state_dir / FILE).read_bytes())
        return {of: Decision(**one) for of, one in kept.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{FILE} in the state folder is damaged, so it is not known what was refused here; restore it, or delete "
            "it and decide again"
        ) from error


def decide(
    state_dir: Path, of: str, decision: Decision | None, audit: AuditLog, *, by: str = "", login: str = ""
) -> None:
    """Keep a decision about a plan, or with None take back what was decided.

    of         its fingerprint in hex
    by, login  who took it back; as whom the machine knows who decides, for the audit log
    Raises ConfigError, OSError.
    """
    with (state_dir / "decisions.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = dict(read_decisions(state_dir))
        before = known.pop(of, None)
        if decision is not None:
            known[of] = decision
        said = decision or before
        if said is None:
            return
        verb = {"approve": "approved", "refuse": "refused"}[decision.verdict] if decision else "taken back"
        what = f"{verb} by {said.words}" if decision else f"what was decided is taken back{f' by {by}' if by else ''}"
        what += f" (login {login})" if login not in {"", by, said.by} else ""
        audit.append(Departure("decision", what, said.study, said.stage, said.window, 0, "", of))
        with write_atomically(state_dir / FILE, 0o600) as file:
            file.write(json.dumps({key: asdict(one) for key, one in known.items()}, indent=1).encode())


def moment(now: datetime) -> str:
    """Write a moment as decisions and the audit log do."""
    return now.isoformat(timespec="milliseconds")
