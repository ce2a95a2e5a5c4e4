"""The one tree of errors, the same class on both ends of a call.

CairnError
├─ PlanError        UnknownPlan · PlanMismatch · PlanNotApproved
├─ UploadError      OffsetMismatch · ChecksumMismatch · WindowClosed · TooLarge · StorageFull
├─ IdentityError    NotEnrolled · Revoked · WrongRole · BadToken
├─ MaskingError     TooFewSurvivors · RosterChanged
├─ PolicyError      refused by the site's own policy, with the rule's name
├─ StudyError       a study, a run or a site that is not there, or not in the state the call needs
├─ TrainingError    Diverged · TooFewSites
├─ ImageError       unreadable, wrong bands, wrong dtype: the file and what was expected
├─ Unreachable      the other side could not be reached in time
├─ DeviceError      a GPU that failed, has no room or is too old; never crosses the wire
└─ ConfigError      a setting; never crosses the wire

A message is one sentence for a person: what was found, what was expected, what to do.
"""

from typing import ClassVar


class CairnError(Exception):
    """Base of every error that Cairn raises on purpose."""

    grpc_status: ClassVar[str] = "INTERNAL"


class PlanError(CairnError):
    """A plan cannot be used."""

    grpc_status = "FAILED_PRECONDITION"


class UnknownPlan(PlanError):
    """No published plan has this fingerprint."""

    grpc_status = "NOT_FOUND"


class PlanMismatch(PlanError):
    """Tables, keys or a sketch belong to another plan than the one named."""


class PlanNotApproved(PlanError):
    """The site has not approved this plan."""

    grpc_status = "PERMISSION_DENIED"


class UploadError(CairnError):
    """An upload cannot be taken as it is."""

    grpc_status = "FAILED_PRECONDITION"


class OffsetMismatch(UploadError):
    """The upload continues at another place than the aggregator has committed.

    committed_size  bytes already held; resume there
    """

    grpc_status = "OUT_OF_RANGE"

    def __init__(self, message: str, committed_size: int = 0) -> None:
        super().__init__(message)
        self.committed_size = committed_size


class ChecksumMismatch(UploadError):
    """The bytes received are not the bytes that were announced."""

    grpc_status = "DATA_LOSS"


class WindowClosed(UploadError):
    """The stage no longer takes uploads; keep the tally, it is not needed."""


class TooLarge(UploadError):
    """The upload or message is over the quota."""

    grpc_status = "RESOURCE_EXHAUSTED"


class StorageFull(UploadError):
    """The disk is full; nothing was half-written, try again when there is room."""

    grpc_status = "UNAVAILABLE"


class IdentityError(CairnError):
    """The caller is not who the call needs."""

    grpc_status = "UNAUTHENTICATED"


class NotEnrolled(IdentityError):
    """No enrolled site or operator has this certificate."""


class Revoked(IdentityError):
    """The certificate was revoked by the operator."""

    grpc_status = "PERMISSION_DENIED"


class WrongRole(IdentityError):
    """The role in the certificate may not call this service."""

    grpc_status = "PERMISSION_DENIED"


class BadToken(IdentityError):
    """The enrolment token is unknown, used or expired."""


class MaskingError(CairnError):
    """Secure aggregation cannot go on."""

    grpc_status = "ABORTED"


class TooFewSurvivors(MaskingError):
    """Fewer sites answered than the threshold needs."""


class RosterChanged(MaskingError):
    """The roster is not the one that was agreed."""


class PolicyError(CairnError):
    """The site's own policy refuses; the message names the rule."""

    grpc_status = "PERMISSION_DENIED"


class StudyError(CairnError):
    """A study, run or site does not exist, or is not in the state that the call needs."""

    grpc_status = "FAILED_PRECONDITION"


class TrainingError(CairnError):
    """Training cannot go on, or not as asked for."""

    grpc_status = "FAILED_PRECONDITION"


class Diverged(TrainingError):
    """A loss, gradient or weight is not a finite number; the weights from before are kept."""


class TooFewSites(TrainingError):
    """Fewer sites answered a round than the run needs."""


class ImageError(CairnError):
    """An image cannot be read as the plan needs; the message names the file and what was expected."""

    grpc_status = "INVALID_ARGUMENT"


class Unreachable(CairnError):
    """The other side did not answer in time."""

    grpc_status = "UNAVAILABLE"


class DeviceError(CairnError):
    """A GPU failed, has no room, or is of an unsupported kind. Never crosses the wire."""


class ConfigError(CairnError):
    """A setting is missing, unknown or wrong. Never crosses the wire."""


def error_classes() -> dict[str, type[CairnError]]:
    """Return every class of the tree by its name, the kind that travels in trailing metadata."""
    found: dict[str, type[CairnError]] = {}
    waiting: list[type[CairnError]] = [CairnError]
    while waiting:
        cls = waiting.pop()
        found[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return found
