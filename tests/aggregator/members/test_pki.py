"""The federation's certificates, judged by libraries that did not make them."""

import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from aggregator.members import pki
from cairn.errors import ConfigError, IdentityError
from cairn.rpc import Identity, certificate_identity

NOW = datetime(2026, 2, 28, 12, 0, tzinfo=UTC)
NORTH = Identity("tissue", "site", "north")
KEY = ec.generate_private_key(ec.SECP256R1())
AUTHORITY = pki.make_authority("tissue", NOW)


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY) -> bytes:
    """Make a signing request that wishes for everything that it must not get."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root of all")])
    )
    wishes = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://tissue/operator/mallory")])
    ca = x509.BasicConstraints(ca=True, path_length=None)
    signed = builder.add_extension(wishes, critical=False).add_extension(ca, critical=True).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def is_admitted(leaf: x509.Certificate, folder: Path, authority: pki.Authority = AUTHORITY) -> bool:
    """Let OpenSSL, strict about RFC 5280, decide in a real handshake whether a leaf opens a server of this CA."""
    now = datetime.now(UTC)
    hall = pki.make_authority("hall", now)
    porter = pki.issue(hall, Identity("hall", "aggregator", "porter"), KEY.public_key(), now, hosts=["localhost"])
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, own, trusted in ((server, porter, authority), (client, leaf, hall)):
        (folder / "leaf.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(pki.private_pem(KEY))
        context.load_cert_chain(folder / "leaf.pem", folder / "key.pem")
        context.load_verify_locations(cadata=trusted.certificate_pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname="localhost"),
    ]
    for _ in range(3):  # flights; with TLS 1.3 the server decides about the client in the last
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                return False
    return ends[0].getpeercert() is not None


def test_a_leaf_says_who_its_holder_is_in_one_uri_and_opens_the_door_for_a_year(tmp_path: Path) -> None:
    today = datetime.now(UTC).replace(microsecond=0)
    for issued, opens in (
        (today, True),
        (today + timedelta(minutes=59), True),  # for a site whose clock is behind
        (today + timedelta(minutes=61), False),
        (today - timedelta(days=364), True),
        (today - timedelta(days=366), False),
    ):
        authority = pki.make_authority("tissue", min(issued, today))
        leaf = pki.issue(authority, NORTH, KEY.public_key(), issued)
        assert certificate_identity(leaf) == NORTH
        assert leaf.not_valid_after_utc == issued + timedelta(days=365)
        assert is_admitted(leaf, tmp_path, authority) is opens


def test_another_ca_of_the_same_name_does_not_vouch_for_a_leaf(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    leaf = pki.issue(pki.make_authority("tissue", now), NORTH, KEY.public_key(), now)
    assert not is_admitted(leaf, tmp_path, pki.make_authority("tissue", now))


def test_a_leaf_of_another_federation_opens_nothing_even_when_this_ca_signed_it(tmp_path: Path) -> None:
    leaf = pki.issue(AUTHORITY, Identity("other", "site", "north"), KEY.public_key(), datetime.now(UTC))
    assert not is_admitted(leaf, tmp_path)


def test_a_leaf_never_outlives_its_ca() -> None:
    late = AUTHORITY.certificate.not_valid_after_utc - timedelta(days=10)
    leaf = pki.issue(AUTHORITY, NORTH, KEY.public_key(), late)
    assert leaf.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc


def test_a_member_may_call_but_not_serve_and_only_the_aggregator_has_host_names() -> None:
    member = pki.issue(AUTHORITY, NORTH, KEY.public_key(), NOW)
    aggregator = Identity("tissue", "aggregator", "aggregator")
    server = pki.issue(AUTHORITY, aggregator, KEY.public_key(), NOW, hosts=["cairn.example.org", "10.0.0.7", "::1"])

    def usages(leaf: x509.Certificate) -> set[x509.ObjectIdentifier]:
        return set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert usages(member) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert usages(server) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert names.get_values_for_type(x509.DNSName) == ["cairn.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    assert certificate_identity(server) == aggregator


def test_the_ca_signs_leaves_only_and_only_of_its_own_federation() -> None:
    extensions = AUTHORITY.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    names = extensions.get_extension_for_class(x509.NameConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert names.critical
    assert names.value.permitted_subtrees == [x509.UniformResourceIdentifier("tissue")]
    leaf = pki.issue(AUTHORITY, NORTH, KEY.public_key(), NOW).extensions
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_serial_numbers_are_random_long_and_as_rfc_5280_wants_them() -> None:
    serials = {pki.issue(AUTHORITY, NORTH, KEY.public_key(), NOW).serial_number for _ in range(50)}
    assert len(serials) == 50
    assert all(serial > 0 and 128 < serial.bit_length() < 160 for serial in serials)
    assert all(int(pki.serial_hex(serial), 16) == serial for serial in serials)


def test_of_a_request_only_the_key_counts_whatever_else_it_wishes_for() -> None:
    key = pki.requested_key(request())
    leaf = pki.issue(AUTHORITY, NORTH, key, NOW)
    assert key == KEY.public_key()
    assert certificate_identity(leaf) == NORTH
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.subject.rfc4514_string() == "CN=north"


def test_a_request_signed_by_another_key_is_refused() -> None:
    der = x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER)
    other = ec.generate_private_key(ec.SECP256R1())
    mine, theirs = (
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for key in (KEY, other)
    )
    stolen = x509.load_der_x509_csr(der.replace(mine, theirs)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="not signed with its own key"):
        pki.requested_key(stolen)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="RSA"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
    ],
)
def test_a_request_with_another_kind_of_key_is_refused(key) -> None:
    with pytest.raises(IdentityError, match=r"EC P-256 is expected"):
        pki.requested_key(request(key()))


def test_a_request_with_an_edwards_key_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    with pytest.raises(IdentityError, match=r"EC P-256 is expected"):
        pki.requested_key(csr.public_bytes(serialization.Encoding.PEM))


def test_a_request_of_a_megabyte_is_not_even_parsed() -> None:
    with pytest.raises(IdentityError, match="at most 16384"):
        pki.requested_key(b"x" * (1 << 20))


@given(st.binary(max_size=300), st.integers(0, 400))
def test_bytes_that_are_no_request_are_refused_as_such_and_never_crash(noise: bytes, at: int) -> None:
    good = request()
    for bad in (noise, good[:at] + noise + good[at + len(noise) :]):
        with suppress(IdentityError):
            assert pki.requested_key(bad) == KEY.public_key()  # the noise may fall where it changes nothing


def test_a_ca_reads_back_as_it_was_kept_and_only_its_owner_may_read_the_key(tmp_path: Path) -> None:
    pki.save_authority(AUTHORITY, tmp_path)
    loaded = pki.load_authority("tissue", tmp_path)
    assert loaded.certificate == AUTHORITY.certificate
    assert loaded.key.private_numbers() == AUTHORITY.key.private_numbers()
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(loaded)


def test_a_missing_damaged_or_mismatched_ca_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        pki.load_authority("tissue", tmp_path)
    pki.save_authority(AUTHORITY, tmp_path)
    whole = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").write_bytes(whole[:100])
    with pytest.raises(ConfigError, match="is damaged"):
        pki.load_authority("tissue", tmp_path)
    (tmp_path / "ca.key").write_bytes(pki.private_pem(KEY))
    with pytest.raises(ConfigError, match="do not belong together"):
        pki.load_authority("tissue", tmp_path)
