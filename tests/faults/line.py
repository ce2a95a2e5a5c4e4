"""The line between a site and the aggregator, in one thread: real clients, real servicers, and messages as bytes.

It stands where a `grpc.Channel` would, and it fails as a network and its middle boxes do.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from cairn.rpc import Admission
from cairn.v1 import tallies_pb2
from tests.faults.disk import Disk, Killed

CALL_FAULTS = ("none", "lost", "answer", "again")
STREAM_FAULTS = (*CALL_FAULTS, "cut", "late", "flip", "swap", "twice")


class Broken(grpc.RpcError):
    """What a client or a servicer meets when the line breaks, or when the other end aborts."""

    def __init__(self, code: grpc.StatusCode, details: str = "", trailing: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(details)
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._trailing


class Context:
    """A servicer's context: who calls, and how the call ends."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate
        self._trailing: tuple[tuple[str, str], ...] = ()
        self.active = True

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate]}

    def is_active(self) -> bool:
        return self.active

    def set_trailing_metadata(self, trailing: tuple[tuple[str, str], ...]) -> None:
        self._trailing = trailing

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Broken(code, details, self._trailing)


class Services:
    """Collects a servicer's methods, as a server would."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


@dataclass(frozen=True)
class Details:
    method: str


class Line:
    """One site's channel.

    serve     runs a call in the aggregator: (method's behaviour) -> its answer; raises Killed with the aggregator
    services  the aggregator's methods, asked anew at every call
    disk      of all processes, to be told whose turn it is
    faulty    how likely a call meets a fault
    later     where messages that are still on the way are put; each is delivered by calling it
    """

    def __init__(
        self,
        site: str,
        certificate: bytes,
        admission: Callable[[], Admission],
        services: Callable[[], Services],
        serve: Callable[[str, Callable[[], Any]], Any],
        disk: Disk,
        rng: random.Random,
        faulty: float,
        later: list[Callable[[], object]],
    ) -> None:
        self._site, self._certificate, self._admission, self._services = site, certificate, admission, services
        self._serve, self._disk, self._rng, self.faulty, self._later = serve, disk, rng, faulty, later
        self.faults = 0

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(request: Any, timeout: float) -> Any:
            sent = [request_serializer(request)]
            return response_deserializer(self._unary(method, sent))

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(requests: Iterable[Any], timeout: float) -> Any:
            return response_deserializer(self._stream(method, (request_serializer(one) for one in requests)))

        return call

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Any:
        raise_later = AssertionError(f"{method} is not on this line")

        def call(*_: Any, **__: Any) -> Any:
            raise raise_later

        return call

    def _draw(self, kinds: tuple[str, ...]) -> str:
        if self._rng.random() >= self.faulty:
            return "none"
        self.faults += 1
        return self._rng.choice(kinds[1:])

    def _unary(self, method: str, sent: list[bytes]) -> bytes:
        fault = self._draw(CALL_FAULTS)
        if fault == "lost":
            raise Broken(grpc.StatusCode.UNAVAILABLE)
        if fault == "again":
            self._quietly(lambda: self._handle(method, sent, Context(self._certificate)))
        answer = self._handle(method, sent, Context(self._certificate))
        if fault == "answer":
            raise Broken(grpc.StatusCode.UNAVAILABLE)
        return answer

    def _stream(self, method: str, sent: Iterator[bytes]) -> bytes:
        fault, at = self._draw(STREAM_FAULTS), self._rng.randrange(4)
        if fault == "lost":
            raise Broken(grpc.StatusCode.DEADLINE_EXCEEDED)
        context, delivered, killed = Context(self._certificate), list[bytes](), list[Killed]()

        def arriving() -> Iterator[bytes]:
            held: bytes | None = None
            for number, message in enumerate(self._from_site(sent, killed)):
                if fault in {"cut", "late"} and number == at:
                    self._still_on_the_way(method, [message, *self._from_site(sent, killed)], delivered, fault)
                    context.active = False
                    raise Broken(grpc.StatusCode.CANCELLED)
                damaged = self._flip(message) if fault == "flip" and number == at else message
                if fault == "swap" and number == at:
                    held = message
                    continue
                for one in [damaged] * (2 if fault == "twice" and number == at else 1):
                    delivered.append(one)
                    yield one
                if held is not None:
                    delivered.append(held)
                    yield held
                    held = None
            if held is not None:
                yield held

        try:
            answer = self._handle(method, arriving(), context)
        finally:
            if killed:
                raise killed[0]
        if fault == "again":
            self._quietly(lambda: self._handle(method, iter(delivered), Context(self._certificate)))
        if fault == "answer":
            raise Broken(grpc.StatusCode.UNAVAILABLE)
        return answer

    def _from_site(self, sent: Iterator[bytes], killed: list[Killed]) -> Iterator[bytes]:
        """Take the site's messages; when it is killed meanwhile, its connection breaks."""
        while True:
            try:
                with self._disk.running(self._site):
                    message = next(sent, None)
            except Killed as error:
                killed.append(error)
                raise Broken(grpc.StatusCode.CANCELLED) from error
            if message is None:
                return
            yield message

    def _still_on_the_way(self, method: str, rest: list[bytes], before: list[bytes], fault: str) -> None:
        if fault == "late" and before:
            # The rest comes when the site has long begun anew, to a servicer that still has the call.
            first, joins = (
                tallies_pb2.UploadRequest.FromString(before[0]),
                tallies_pb2.UploadRequest.FromString(rest[0]),
            )
            joins.fingerprint = first.fingerprint
            whole = [joins.SerializeToString(), *rest[1:]]
            self._later.append(
                lambda: self._quietly(lambda: self._handle(method, iter(whole), Context(self._certificate)))
            )

    def _flip(self, message: bytes) -> bytes:
        """Turn a bit of the data over: what a bad memory does where no TLS looks any more."""
        hurt = tallies_pb2.UploadRequest.FromString(message)
        data, at = bytearray(hurt.data or b" "), self._rng.randrange(len(hurt.data) or 1)
        data[at] ^= 1 << self._rng.randrange(8)
        hurt.data = bytes(data)
        return hurt.SerializeToString()

    def _quietly(self, call: Callable[[], object]) -> None:
        with suppress(grpc.RpcError):  # nobody listens to this answer
            call()

    def _handle(self, method: str, sent: Iterable[bytes], context: Context) -> bytes:
        found = self._services().methods[method]
        handler = self._admission().intercept_service(lambda _: found, Details(method))  # type: ignore[arg-type]
        assert handler is not None

        def run() -> bytes:
            if handler.request_streaming:
                made = handler.stream_unary(_parsed(handler.request_deserializer, sent), context)
            else:
                made = handler.unary_unary(handler.request_deserializer(next(iter(sent))), context)
            return handler.response_serializer(made)

        return self._serve(self._site, run)


def _parsed(deserializer: Any, sent: Iterable[bytes]) -> Iterator[Any]:
    for one in sent:
        try:
            yield deserializer(one)
        except Exception as error:  # a message that cannot be parsed ends the call, as in gRPC
            raise Broken(grpc.StatusCode.INTERNAL) from error
