"""The newcomer's side of enrolment: make a key, have it certified, keep both; the same for the key of its SuperNode."""

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cairn.files import sync_folder, write_atomically
from cairn.invitation import Invitation
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel, tls_channel
from cairn.v1 import enrolment_pb2, enrolment_pb2_grpc

TIMEOUT_S = 30.0
# People are told so long before a certificate ends. A site renews when a third of the year is left.
ENDS_SOON = timedelta(days=30)


def tls_files(folder: Path) -> TlsFiles:
    """Name the files of an identity that is kept in a folder."""
    return TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")


def supernode_key(folder: Path) -> Path:
    """Name the private key with which the SuperNode of an identity signs: EC P-384, in OpenSSH's format."""
    return folder / "supernode.key"


def supernode_known(folder: Path) -> bool:
    """Tell whether the aggregator has taken the SuperNode's public key."""
    return _told(folder).exists()


def enrol(invitation: Invitation, folder: Path, *, trains: bool = False) -> TlsFiles:
    """Exchange an invitation for a certificate and keep key, certificate chain and CA in a folder, for the owner only.

    The private keys are made here and stay here. When an answer was lost, the same call succeeds with the same keys.

    trains  also make a key for the SuperNode and register its public half in the same call
    Raises BadToken, Unreachable.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = tls_files(folder)
    if not files.key.exists():
        _keep_key(files.key)
    public = _supernode_public(folder, make=trains)
    with tls_channel(invitation.enrolment_address, invitation.ca_pem.encode()) as channel, errors_from_wire():
        answer = enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(
            enrolment_pb2.EnrolRequest(token=invitation.token, csr_pem=_request(files.key), supernode_key_pem=public),
            timeout=TIMEOUT_S,
        )
    for path, content in ((files.ca, invitation.ca_pem.encode()), (files.certificate, answer.certificate_chain_pem)):
        with write_atomically(path) as file:
            file.write(content)
    _note_told(folder, public)
    return files


def renew(address: str, folder: Path, *, trains: bool = False) -> None:
    """Replace the certificate in a folder by a new one for the same identity and key.

    trains  register the SuperNode's public key too; it is made if there is none
    Raises Revoked, Unreachable.
    """
    settle(folder)
    files = tls_files(folder)
    public = _supernode_public(folder, make=trains)
    chain = _renewed(address, files, files.key, public)
    with write_atomically(files.certificate) as file:
        file.write(chain)
    _note_told(folder, public)


def rotate(address: str, folder: Path, *, trains: bool = False) -> None:
    """Replace the keys in a folder by new ones: that of the certificate, and that of the SuperNode where there is one.

    The former certificate holds until it ends, so that what runs goes on. The new keys take the place of the old ones
    only when they are certified; killed anywhere, the next call of `settle` ends what was begun, or forgets it.
    Raises Revoked, Unreachable.
    """
    settle(folder)
    files, coming = tls_files(folder), _coming(folder)
    _keep_key(coming.key)
    public = b""
    if trains or supernode_key(folder).exists():
        public = _keep_supernode_key(coming.supernode)
        _told(folder).unlink(missing_ok=True)  # until the aggregator's answer is kept, it may know either key
    chain = _renewed(address, files, coming.key, public)
    with write_atomically(coming.certificate) as file:
        file.write(chain)
    settle(folder)
    _note_told(folder, public)


def settle(folder: Path) -> None:
    """End a change of keys that was cut off: with the new ones if they are certified, else with the old."""
    coming = _coming(folder)
    if coming.certificate.exists():  # renamed last
        for new, old in ((coming.key, tls_files(folder).key), (coming.supernode, supernode_key(folder))):
            if new.exists():
                new.replace(old)
        sync_folder(folder)
        coming.certificate.replace(tls_files(folder).certificate)
        sync_folder(folder)
    for left in (coming.key, coming.supernode):
        left.unlink(missing_ok=True)


class _Coming(NamedTuple):
    """Files of keys and a certificate that are not in use yet."""

    key: Path
    certificate: Path
    supernode: Path


def _coming(folder: Path) -> _Coming:
    return _Coming(folder / "key.next.pem", folder / "certificate.next.pem", folder / "supernode.next.key")


def _renewed(address: str, files: TlsFiles, key: Path, supernode: bytes) -> bytes:
    """Ask for a certificate for a key, showing the present one; returns the chain in PEM."""
    with mtls_channel(address, files) as channel, errors_from_wire():
        answer = enrolment_pb2_grpc.RenewalStub(channel).Renew(
            enrolment_pb2.RenewRequest(csr_pem=_request(key), supernode_key_pem=supernode), timeout=TIMEOUT_S
        )
    return answer.certificate_chain_pem


def _keep_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with write_atomically(path, mode=0o600) as file:
        file.write(pem)


def _told(folder: Path) -> Path:
    return folder / "supernode.pub.pem"


def _supernode_public(folder: Path, *, make: bool) -> bytes:
    """Return the SuperNode's public key, PEM; empty when there is no key and none is to be made."""
    path = supernode_key(folder)
    if not path.exists():
        if not make:
            return b""
        return _keep_supernode_key(path)
    key = serialization.load_ssh_private_key(path.read_bytes(), None)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _keep_supernode_key(path: Path) -> bytes:
    """Make a SuperNode's key and keep it; returns the public one, PEM."""
    made = ec.generate_private_key(ec.SECP384R1())
    # Flower reads OpenSSH's format alone, and from a file that nobody else may read.
    private = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    with write_atomically(path, mode=0o600) as file:
        file.write(private)
    return made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _note_told(folder: Path, public: bytes) -> None:
    if public:
        with write_atomically(_told(folder)) as file:
            file.write(public)


def _request(key_path: Path) -> bytes:
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # made by _keep_key
    # The subject is empty: the name comes from the invitation's token, never from the request.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)
