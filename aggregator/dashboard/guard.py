"""Two rings round every page: headers that a browser must see on each answer, and the session that it must show."""

from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator.dashboard.access import Access

COOKIE: Final = "cairn_session"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'{scripts}; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self'{styles}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STRICT_POLICY: Final = _POLICY.format(scripts="", styles="")
PLOTS_POLICY: Final = _POLICY.format(
    # Plotly compiles its WebGL drawing from text that it makes itself, sets style attributes on its marks, and adds one
    # empty style element (the hash is that of an empty text), which it fills through the object model.
    scripts=" 'unsafe-eval'",
    styles=" 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; style-src-attr 'unsafe-inline'",
)
HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": STRICT_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class SecurityHeaders:
    """Adds to every answer the headers that it does not bring itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on and dress its answer."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        await self._app(scope, receive, dressed if scope["type"] == "http" else send)


class SignedIn:
    """Lets through who has a session, and anyone to the open paths; every other path is closed unless named here.

    public  paths open to all; one that ends with a slash opens what is below it
    """

    def __init__(self, app: ASGIApp, access: Access, public: Collection[str]) -> None:
        self._app = app
        self._access = access
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on with `scope["session"]` set, or answer with the way to the door."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        session = await run_in_threadpool(self._access.session, _cookie(request))
        scope["session"] = session
        path = scope["path"]
        if session or any(path == way or (way.endswith("/") and path.startswith(way)) for way in self._public):
            await self._app(scope, receive, send)
            return
        await _to_the_door(request)(scope, receive, send)


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _to_the_door(request: Request) -> Response:
    if request.method != "GET" or "text/html" not in request.headers.get("accept", "text/html"):
        return PlainTextResponse("sign in first", 401)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/login" if here == "/" else f"/login?next={quote(here, safe='')}", 303)
