"""The federation's own certificate authority: one EC P-256 key that signs for sites, operators and the aggregator.

A certificate says who its holder is in one URI SAN, spiffe://<federation>/<role>/<name>, and nothing else in it counts.
Of a signing request only the public key is taken; its subject and its wishes for extensions are ignored.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cairn.errors import ConfigError, IdentityError
from cairn.files import write_atomically
from cairn.rpc import Identity

AUTHORITY_VALID = timedelta(days=3653)
LEAF_VALID = timedelta(days=365)
CLOCK_SKEW = timedelta(hours=1)  # certificates hold from an hour ago, for sites whose clocks are behind
SERIAL_BITS = 152  # random; RFC 5280 allows 20 octets, of which the first bit stays 0
REQUEST_LIMIT = 16 << 10  # bytes of a signing request; one with a P-256 key has under 1 KiB
SUPERNODE_KEY_LIMIT = 1 << 10  # bytes of a public key in PEM; one of P-384 has 215


@dataclass(frozen=True)
class Authority:
    """The CA: its certificate and its private key."""

    federation: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate, which all members pin."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(federation: str, now: datetime, valid_for: timedelta = AUTHORITY_VALID) -> Authority:
    """Make a new CA that may sign leaves of its own federation only, and no other CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Cairn federation {federation}"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(_serial())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + valid_for)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.NameConstraints([x509.UniformResourceIdentifier(federation)], excluded_subtrees=None), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(federation, certificate, key)


def save_authority(authority: Authority, folder: Path) -> None:
    """Write ca.pem and ca.key; the key is readable by its owner only."""
    for name, content, mode in (
        ("ca.key", private_pem(authority.key), 0o600),
        ("ca.pem", authority.certificate_pem, 0o644),
    ):
        with write_atomically(folder / name, mode) as file:
            file.write(content)


def load_authority(federation: str, folder: Path) -> Authority:
    """Read ca.pem and ca.key back. Raises ConfigError when they are missing, damaged or not each other's."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"the CA in {folder} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the CA in {folder} is damaged; restore ca.pem and ca.key from the backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"ca.key and ca.pem in {folder} do not belong together; restore both from the backup")
    return Authority(federation, certificate, key)


def issue(
    authority: Authority,
    identity: Identity,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    *,
    hosts: Sequence[str] = (),
    valid_for: timedelta = LEAF_VALID,
) -> x509.Certificate:
    """Sign a leaf certificate; it never outlives the CA.

    hosts  DNS names and IP addresses of a server. A certificate without them cannot pass for the aggregator.
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity)), *map(_host, hosts)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(_serial())
        .not_valid_before(max(now - CLOCK_SKEW, authority.certificate.not_valid_before_utc))
        .not_valid_after(min(now + valid_for, authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request whose sender holds the private key. Raises IdentityError.

    The request's subject and extensions are not looked at.
    """
    if len(csr_pem) > REQUEST_LIMIT:
        raise IdentityError(
            f"the certificate request has {len(csr_pem)} bytes where at most {REQUEST_LIMIT} are expected"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise IdentityError("the certificate request is not a readable PKCS #10 request in PEM") from error
    if not valid:
        raise IdentityError("the certificate request is not signed with its own key; make a new one")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the certificate request has a key of another kind where EC P-256 is expected")
    return key


def supernode_key(pem: bytes) -> str | None:
    """Return the public key of a site's SuperNode, written anew; None for an empty one. Raises IdentityError.

    Flower 1.41 takes keys of any NIST curve and makes its own on P-384, the one that is taken here.
    """
    if not pem:
        return None
    if len(pem) > SUPERNODE_KEY_LIMIT:
        raise IdentityError(
            f"the SuperNode's public key has {len(pem)} bytes where at most {SUPERNODE_KEY_LIMIT} are expected"
        )
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError("the SuperNode's public key is not readable PEM; make the key anew") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError("the SuperNode's public key is of another kind where EC P-384 is expected")
    written = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return written.decode()


def chain_pem(certificate: x509.Certificate, authority: Authority) -> bytes:
    """Return a leaf's certificate, then the CA's."""
    return certificate.public_bytes(serialization.Encoding.PEM) + authority.certificate_pem


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 in PEM, to be kept in a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER) in hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def serial_hex(serial: int) -> str:
    """Write a serial number as the database keeps it."""
    return f"{serial:x}"


def _serial() -> int:
    return secrets.randbits(SERIAL_BITS) | 1 << SERIAL_BITS  # 153 bits: positive, and of one length


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
