"""What this site allows, rule by rule: the settings, and over them what its people decided about single plans.

rules → the first that says no is the answer that both sides see
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from cairn.plan import Plan, RunStage, UpdatePlan
from cairn.rpc import NAME
from edge_node.decisions import Decision
from edge_node.privacy.rules import lacking
from edge_node.settings import SiteSettings, Span, Stream


@dataclass(frozen=True)
class Rule:
    """One rule and what it says to a plan.

    name     where it is set
    against  why the plan does not pass, one sentence that both sides see; None: it passes
    """

    name: str
    against: str | None


def rules(plan: Plan, of: bytes, settings: SiteSettings, decisions: Mapping[str, Decision]) -> Iterator[Rule]:
    """Hold a plan against all rules, the strictest first.

    of  its fingerprint
    """
    decided = decisions.get(of.hex())
    yield Rule("names", None if NAME.fullmatch(plan.study) else NO_NAME)
    refused = decided is not None and decided.verdict == "refuse"
    yield Rule("decisions", f"refused at this site by {decided.words}" if decided and refused else None)
    of_run = isinstance(plan.stage, RunStage)
    if of_run:
        yield Rule("training", None if settings.training else "this site does not train")
    stream: Stream = "updates" if isinstance(plan.stage, UpdatePlan) else "replay" if of_run else "pixels"
    allowed = ", ".join(settings.policy.streams) or "nothing"
    yield Rule(
        "policy.streams",
        None if stream in settings.policy.streams else f"this site lets out {allowed}, and the plan is of {stream}",
    )
    yield Rule("policy.approvers", _against_approvers(settings.policy.approvers, decided))
    yield Rule("masking", against_plain(stream, settings) if plan.secrecy is None else None)
    yield Rule("privacy", lacking(plan, of, settings))
    yield Rule("approval", _against_names(plan, of, settings, decided, of_run=of_run))


NO_NAME = "the study's name is not made of a-z, 0-9 and - alone; publish it under another name"


IN_WORDS: dict[Stream, str] = {"pixels": "tallies of pixels", "replay": "tallies of replay", "updates": "model updates"}


def against_plain(stream: Stream, settings: SiteSettings) -> str | None:
    """Say why what is not masked does not leave this site; None: it does."""
    if stream not in settings.masking.required:
        return None
    return f"this site lets {IN_WORDS[stream]} out in masked sums alone (masking.required), and these would go in plain"


def against_updates(settings: SiteSettings, *, masked: bool) -> str | None:
    """Say why a run's model updates do not leave this site, or a search's jobs; None: they do."""
    if settings.privacy.required:
        return "this site lets out alone what carries its own noise (privacy.required), and model updates carry none"
    return None if masked else against_plain("updates", settings)


def _against_approvers(approvers: tuple[str, ...], decided: Decision | None) -> str | None:
    if not approvers or (decided is not None and decided.verdict == "approve" and decided.by in approvers):
        return None
    return f"the plan waits for the approval of {' or '.join(approvers)} at this site"


def _against_names(
    plan: Plan, of: bytes, settings: SiteSettings, decided: Decision | None, *, of_run: bool
) -> str | None:
    if (decided is not None and decided.verdict == "approve") or of.hex() in (settings.approval.fingerprints or ()):
        return None
    patterns = settings.approval.studies or ()
    if of_run:
        patterns = settings.training.runs if settings.training else ()
    if any(fnmatchcase(plan.study, pattern) for pattern in patterns):
        return None
    return (
        f"this site has not approved {'run' if of_run else 'study'} {plan.study}, stage {plan.stage.stage} "
        f"(plan {of.hex()[:12]}…); its settings and its people name what it takes part in"
    )


def open_at(hours: tuple[Span, ...], local: datetime) -> bool:
    """Tell whether something may leave at a time of the site's own clock; without hours, at any time."""
    minute, day = 60 * local.hour + local.minute, local.weekday()
    for span in hours:
        if span.begin < span.end:
            inside = day in span.days and span.begin <= minute < span.end
        else:  # over midnight: the hours after it belong to the day before
            late, early = day in span.days and minute >= span.begin, (day - 1) % 7 in span.days and minute < span.end
            inside = late or early
        if inside:
            return True
    return not hours


def opens(hours: tuple[Span, ...], local: datetime) -> datetime:
    """Return the first minute, from a time of the site's own clock on, at which something may leave."""
    if open_at(hours, local):
        return local
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = [
        midnight + timedelta(days=days, minutes=span.begin)
        for days in range(8)
        for span in hours
        if (local.weekday() + days) % 7 in span.days
    ]
    return min(begin for begin in begins if begin > local)
