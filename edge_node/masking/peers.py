"""Whom this site is ready to be summed with: sites with certificates of its federation's CA, as its settings allow."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from cairn.errors import IdentityError, MaskingError
from cairn.masking.checks import Identities
from cairn.rpc import Identity, certificate_identity
from cairn.v1 import masking_pb2


def identities(
    peers: Iterable[masking_pb2.Peer],
    authority: x509.Certificate,
    federation: str,
    allowed: Sequence[str] | None,
    now: datetime,
) -> Identities:
    """Return the keys of a roster's sites, each from a certificate that was checked.

    authority  the federation's CA, pinned at enrolment
    allowed    patterns of the names that this site's people are ready to be summed with; None allows all
    Raises MaskingError with the first site that cannot be believed.
    """
    found: dict[str, ec.EllipticCurvePublicKey] = {}
    for peer in peers:
        name = peer.site[:80]
        if allowed is not None and not any(fnmatchcase(peer.site, pattern) for pattern in allowed):
            raise MaskingError(f"{name!r} is in the roster and this site's settings do not name it under masking.peers")
        try:
            leaf = x509.load_pem_x509_certificates(peer.chain_pem.encode())[0]
            leaf.verify_directly_issued_by(authority)
            who = certificate_identity(leaf)
        except (ValueError, TypeError, InvalidSignature, IdentityError) as error:
            raise MaskingError(f"the certificate of {name!r} is not of this federation's CA; stop this sum") from error
        key = leaf.public_key()
        if who != Identity(federation, "site", peer.site) or not isinstance(key, ec.EllipticCurvePublicKey):
            raise MaskingError(f"a certificate of {who} was shown for the site {name!r}; stop this sum")
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise MaskingError(f"the certificate of {name!r} does not hold now; it must be renewed first")
        found[peer.site] = key
    return found
