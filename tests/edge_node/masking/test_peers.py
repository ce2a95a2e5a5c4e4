"""Whom a site is ready to be summed with."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cairn.errors import MaskingError
from cairn.v1 import masking_pb2
from edge_node.masking.peers import identities
from tests.edge_node.federation import Authority

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


def peer(ca: Authority, uri: str, name: str, begin: datetime = NOW - DAY) -> masking_pb2.Peer:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return masking_pb2.Peer(site=name, chain_pem=ca.issue(key, uri, begin, 2 * DAY).decode())


def asked(ca: Authority, *peers: masking_pb2.Peer, allowed: tuple[str, ...] | None = None) -> set[str]:
    authority = x509.load_pem_x509_certificates(ca.pem)[0]
    return set(identities(peers, authority, "trial", allowed, NOW))


def test_sites_of_the_federation_are_believed_by_their_certificates(ca: Authority) -> None:
    assert asked(ca, *(peer(ca, f"spiffe://trial/site/{name}", name) for name in ("a", "b"))) == {"a", "b"}


def test_a_certificate_of_another_authority_is_refused(ca: Authority) -> None:
    with pytest.raises(MaskingError, match="'a' is not of this federation's CA"):
        asked(ca, peer(Authority(), "spiffe://trial/site/a", "a"))


@pytest.mark.parametrize(
    "uri",
    ["spiffe://trial/site/b", "spiffe://other/site/a", "spiffe://trial/operator/a", "spiffe://trial/aggregator/a"],
)
def test_a_certificate_of_somebody_else_is_refused(ca: Authority, uri: str) -> None:
    with pytest.raises(MaskingError, match="was shown for the site 'a'"):
        asked(ca, peer(ca, uri, "a"))


def test_a_certificate_that_is_over_is_refused(ca: Authority) -> None:
    with pytest.raises(MaskingError, match="does not hold now"):
        asked(ca, peer(ca, "spiffe://trial/site/a", "a", NOW - 10 * DAY))


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_what_is_no_certificate_is_refused(ca: Authority, text: str) -> None:
    with pytest.raises(MaskingError, match="not of this federation's CA"):
        asked(ca, masking_pb2.Peer(site="a", chain_pem=text))


def test_a_site_that_the_settings_do_not_name_is_refused(ca: Authority) -> None:
    known = peer(ca, "spiffe://trial/site/north-1", "north-1")
    assert asked(ca, known, allowed=("north-*",)) == {"north-1"}
    with pytest.raises(MaskingError, match="'south-1' is in the roster and this site's settings do not name it"):
        asked(ca, known, peer(ca, "spiffe://trial/site/south-1", "south-1"), allowed=("north-*",))
