"""The newcomer's side of enrolment: make a key, have it certified, keep both."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cairn.files import write_atomically
from cairn.invitation import Invitation
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel, tls_channel
from cairn.v1 import enrolment_pb2, enrolment_pb2_grpc

TIMEOUT_S = 30.0


def tls_files(folder: Path) -> TlsFiles:
    """Name the files of an identity that is kept in a folder."""
    return TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")


def enrol(invitation: Invitation, folder: Path) -> TlsFiles:
    """Exchange an invitation for a certificate and keep key, certificate chain and CA in a folder, for the owner only.

    The private key is made here and stays here. When an answer was lost, the same call succeeds with the same key.
    Raises BadToken, Unreachable.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = tls_files(folder)
    if not files.key.exists():
        _keep_key(files.key)
    with tls_channel(invitation.enrolment_address, invitation.ca_pem.encode()) as channel, errors_from_wire():
        answer = enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(
            enrolment_pb2.EnrolRequest(token=invitation.token, csr_pem=_request(files.key)), timeout=TIMEOUT_S
        )
    for path, content in ((files.ca, invitation.ca_pem.encode()), (files.certificate, answer.certificate_chain_pem)):
        with write_atomically(path) as file:
            file.write(content)
    return files


def renew(address: str, folder: Path) -> None:
    """Replace the certificate in a folder by a new one for the same identity and key. Raises Revoked, Unreachable."""
    files = tls_files(folder)
    with mtls_channel(address, files) as channel, errors_from_wire():
        answer = enrolment_pb2_grpc.RenewalStub(channel).Renew(
            enrolment_pb2.RenewRequest(csr_pem=_request(files.key)), timeout=TIMEOUT_S
        )
    with write_atomically(files.certificate) as file:
        file.write(answer.certificate_chain_pem)


def _keep_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with write_atomically(path, mode=0o600) as file:
        file.write(pem)


def _request(key_path: Path) -> bytes:
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # made by _keep_key
    # The subject is empty: the name comes from the invitation's token, never from the request.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)
