"""The other end of a site's line: an aggregator's three services over real mutual TLS, with a CA made on the spot."""

import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cairn import codec
from cairn.errors import BadToken, CairnError
from cairn.invitation import Invitation
from cairn.plan import Plan, fingerprint
from cairn.rpc import Admission, Caller, ServerTls, server, server_credentials
from cairn.v1 import enrolment_pb2, enrolment_pb2_grpc, plans_pb2, plans_pb2_grpc, tallies_pb2_grpc
from edge_node.connection import keep_address

from .conftest import FaultyTallies

NOBODY = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cairn test")])
YEAR = timedelta(days=365)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass
class Authority:
    """A certificate authority in memory."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._sign(self.key.public_key(), [], datetime.now(UTC), YEAR, authority=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, public: ec.EllipticCurvePublicKey, uri: str, begin: datetime, lasts: timedelta) -> bytes:
        names = [x509.UniformResourceIdentifier(uri), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        leaf = self._sign(public, names, begin, lasts, authority=False)
        return leaf.public_bytes(serialization.Encoding.PEM) + self.pem

    def _sign(self, public, names, begin, lasts, *, authority):
        made = (
            x509.CertificateBuilder()
            .subject_name(NOBODY if authority else x509.Name([]))
            .issuer_name(NOBODY)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - timedelta(minutes=5))
            .not_valid_after(begin + lasts)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return made.sign(self.key, hashes.SHA256())


@dataclass
class Middle(plans_pb2_grpc.PlansServicer, enrolment_pb2_grpc.RenewalServicer, enrolment_pb2_grpc.EnrolmentServicer):
    """An aggregator as a site sees it: publishes what a test tells it to, and keeps what it is told."""

    tallies: FaultyTallies = field(default_factory=FaultyTallies)
    authority: Authority = field(default_factory=Authority)
    answers: dict[bytes, tuple[bool, str]] = field(default_factory=dict)
    reports: list[plans_pb2.ReportRequest] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)
    supernode_keys: list[bytes] = field(default_factory=list)
    superlink: str = ""
    watching: int = 0
    port: int = 0
    enrolment_port: int = 0
    token: str = "the-one-time-secret"

    def __post_init__(self) -> None:
        self._plans: list[bytes] = []
        self._refusal: CairnError | None = None
        self._changed = threading.Condition()
        self._version = 0
        self._down = False
        self._key = ec.generate_private_key(ec.SECP256R1())

    def start(self) -> None:
        """Serve, on the same port as before."""
        roles = dict.fromkeys(("cairn.v1.Plans", "cairn.v1.Tallies", "cairn.v1.Renewal"), frozenset({"site"}))
        self._down = False
        self._server = server([Admission(roles, self._admit, lambda *_: None)], 16)
        plans_pb2_grpc.add_PlansServicer_to_server(self, self._server)
        enrolment_pb2_grpc.add_RenewalServicer_to_server(self, self._server)
        tallies_pb2_grpc.add_TalliesServicer_to_server(self.tallies, self._server)
        uri = "spiffe://demo/aggregator/main"
        chain = self.authority.issue(self._key.public_key(), uri, datetime.now(UTC), YEAR)
        tls = ServerTls(self.authority.pem, chain, pem_of(self._key))
        credentials = server_credentials(lambda: tls, ask_client=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()
        self._newcomers = server([Admission({"cairn.v1.Enrolment": frozenset()}, None, lambda *_: None)], 4)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(self, self._newcomers)
        self.enrolment_port = self._newcomers.add_secure_port(
            f"127.0.0.1:{self.enrolment_port}", server_credentials(lambda: tls, ask_client=False)
        )
        self._newcomers.start()

    def stop(self) -> None:
        with self._changed:
            self._down = True
            self._changed.notify_all()
        self._server.stop(0).wait()
        self._newcomers.stop(0).wait()

    def publish(self, *plans: Plan) -> list[bytes]:
        """Make these the open plans; returns their fingerprints."""
        published = [codec.encode_plan(plan) for plan in plans]
        self.offer(*published)
        return [fingerprint(data) for data in published]

    def offer(self, *published: bytes) -> None:
        with self._changed:
            self._plans = list(published)
            self._version += 1
            self._changed.notify_all()

    def refuse(self, error: CairnError) -> None:
        """Admit nobody any more."""
        with self._changed:
            self._refusal = error
            self._version += 1
            self._changed.notify_all()

    def enrol(self, folder: Path, name: str = "alpha", begin: datetime | None = None, lasts: timedelta = YEAR) -> None:
        """Put a site's key, certificate and address into a folder, as enrolment does."""
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self.authority.issue(key.public_key(), f"spiffe://demo/site/{name}", begin or datetime.now(UTC), lasts)
        for file, content in (("key", pem_of(key)), ("certificate", chain), ("ca", self.authority.pem)):
            (folder / f"{file}.pem").write_bytes(content)
        keep_address(folder, f"127.0.0.1:{self.port}")

    def invitation(self, role: str = "site") -> Invitation:
        """Invite site alpha."""
        return Invitation(
            federation="demo",
            name="alpha",
            role=role,
            address=f"127.0.0.1:{self.port}",
            enrolment_address=f"127.0.0.1:{self.enrolment_port}",
            ca_pem=self.authority.pem.decode(),
            token=self.token,
        )

    def _admit(self, who: Caller) -> None:
        self.serials.append(who.serial)
        if self._refusal:
            raise self._refusal

    def Watch(self, request, context) -> Iterator[plans_pb2.WatchResponse]:
        context.add_callback(self._wake)
        seen = -1
        with self._changed:
            self.watching += 1
        try:
            while True:
                with self._changed:
                    while self._version == seen and not self._down and context.is_active():
                        self._changed.wait()
                    if self._down or not context.is_active():
                        return
                    if self._refusal:
                        raise self._refusal
                    seen = self._version
                    offers = [plans_pb2.Offer(plan=plan) for plan in self._plans]
                    response = plans_pb2.WatchResponse(offers=offers, superlink_address=self.superlink)
                yield response
        finally:
            with self._changed:
                self.watching -= 1

    def Answer(self, request, context):
        self.answers[request.fingerprint] = (request.accepted, request.reason)
        return plans_pb2.AnswerResponse()

    def Report(self, request, context):
        self.reports.append(request)
        return plans_pb2.ReportResponse()

    def Enrol(self, request, context):
        if request.token != self.token:
            raise BadToken("the token is unknown, used or expired; ask the operator for a new invitation")
        self.supernode_keys.append(request.supernode_key_pem)
        return enrolment_pb2.EnrolResponse(certificate_chain_pem=self._certify(request.csr_pem))

    def Renew(self, request, context):
        self.supernode_keys.append(request.supernode_key_pem)
        return enrolment_pb2.RenewResponse(certificate_chain_pem=self._certify(request.csr_pem))

    def _certify(self, csr_pem: bytes) -> bytes:
        public = x509.load_pem_x509_csr(csr_pem).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self.authority.issue(public, "spiffe://demo/site/alpha", datetime.now(UTC), YEAR)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
