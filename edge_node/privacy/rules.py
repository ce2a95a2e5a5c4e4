"""Whether a plan is private enough for this site, and whether enough of its budget is left."""

from cairn.plan import Plan
from cairn.privacy.terms import UNITS
from edge_node.privacy.ledger import Ledger
from edge_node.settings import SiteSettings


def lacking(plan: Plan, of: bytes, settings: SiteSettings) -> str | None:
    """Say what a plan lacks of the privacy that this site asks for, in the sentence that both sides see; None: nothing.

    of  the plan's fingerprint; one that is paid for already lacks nothing
    Raises ConfigError when the ledger is damaged.
    """
    asked, terms = settings.privacy, plan.privacy
    if terms is None:
        if asked.required:
            return "this site takes part in private plans alone (privacy.required), and this one has no noise"
        return None
    if UNITS.index(terms.unit) < UNITS.index(asked.unit):
        return f"the plan protects each {terms.unit}, and this site asks for each {asked.unit} (privacy.unit)"
    return Ledger(settings.state_dir, asked).against(plan, of)
