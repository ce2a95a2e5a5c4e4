"""gRPC between the parties: mutual TLS, identity from the certificate's SAN, one error tree across the wire.

A servicer raises `CairnError`; the server aborts with the error's gRPC status and puts its kind into trailing metadata;
the client, inside `with errors_from_wire():`, raises the same class with the same sentence.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
from cryptography import x509

from cairn.errors import (
    CairnError,
    ConfigError,
    NotEnrolled,
    OffsetMismatch,
    Unreachable,
    WrongRole,
    error_classes,
)

KIND = "cairn-error-kind"
COMMITTED = "cairn-committed-size"
TIME = "cairn-time"  # the server's clock, seconds since 1970, with each answer of health: who asks can compare its own
HEALTH = "/grpc.health.v1.Health/Check"
MESSAGE_LIMIT = 8 << 20  # the largest message is a codebook plan of 20,000 keys, under 1 MiB; an upload's are 1 MiB
SENTENCE_LIMIT = 600  # characters of an error's sentence; percent-encoded it must fit into 8 KiB of trailing metadata
CALLS_A_SECOND, CALLS_AT_ONCE = 100.0, 1000.0  # that one identity may begin: as a rule, and in a burst
CALLS_EACH = 16  # calls that one identity may have open at once, on all its connections together
OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS = [
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 32),  # per connection, that is per site
    ("grpc.so_reuseport", 0),
]
CLIENT_OPTIONS = [*OPTIONS, ("grpc.max_reconnect_backoff_ms", 10_000), ("grpc.initial_reconnect_backoff_ms", 200)]
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
IDENTITY = re.compile(rf"spiffe://({NAME.pattern})/(site|operator|aggregator|trainer)/({NAME.pattern})")


@dataclass(frozen=True)
class Identity:
    """Who a certificate says its holder is: spiffe://<federation>/<role>/<name>."""

    federation: str
    role: str
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.federation}/{self.role}/{self.name}"


@dataclass(frozen=True)
class Caller:
    """A verified peer: its identity and the serial number of the certificate that it showed."""

    identity: Identity
    serial: int


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files: the federation's CA, one's own certificate chain, and its private key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class ServerTls:
    """PEM bytes of a server: the CA that its callers must have, its own certificate chain, its private key."""

    ca: bytes
    chain: bytes
    key: bytes = field(repr=False)


def parse_identity(uri: str) -> Identity:
    """Read an identity from its URI. Raises NotEnrolled when it is not one of Cairn's."""
    found = IDENTITY.fullmatch(uri)
    if not found:
        raise NotEnrolled(f"the identity {uri[:120]!r} is not of the form spiffe://federation/role/name")
    return Identity(*found.groups())


def certificate_identity(certificate: x509.Certificate) -> Identity:
    """Read the identity from a certificate's URI SAN. Raises NotEnrolled when it has none, or more than one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise NotEnrolled("the certificate names no identity; enrol again") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise NotEnrolled(f"the certificate names {len(uris)} identities where one is expected; enrol again")
    return parse_identity(uris[0])


def caller(context: grpc.ServicerContext) -> Caller:
    """Tell who is calling, from the certificate that TLS has verified. Raises NotEnrolled without one."""
    auth: Mapping[str, Sequence[bytes]] = context.auth_context()  # type: ignore[assignment]  # the stubs are wrong
    pem = auth.get("x509_pem_cert")
    if not pem:
        raise NotEnrolled("the call came without a certificate; enrol first")
    certificate = x509.load_pem_x509_certificate(pem[0])
    return Caller(certificate_identity(certificate), certificate.serial_number)


def mtls_channel(address: str, tls: TlsFiles) -> grpc.Channel:
    """Open a channel with mutual TLS; `address` is host:port. Connects when first used."""
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes())
    return grpc.secure_channel(address, credentials, options=CLIENT_OPTIONS)


def tls_channel(address: str, ca_pem: bytes) -> grpc.Channel:
    """Open a channel that verifies the server against one CA and shows no certificate, for enrolment."""
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_pem), options=CLIENT_OPTIONS)


def server(interceptors: Iterable[grpc.ServerInterceptor[Any, Any]], threads: int) -> grpc.Server:
    """Make a server with Cairn's limits; every open call holds one of its threads, one too many is refused at once."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
    return grpc.server(pool, interceptors=list(interceptors), options=SERVER_OPTIONS, maximum_concurrent_rpcs=threads)


def server_credentials(current: Callable[[], ServerTls], *, ask_client: bool) -> grpc.ServerCredentials:
    """Make server credentials that follow a certificate as it is renewed.

    current     called before every handshake; returns the same object as long as nothing has changed
    ask_client  True: only callers with a certificate of the CA come in; False: for the enrolment port only
    """
    shown = current()

    def configure(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(tls.key, tls.chain)], tls.ca if ask_client else None)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if (tls := current()) is shown:
            return None
        shown = tls
        return configure(tls)

    return grpc.dynamic_ssl_server_credentials(
        configure(shown),
        changed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
        require_client_authentication=ask_client,
    )


class Admission(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Admit callers by role, then turn what a servicer raises into a status that a client can raise again.

    An open stream is asked for again and again: `streaming` tells whose there are, `hang_up` ends them.

    roles   full service name → roles that may call it; a service that is not listed admits nobody
    admit   called with every caller that has a right role; raises Revoked or NotEnrolled. None: the port asks for
            no certificate, and every listed service is open.
    failed  called with the method, every error, and who called if that is known, before the call is aborted with it
    around  entered around every call that was admitted, with its method and who calls
    """

    def __init__(
        self,
        roles: Mapping[str, frozenset[str]],
        admit: Callable[[Caller], None] | None,
        failed: Callable[[str, Exception, Identity | None], None],
        calls_a_second: float = CALLS_A_SECOND,
        around: Callable[[str, Identity], AbstractContextManager[None]] = lambda _method, _who: nullcontext(),
    ) -> None:
        self._roles = roles
        self._admit = admit
        self._failed = failed
        self._rate = calls_a_second
        self._around = around
        self._lock = threading.Lock()
        self._open: Counter[Identity] = Counter()
        self._streams: dict[grpc.ServicerContext, Caller] = {}
        self._allowance: dict[Identity, tuple[float, float]] = {}  # calls left, and when that was so

    def streaming(self) -> frozenset[Caller]:
        """Tell who has a stream open now."""
        with self._lock:
            return frozenset(self._streams.values())

    def hang_up(self, callers: Collection[Caller]) -> None:
        """End every open stream of some callers; they hear why at their next call."""
        with self._lock:
            ended = [context for context, who in self._streams.items() if who in callers]
        for context in ended:
            context.cancel()  # type: ignore[no-untyped-call]

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        streams = handler.request_streaming or handler.response_streaming

        def unary(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def handle(request: Any, context: grpc.ServicerContext) -> Any:
                try:
                    with self._entered(method, context, streams=streams):
                        if method == HEALTH:
                            context.send_initial_metadata(((TIME, f"{time.time():.3f}"),))
                        return behaviour(request, context)
                except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a status
                    self._abort(method, context, error)

            return handle

        def stream(behaviour: Callable[[Any, Any], Iterable[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
            def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                try:
                    with self._entered(method, context, streams=streams):
                        yield from behaviour(request, context)
                except Exception as error:  # noqa: BLE001 - the boundary: everything becomes a status
                    self._abort(method, context, error)

            return handle

        make = getattr(
            grpc,
            f"{'stream' if handler.request_streaming else 'unary'}_"
            f"{'stream' if handler.response_streaming else 'unary'}_rpc_method_handler",
        )
        behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        wrap = stream if handler.response_streaming else unary
        return make(wrap(behaviour), handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return, arg-type]

    @contextmanager
    def _entered(self, method: str, context: grpc.ServicerContext, *, streams: bool) -> Iterator[None]:
        service = method.split("/")[1]
        if service not in self._roles:
            raise WrongRole(f"the service {service} is not offered here")
        if self._admit is None:
            yield
            return
        who = caller(context)
        if who.identity.role not in self._roles[service]:
            raise WrongRole(f"the role {who.identity.role} may not call {service}")
        self._admit(who)
        with self._lock:
            if self._open[who.identity] >= CALLS_EACH:
                # Not TooLarge: it passes, and a site must not set a tally aside for it.
                raise Unreachable(f"{who.identity.name} has {CALLS_EACH} calls open, the most; try again later")
            self._spend(who.identity)
            self._open[who.identity] += 1
            if streams:
                self._streams[context] = who
        try:
            with self._around(method, who.identity):
                yield
        finally:
            with self._lock:
                self._streams.pop(context, None)
                self._open[who.identity] -= 1
                if not self._open[who.identity]:
                    del self._open[who.identity]

    def _spend(self, who: Identity) -> None:
        """Take one call of an identity's allowance, which grows with time. Raises Unreachable when there is none."""
        now = time.monotonic()
        most = max(CALLS_AT_ONCE, self._rate)
        left, since = self._allowance.get(who, (most, now))
        left = min(most, left + (now - since) * self._rate)
        if left < 1:
            raise Unreachable(f"{who.name} begins more than {self._rate:.0f} calls a second; try again later")
        self._allowance[who] = left - 1, now

    def _who(self, context: grpc.ServicerContext) -> Identity | None:
        try:
            return caller(context).identity if self._admit else None
        except CairnError:
            return None

    def _abort(self, method: str, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        if isinstance(error, grpc.RpcError) and not context.is_active():
            raise error  # the caller went away in the middle of its own stream; gRPC knows
        self._failed(method, error, self._who(context))
        if isinstance(error, CairnError) and not isinstance(error, ConfigError):
            trailing = [(KIND, type(error).__name__)]
            if isinstance(error, OffsetMismatch):
                trailing.append((COMMITTED, str(error.committed_size)))
            context.set_trailing_metadata(tuple(trailing))
            context.abort(grpc.StatusCode[type(error).grpc_status], str(error)[:SENTENCE_LIMIT])
        context.abort(grpc.StatusCode.INTERNAL, "the aggregator failed on this call; its log says why")


@contextmanager
def errors_from_wire() -> Iterator[None]:
    """Raise a failed call inside the block as the CairnError that the server raised, or as Unreachable."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_wire(error) from error


def _from_wire(error: grpc.RpcError) -> CairnError:
    # A gRPC client error is both an RpcError and a Call; the stubs know only the first.
    call = cast("Any", error)
    code, details = call.code(), call.details() or ""
    trailing = {key: value for key, value in (call.trailing_metadata() or ()) if isinstance(value, str)}
    cls = error_classes().get(trailing.get(KIND, ""))
    if cls is OffsetMismatch:
        return OffsetMismatch(details, int(trailing.get(COMMITTED, "0")))
    if cls is not None:
        return cls(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith("Concurrent RPC limit"):
        return Unreachable("the aggregator has no room for another call now; try again later")
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return Unreachable(f"the aggregator did not answer ({code.name.lower()}: {details[:200]})")
    return CairnError(f"the call failed ({code.name.lower()}): {details[:200]}")
