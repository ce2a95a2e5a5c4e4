"""What this site takes part in: the only place that says yes to a plan, and the plans on offer with the answers."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cairn import codec
from cairn.errors import CairnError, ConfigError, IdentityError, PlanError, PlanNotApproved
from cairn.plan import Plan, RunStage, fingerprint
from cairn.v1 import plans_pb2
from edge_node import fitness
from edge_node.audit import AuditLog, Departure
from edge_node.decisions import Decision, read_decisions
from edge_node.policy import rules
from edge_node.settings import SiteSettings
from edge_node.status import Log

Reason = str | None


def approve(plan: Plan, of: bytes, settings: SiteSettings, decisions: Mapping[str, Decision] | None = None) -> None:
    """Let a plan pass when no rule of this site is against it.

    decisions  what its people said of single plans, by fingerprint
    Raises PlanNotApproved with the sentence that both sides see.
    """
    for rule in rules(plan, of, settings, decisions or {}):
        if rule.against is not None:
            raise PlanNotApproved(rule.against)


def not_allowed(plan: Plan, of: bytes, settings: SiteSettings) -> Reason:
    """Say which rule of this site is against a plan, its people's latest decisions among them; None: none is."""
    try:
        approve(plan, of, settings, read_decisions(settings.state_dir))
    except (PlanNotApproved, ConfigError) as error:
        return str(error)
    return None


def reason_against(plan: Plan, of: bytes, settings: SiteSettings) -> Reason:
    """Say why the site does not take part in a plan, None when it does: not allowed, or no image does for it."""
    if (reason := not_allowed(plan, of, settings)) is not None:
        return reason
    if isinstance(plan.stage, RunStage):
        return None  # what it counts is made in the round; whether anything is, only the round can tell
    return fitness.lacking(plan, settings.images)


@dataclass(frozen=True)
class Offer:
    """A plan on offer and this site's answer to it.

    plan      None when this version cannot read it
    reason    why the site does not take part, None when it does
    answered  the aggregator has heard it
    final     no new image can change the answer
    """

    fingerprint: bytes
    plan: Plan | None
    reason: Reason
    answered: bool = False
    final: bool = False


class Offers:
    """The open plans as the aggregator last listed them.

    judge    says why the site does not take part in a plan, None when it does
    answer   tells the aggregator; raises CairnError
    allowed  says the same of a plan in which it takes part already, and looks at no image
    """

    def __init__(
        self,
        judge: Callable[[Plan, bytes], Reason],
        answer: Callable[[bytes, Reason], None],
        audit_log: AuditLog,
        log: Log,
        allowed: Callable[[Plan, bytes], Reason] = lambda _plan, _of: None,
    ) -> None:
        self._judge, self._allowed = judge, allowed
        self._answer = answer
        self._audit = audit_log
        self._log = log
        self._lock = threading.RLock()
        self._offers: dict[bytes, Offer] = {}
        self.known = False  # whether the aggregator has told what is open, since this service began

    def take(self, published: Sequence[bytes]) -> None:
        """Take the list of open plans as it is now. Raises IdentityError when the answers are not heard for that."""
        with self._lock:
            now = {}
            for data in published:
                of = fingerprint(data)
                now[of] = self._offers.get(of) or self._first_sight(data, of)
            self.known = True
            self._offers = now  # at once: the work on a plan is given up as soon as it is not open
            self._tell()

    def reconsider(self) -> None:
        """Judge all plans again, as images or a person's decision may have come, and repeat unheard answers."""
        with self._lock:
            for of, offer in self._offers.items():
                if offer.plan and not offer.final:
                    reason = (self._allowed if offer.reason is None else self._judge)(offer.plan, of)
                    if reason != offer.reason:
                        self._offers[of] = replace(offer, reason=reason, answered=False)
            self._tell()

    def refuse(self, of: bytes, reason: str) -> None:
        """Take back an acceptance for good, since the work showed that the site has nothing for the plan."""
        with self._lock:
            if of in self._offers:
                self._offers[of] = replace(self._offers[of], reason=reason, answered=False, final=True)
                self._tell()

    def listed(self) -> list[Offer]:
        """List what is on offer, in the aggregator's order."""
        with self._lock:
            return list(self._offers.values())

    def open(self, of: bytes) -> bool:
        """Tell whether a plan is on offer still."""
        return of in self._offers

    def wanted(self, of: bytes) -> bool:
        """Tell whether a plan is on offer still and this site takes part."""
        offer = self._offers.get(of)
        return offer is not None and offer.reason is None

    def barred(self, of: bytes) -> bool:
        """Tell whether a plan is on offer that a rule of this site is against, whatever was counted for it before."""
        offer = self._offers.get(of)
        return offer is not None and offer.plan is not None and self._allowed(offer.plan, of) is not None

    def masked(self, of: bytes) -> bool:
        """Tell whether a plan is on offer whose tallies are summed secretly."""
        offer = self._offers.get(of)
        return offer is not None and offer.plan is not None and offer.plan.secrecy is not None

    def _first_sight(self, data: bytes, of: bytes) -> Offer:
        try:
            plan = codec.decode_plan(data)
        except PlanError as error:
            return Offer(of, None, str(error), final=True)
        return Offer(of, plan, self._judge(plan, of))

    def _tell(self) -> None:
        for of, offer in self._offers.items():
            if offer.answered:
                continue
            stage = offer.plan.stage.stage if offer.plan else ""
            study, window = (offer.plan.study, offer.plan.window) if offer.plan else ("", 0)
            what = "takes part" if offer.reason is None else f"does not take part: {offer.reason}"
            try:
                size = plans_pb2.AnswerRequest(
                    fingerprint=of, accepted=offer.reason is None, reason=offer.reason or ""
                ).ByteSize()
                self._audit.append_once(Departure("answer", what, study, stage, window, size, "", of.hex()))
                self._answer(of, offer.reason)
            except IdentityError:
                raise
            except (CairnError, OSError) as error:
                self._log.warning("answer not given", plan=of.hex(), kind=type(error).__name__)
                return  # the next change or rescan repeats it
            self._offers[of] = replace(offer, answered=True)
            self._log.info("plan answered", study=study, stage=stage, plan=of.hex(), accepted=offer.reason is None)
