"""Who may call what on SuperLink's port.

Stock SuperLink serves the API of the sites and the API that registers sites and starts runs on one port, the second to
anyone who reaches it. Behind the guard, everything but the sites' API (where Flower checks each call's signature)
needs a token that is derived from the secret of SuperLink's executors.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

HEADER = "x-cairn-token"
OPEN_PATHS = ("/v1/fleet/", "/health")
BODY_LIMIT = 64 << 20  # bytes of one request; Flower cuts arrays into pieces of 5 MiB

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def token(secret: bytes) -> str:
    """Derive the token from the executors' secret."""
    return hmac.new(secret, b"cairn superlink token", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware that refuses, or hands a request on with its body in one piece.

    The joining is for speed: behind it every piece of 64 KiB would pass eight of Starlette's middlewares, each with
    tasks of its own, which cost more than all the rest of a round.
    """

    def __init__(self, app: Asgi, expected: str) -> None:
        self._app = app
        self._expected = expected.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 404 (no token) or 413 (too large)."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if not self._admitted(scope):
            return await _answer(send, 404)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the caller went away
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY_LIMIT:
                return await _answer(send, 413)
        whole: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def joined() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        return await self._app(scope, joined, send)

    def _admitted(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(HEADER.encode(), b"")
        return scope["path"].startswith(OPEN_PATHS) or hmac.compare_digest(shown, self._expected)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
