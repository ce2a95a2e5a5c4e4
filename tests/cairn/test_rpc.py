"""Calls between the parties: who may call what, and errors that come out as they went in. Real gRPC, real TLS."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.members import pki
from aggregator.members.server_certificate import ServerCertificate
from cairn import rpc
from cairn.errors import (
    CairnError,
    ConfigError,
    NotEnrolled,
    OffsetMismatch,
    Revoked,
    Unreachable,
    WrongRole,
    error_classes,
)
from cairn.rpc import Caller, Identity, TlsFiles, errors_from_wire

SERVICE = "cairn.test.Echo"
HIDDEN = "cairn.test.Hidden"
NORTH = Identity("tissue", "site", "north")


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Echo:
    """A service of all four shapes whose behaviour a test decides; requests and answers are plain bytes."""

    act: Callable[[bytes, grpc.ServicerContext], bytes] = lambda request, _context: request
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    admit: Callable[[Caller], None] = lambda _who: None

    def unary_unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.act(request, context)

    def unary_stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"first"
        yield self.act(request, context)

    def stream_unary(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return self.act(b"".join(requests), context)

    def stream_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield self.act(request, context)

    def handler(self, service: str) -> grpc.GenericRpcHandler:
        shapes = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        return grpc.method_handlers_generic_handler(
            service, {shape: getattr(grpc, f"{shape}_rpc_method_handler")(getattr(self, shape)) for shape in shapes}
        )


def call(channel: grpc.Channel, shape: str, service: str = SERVICE) -> bytes:
    """Call one of the shapes with b"ping" and return the last answer."""
    stub = getattr(channel, shape)(f"/{service}/{shape}")
    request = iter([b"ping"]) if shape.startswith("stream") else b"ping"
    with errors_from_wire():
        answer = stub(request, timeout=10)
        return list(answer)[-1] if shape.endswith("stream") else answer


SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@pytest.fixture(scope="module")
def authority() -> pki.Authority:
    return pki.make_authority("tissue", now())


@pytest.fixture
def credentials(authority: pki.Authority, tmp_path: Path) -> Callable[..., TlsFiles]:
    """Return a function that makes a member's files."""

    def make(identity: Identity = NORTH, issuer: pki.Authority = authority, **options: object) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = pki.issue(issuer, identity, key.public_key(), now(), **options)  # type: ignore[arg-type]
        return keep(certificate, key, issuer)

    def keep(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, issuer: pki.Authority) -> TlsFiles:
        folder = tmp_path / pki.serial_hex(certificate.serial_number)
        folder.mkdir()
        files = TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
        files.ca.write_bytes(authority.certificate_pem)
        files.certificate.write_bytes(pki.chain_pem(certificate, issuer))
        files.key.write_bytes(pki.private_pem(key))
        return files

    return make


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def serve(authority: pki.Authority, echo: Echo) -> Iterator[Callable[..., str]]:
    """Return a function that serves `echo` over mutual TLS and returns its address."""
    servers: list[grpc.Server] = []

    def start(threads: int = 8, *, ask_client: bool = True) -> str:
        admission = rpc.Admission(
            {SERVICE: frozenset({"site"})},
            echo.admit if ask_client else None,
            lambda method, error, who: echo.failures.append((method, error)),
        )
        server = rpc.server([admission], threads)
        for service in (SERVICE, HIDDEN):
            server.add_generic_rpc_handlers([echo.handler(service)])
        certificate = ServerCertificate(authority, [], now)
        port = server.add_secure_port("127.0.0.1:0", rpc.server_credentials(certificate, ask_client=ask_client))
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_member_with_the_right_role_is_served(serve, credentials, shape: str) -> None:
    with rpc.mtls_channel(serve(), credentials()) as channel:
        assert call(channel, shape) == b"ping"


def test_the_caller_is_who_its_certificate_says(serve, credentials, echo: Echo) -> None:
    seen: list[Caller] = []
    echo.admit = seen.append
    files = credentials()
    with rpc.mtls_channel(serve(), files) as channel:
        call(channel, "unary_unary")
    serial = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
    assert seen == [Caller(NORTH, serial)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_role_is_refused_before_the_service_sees_the_call(serve, credentials, echo: Echo, shape: str) -> None:
    echo.act = lambda _request, _context: pytest.fail("the service was reached")
    with (
        rpc.mtls_channel(serve(), credentials(Identity("tissue", "operator", "ada"))) as channel,
        pytest.raises(WrongRole, match=r"^the role operator may not call cairn\.test\.Echo$"),
    ):
        call(channel, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_service_that_is_not_listed_admits_nobody(serve, credentials, shape: str) -> None:
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(WrongRole, match="not offered here"):
        call(channel, shape, HIDDEN)


def test_on_a_port_without_certificates_a_listed_service_is_open_and_others_are_not(serve, authority) -> None:
    address = serve(ask_client=False)
    with rpc.tls_channel(address, authority.certificate_pem) as channel:
        assert call(channel, "unary_unary") == b"ping"
        with pytest.raises(WrongRole, match="not offered here"):
            call(channel, "unary_unary", HIDDEN)


def test_a_method_that_does_not_exist_is_an_error_and_nothing_more(serve, credentials) -> None:
    with (
        rpc.mtls_channel(serve(), credentials()) as channel,
        pytest.raises(CairnError, match="unimplemented"),
        errors_from_wire(),
    ):
        channel.unary_unary(f"/{SERVICE}/nothing")(b"", timeout=10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", sorted(set(error_classes()) - {"ConfigError"}))
def test_every_error_comes_out_as_the_class_that_went_in(serve, credentials, echo: Echo, kind: str, shape: str) -> None:
    cls = error_classes()[kind]

    def fail(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise cls(f"{kind}: naïve sentence — with signs")

    echo.act = fail
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(CairnError) as raised:
        call(channel, shape)
    assert type(raised.value) is cls
    assert str(raised.value) == f"{kind}: naïve sentence — with signs"
    assert [(method, type(error)) for method, error in echo.failures] == [(f"/{SERVICE}/{shape}", cls)]


def test_an_offset_mismatch_carries_the_size_to_resume_at(serve, credentials, echo: Echo) -> None:
    def fail(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise OffsetMismatch("resume there", 5_000_000_000)

    echo.act = fail
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(OffsetMismatch) as raised:
        call(channel, "stream_unary")
    assert raised.value.committed_size == 5_000_000_000


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", [RuntimeError, ConfigError, grpc.RpcError])
def test_an_unknown_exception_and_a_wrong_setting_stay_at_home_and_cross_the_wire_without_their_text(
    serve, credentials, echo: Echo, shape: str, cls: type[Exception]
) -> None:
    def fail(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise cls("patient Smith, row 7")

    echo.act = fail
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(CairnError) as raised:
        call(channel, shape)
    assert type(raised.value) is CairnError
    assert "internal" in str(raised.value)
    assert "Smith" not in str(raised.value)
    assert [str(error) for _method, error in echo.failures] == ["patient Smith, row 7"]


def test_a_sentence_too_long_for_the_wire_arrives_shortened(serve, credentials, echo: Echo) -> None:
    def fail(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise Revoked("ä" * 100_000)

    echo.act = fail
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(Revoked, match=r"^ä{600}$"):
        call(channel, "unary_unary")


def test_who_is_not_admitted_is_told_why(serve, credentials, echo: Echo) -> None:
    def revoked(who: Caller) -> None:
        raise Revoked(f"{who.identity.name} was revoked")

    echo.admit = revoked
    with rpc.mtls_channel(serve(), credentials()) as channel, pytest.raises(Revoked, match="north was revoked"):
        call(channel, "unary_stream")


def test_one_member_cannot_hold_more_than_its_share_of_calls(serve, credentials, echo: Echo) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait(request: bytes, _context: grpc.ServicerContext) -> bytes:
        entered.release()
        assert leave.wait(30)
        return request

    echo.act = wait
    address = serve(threads=2 * rpc.CALLS_EACH)
    with rpc.mtls_channel(address, credentials()) as channel, ThreadPoolExecutor(rpc.CALLS_EACH) as pool:
        calls = [pool.submit(call, channel, "unary_unary") for _ in range(rpc.CALLS_EACH)]
        for _ in calls:
            assert entered.acquire(timeout=30)
        with rpc.mtls_channel(address, credentials()) as second, pytest.raises(Unreachable, match="calls open"):
            call(second, "unary_unary")
        other = credentials(Identity("tissue", "site", "south"))
        with rpc.mtls_channel(address, other) as third:
            pending = third.unary_unary(f"/{SERVICE}/unary_unary").future(b"ping", timeout=30)
            assert entered.acquire(timeout=30)
            leave.set()
            assert pending.result() == b"ping"
        assert [one.result() for one in calls] == [b"ping"] * rpc.CALLS_EACH
        assert call(channel, "unary_unary") == b"ping"  # what ended makes room


def test_a_full_server_says_so_at_once_and_the_caller_may_try_again(serve, credentials, echo: Echo) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait(request: bytes, _context: grpc.ServicerContext) -> bytes:
        entered.release()
        assert leave.wait(30)
        return request

    echo.act = wait
    with rpc.mtls_channel(serve(threads=1), credentials()) as channel:
        pending = channel.unary_unary(f"/{SERVICE}/unary_unary").future(b"ping", timeout=30)
        assert entered.acquire(timeout=30)
        with pytest.raises(Unreachable, match="no room"):
            call(channel, "unary_unary")
        leave.set()
        assert pending.result() == b"ping"


def test_a_caller_that_hangs_up_frees_its_place_and_is_no_failure(serve, credentials, echo: Echo) -> None:
    with rpc.mtls_channel(serve(threads=1), credentials()) as channel:
        more = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"one"
            more.wait(30)

        stream = channel.stream_stream(f"/{SERVICE}/stream_stream")(requests())
        assert next(stream) == b"one"
        stream.cancel()
        more.set()
        deadline = now() + timedelta(seconds=30)
        while True:
            try:
                assert call(channel, "unary_unary") == b"ping"
                break
            except Unreachable:
                assert now() < deadline
    assert echo.failures == []


def test_a_certificate_of_another_ca_with_the_same_name_opens_nothing(serve, credentials) -> None:
    impostor = credentials(issuer=pki.make_authority("tissue", now()))
    with rpc.mtls_channel(serve(), impostor) as channel, pytest.raises(Unreachable):
        call(channel, "unary_unary")


def test_an_expired_certificate_opens_nothing(serve, credentials) -> None:
    files = credentials(valid_for=timedelta(seconds=-1))
    with rpc.mtls_channel(serve(), files) as channel, pytest.raises(Unreachable):
        call(channel, "unary_unary")


def test_a_certificate_of_another_federation_opens_nothing_even_if_this_ca_signed_it(serve, credentials) -> None:
    with (
        rpc.mtls_channel(serve(), credentials(Identity("other", "site", "north"))) as channel,
        pytest.raises(Unreachable),
    ):
        call(channel, "unary_unary")


def test_a_call_without_a_certificate_opens_nothing_on_the_mutual_port(serve, authority) -> None:
    with rpc.tls_channel(serve(), authority.certificate_pem) as channel, pytest.raises(Unreachable):
        call(channel, "unary_unary")


def test_a_member_cannot_pass_for_the_aggregator(authority, credentials, echo: Echo) -> None:
    files = credentials()
    server = rpc.server([rpc.Admission({SERVICE: frozenset()}, None, lambda *_: None)], 2)
    server.add_generic_rpc_handlers([echo.handler(SERVICE)])
    tls = rpc.ServerTls(authority.certificate_pem, files.certificate.read_bytes(), files.key.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", rpc.server_credentials(lambda: tls, ask_client=False))
    server.start()
    with rpc.tls_channel(f"127.0.0.1:{port}", authority.certificate_pem) as channel, pytest.raises(Unreachable):
        call(channel, "unary_unary")
    server.stop(0).wait()


def test_a_server_shows_its_renewed_certificate_without_a_restart() -> None:
    # A certificate of 310 days ago still holds, but has less than 60 days to go.
    time = [now() - timedelta(days=310)]
    authority = pki.make_authority("tissue", time[0])
    certificate = ServerCertificate(authority, [], lambda: time[0])
    server = rpc.server([], 2)
    port = server.add_secure_port("127.0.0.1:0", rpc.server_credentials(certificate, ask_client=False))
    server.start()
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context.set_alpn_protocols(["h2"])

    def shown() -> x509.Certificate:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")

    first = shown()
    assert shown() == first
    time[0] = now()
    second = shown()
    assert shown() == second
    assert second.not_valid_after_utc - first.not_valid_after_utc > timedelta(days=300)
    server.stop(0).wait()


def test_a_server_that_is_not_there_is_unreachable(credentials) -> None:
    with rpc.mtls_channel("127.0.0.1:1", credentials()) as channel, pytest.raises(Unreachable, match="did not answer"):
        call(channel, "unary_unary")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://tissue/site",
        "spiffe://tissue/site/",
        "spiffe://tissue/site/north/more",
        "spiffe://tissue/admin/north",
        "spiffe://tissue/site/North",
        "spiffe://tissue/site/-north",
        "spiffe://tissue/site/../x",
        "spiffe://tissue/site/north\n",
        "https://tissue/site/north",
        "spiffe://tissue/site/" + "n" * 64,
    ],
)
def test_an_identity_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(NotEnrolled, match="spiffe://federation/role/name"):
        rpc.parse_identity(uri)


def test_an_identity_reads_back_as_it_was_written() -> None:
    assert rpc.parse_identity(str(NORTH)) == NORTH


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, "names no identity"),
        ([], "names 0 identities"),
        ([str(NORTH), "spiffe://tissue/site/south"], "names 2 identities"),
    ],
)
def test_only_the_one_uri_in_the_san_says_who_a_certificate_is(names: list[str] | None, sentence: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # The common name claims to be a site; nobody may believe it.
    claimed = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, str(NORTH))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(claimed)
        .issuer_name(claimed)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now())
        .not_valid_after(now() + timedelta(days=1))
    )
    if names is not None:
        general: list[x509.GeneralName] = [x509.DNSName("north"), *map(x509.UniformResourceIdentifier, names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    with pytest.raises(NotEnrolled, match=sentence):
        rpc.certificate_identity(builder.sign(key, hashes.SHA256()))


def test_a_private_key_is_not_in_what_is_printed() -> None:
    assert "SECRET" not in repr(rpc.ServerTls(b"ca", b"chain", b"SECRET"))
