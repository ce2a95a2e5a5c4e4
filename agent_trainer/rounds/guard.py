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
    """ASGI middleware that passes a request on, or answers 404 (no token) or 413 (too large)."""

    def __init__(self, app: Asgi, expected: str) -> None:
        self._app = app
        self._expected = expected.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and (status := self._refusal(scope)):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> int:
        headers = dict(scope["headers"])
        shown = headers.get(HEADER.encode(), b"")
        if not (scope["path"].startswith(OPEN_PATHS) or hmac.compare_digest(shown, self._expected)):
            return 404
        length = headers.get(b"content-length", b"0")
        whole = length.isdigit() and int(length) <= BODY_LIMIT and b"transfer-encoding" not in headers
        return 0 if whole else 413
