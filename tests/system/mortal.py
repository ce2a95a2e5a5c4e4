"""A `cairn` program that kills itself, by signal 9, once after every kind of gRPC message that it has to do with.

    python -m tests.system.mortal JOURNAL edge run --config site.toml

It dies when an answer has come and nothing was done about it yet (client), and when a request has been dealt with and
its answer has not left (server). What it died of is a line of the journal, and it does not
die of the same again; so whoever starts it again and again enumerates the messages. Kinds are methods and the parts
that a message has.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from cairn.cli import main

LOCK = threading.Lock()


class Life:
    """What a program has died of already, and the end of it at something new."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def after(self, what: str, method: str, message: Any) -> None:
        """Die, if this kind of message has not been died of."""
        parts = [field.name for field, _ in message.ListFields() if field.message_type is not None]
        cause = " ".join([what, method, *sorted(parts)])
        with LOCK:
            known = self._journal.read_text().splitlines() if self._journal.exists() else []
            if cause not in known:
                self._journal.write_text("\n".join([*known, cause]) + "\n")
                os.kill(os.getpid(), signal.SIGKILL)


def mortal_channel(life: Life, channel: grpc.Channel) -> grpc.Channel:
    """Let a program die when answers have come."""

    def came(method: str, make: Callable[..., Any], *, streams: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            answer = make(*arguments, **options)
            if streams:
                return Stream(answer, lambda message: life.after("answer-came", method, message))
            life.after("answer-came", method, answer)
            return answer

        return call

    class Mortal:
        def __getattr__(self, name: str) -> Any:
            found = getattr(channel, name)
            if name not in {"unary_unary", "unary_stream", "stream_unary", "stream_stream"}:
                return found
            return lambda method, *rest, **options: came(
                method, found(method, *rest, **options), streams=name.endswith("_stream")
            )

        def __enter__(self) -> "Mortal":
            return self

        def __exit__(self, *_: object) -> None:
            channel.close()

    return Mortal()  # type: ignore[return-value]  # it is used as one


class Stream:
    """A call whose answers are looked at as they come."""

    def __init__(self, call: Any, look: Callable[[Any], None]) -> None:
        self._call, self._look = call, look

    def __iter__(self) -> Iterator[Any]:
        for message in self._call:
            self._look(message)
            yield message

    def __next__(self) -> Any:
        message = next(self._call)
        self._look(message)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class MortalService(grpc.ServerInterceptor):
    """Let a program die when requests have been dealt with."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        asks, answers = (
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        kind = f"{asks}_{answers}"
        behaviour = getattr(handler, kind)

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            answer = behaviour(request, context)
            return map(dealt, answer) if handler.response_streaming else dealt(answer)

        def dealt(message: Any) -> Any:
            self._life.after("answer-unsent", details.method, message)
            return message

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(handle, handler.request_deserializer, handler.response_serializer)


if __name__ == "__main__":
    _, journal, *arguments = sys.argv
    life = Life(Path(journal))
    secure_channel, server = grpc.secure_channel, grpc.server
    grpc.secure_channel = lambda *a, **k: mortal_channel(life, secure_channel(*a, **k))
    grpc.server = lambda pool, interceptors=(), **k: server(
        pool, interceptors=[MortalService(life), *interceptors], **k
    )
    sys.argv = ["cairn", *arguments]
    main()
