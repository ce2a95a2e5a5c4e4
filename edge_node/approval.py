"""What this site takes part in: the only place that says yes to a plan."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from cairn.errors import PlanNotApproved
from cairn.plan import Plan
from cairn.rpc import NAME


def approve(plan: Plan, fingerprint: bytes, studies: Sequence[str], fingerprints: Sequence[str]) -> None:
    """Let a plan pass when its study's name fits a pattern or its fingerprint is listed.

    studies       patterns as of file names: tumour-*
    fingerprints  hexadecimal, 64 digits
    Raises PlanNotApproved with the sentence that both sides see.
    """
    if not NAME.fullmatch(plan.study):
        raise PlanNotApproved("the study's name is not made of a-z, 0-9 and - alone; publish it under another name")
    if fingerprint.hex() in fingerprints or any(fnmatchcase(plan.study, pattern) for pattern in studies):
        return
    raise PlanNotApproved(
        f"this site has not approved study {plan.study}, stage {plan.stage.stage} "
        f"(plan {fingerprint.hex()[:12]}…); its settings name what it takes part in"
    )
