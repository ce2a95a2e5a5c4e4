"""The dashboard's web application: every page is a GET that reads; the only POSTs begin and end a session.

All that is ever written is who came in, into the audit.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy import Engine, text
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from aggregator.dashboard import assets, audits, maps, runs, site_views, views, words
from aggregator.dashboard.access import LIFETIME, Access, Session, open_tokens
from aggregator.dashboard.guard import COOKIE, HEADERS, PLOTS_POLICY, SecurityHeaders, SignedIn
from aggregator.dashboard.run_pages import RunPages, Training
from aggregator.database import audit, reading, writing
from aggregator.intake.store import BlobStore
from cairn.errors import BadToken, CairnError

FORM_BYTES = 4096
NOT_OPEN = "This token does not open the dashboard."


def make_app(
    engine: Engine,
    store: BlobStore,
    token_hash: str,
    registry: CollectorRegistry,
    clock: Callable[[], datetime],
    *,
    open_metrics: bool = True,
    training: Training = lambda: None,
) -> Starlette:
    """Make the pages as an ASGI application; it reads the database and the store, and notes who signs in.

    token_hash    SHA-256 of a token that opens the dashboard, beside those of the enrolled operators; "" for none
    registry      the aggregator's metrics, shown at /metrics
    clock         gives the time, in UTC
    open_metrics  whether /metrics is shown without signing in, as a Prometheus server needs it
    training      tells which processes of training are there, by name; None where there is no training
    """
    access = Access(open_tokens(engine, token_hash), clock)
    pages = Pages(engine, store, access, clock, training)
    run_pages = RunPages(engine, pages.page, training)

    def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/", pages.overview),
        Route("/sites", pages.sites),
        Route("/studies/{name}", pages.study),
        Route("/studies/{name}/{figure}.json", pages.figure),
        Route("/runs", run_pages.all),
        Route("/runs/{name}", run_pages.one),
        Route("/runs/{name}/curves.json", run_pages.curves),
        Route("/audit", pages.audit),
        Route("/login", pages.login),
        Route("/login", pages.sign_in, methods=["POST"]),
        Route("/logout", pages.sign_out, methods=["POST"]),
        Route("/static/{name}", assets.serve),
        Route("/healthz", pages.health),
        Route("/metrics", metrics),
    ]
    public = ["/login", "/static/", "/healthz", *(["/metrics"] if open_metrics else [])]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(SignedIn, access=access, public=public),
            Middleware(GZipMiddleware, minimum_size=1024),
        ],
        exception_handlers={HTTPException: pages.not_here, CairnError: pages.not_well, Exception: pages.broken},
    )


class Pages:
    """The handlers; each reads, fills a template and answers."""

    def __init__(
        self, engine: Engine, store: BlobStore, access: Access, clock: Callable[[], datetime], training: Training
    ) -> None:
        self._engine = engine
        self._training = training
        self._maps = maps.Maps(engine, store)
        self._access = access
        self._clock = clock
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("aggregator.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "ago": words.ago,
            "span": words.span,
            "figure": words.figure,
            "bytes": words.bytes_,
            "count": words.count,
            "plain": words.plain,
            "sentence": words.sentence,
            "short": words.short,
            "tone": views.tone,
            "utc": words.utc,
        }
        self._templates.globals["asset"] = assets.address

    def overview(self, request: Request) -> Response:
        """Show all studies and sites, and what a person should look at."""
        with reading(self._engine) as session:
            sites, studies = site_views.sites(session, self._clock()), views.studies(session)
            all_runs = runs.runs(session)
        totals = {
            "connected": sum(site.connected for site in sites),
            "enrolled": sum(site.state == "enrolled" for site in sites),
            "running": sum(study.state not in {"done", "failed"} for study in studies),
            "training": sum(run.state in runs.AT_WORK for run in all_runs),
            "uploads": sum(site.uploads for site in sites),
            "bytes": sum(site.bytes_received for site in sites),
        }
        notices = [*views.notices(sites, studies), *runs.notices(all_runs, self._training())]
        return self.page(
            request,
            "overview.html",
            sites=sites,
            studies=studies,
            runs=all_runs,
            totals=totals,
            notices=sorted(notices, key=lambda notice: notice.tone != "bad"),
        )

    def sites(self, request: Request) -> Response:
        """Show every site."""
        with reading(self._engine) as session:
            return self.page(request, "sites.html", sites=site_views.sites(session, self._clock()))

    def study(self, request: Request) -> Response:
        """Show one study: its stages at each site, and its results when they are there."""
        name = request.path_params["name"]
        window = _number(request, "window")
        with reading(self._engine) as session:
            study = views.study(session, name, window)
            if study is None:
                raise HTTPException(404, f"There is no study {name[:80]}.")
            windows = views.windows(session, name)
            merges = audits.merges(session, study=name)
        at_sites = [stage for stage in study.stages if stage.stage in views.AT_SITES]
        results = maps.read_results(study.results)
        answer = self.page(
            request,
            "study.html",
            study=study,
            spec=study.spec,
            windows=windows,
            at_sites=at_sites,
            rows=sorted({site for stage in at_sites for site in stage.cells}),
            merges=merges,
            version=results.digest if results else "",
            remarks=maps.remarks(study.results),
            figures=maps.key_figures(study.stages, results),
            clusters=results.clusters if results else [],
        )
        answer.headers["content-security-policy"] = PLOTS_POLICY
        return answer

    def figure(self, request: Request) -> Response:
        """Answer with the data of one figure as JSON; its address carries the results' version, so it may be kept."""
        name, figure = request.path_params["name"], request.path_params["figure"]
        body = self._maps.figure(name, figure, _number(request, "band"))
        if body is None:
            raise HTTPException(404, "There is no such figure.")
        headers = {"cache-control": "private, max-age=86400"} if request.query_params.get("v") else {}
        return Response(body, media_type="application/json", headers=headers)

    def audit(self, request: Request) -> Response:
        """Show the merges and the log of what happened."""
        action, before = request.query_params.get("action", ""), _number(request, "before")
        with reading(self._engine) as session:
            merges = audits.merges(session)
            entries, older = audits.entries(session, action, before)
            actions = audits.actions(session)
        return self.page(
            request,
            "audit.html",
            merges=merges,
            entries=entries,
            before=older,
            paged=before is not None,
            action=action,
            actions=actions,
        )

    def login(self, request: Request) -> Response:
        """Show the door."""
        way = _inside(request.query_params.get("next", "/"))
        if request.scope["session"]:
            return RedirectResponse(way, 303)
        return self.page(request, "login.html", next=way, message="")

    async def sign_in(self, request: Request) -> Response:
        """Begin a session for who brings a token that opens."""
        _same_origin(request)
        form = parse_qs((await _body(request)).decode("utf-8", "replace"), max_num_fields=8)
        way = _inside(form.get("next", ["/"])[0])
        address = request.client.host if request.client else ""
        try:
            cookie = await run_in_threadpool(self._access.sign_in, form.get("token", [""])[0], address)
        except BadToken as error:
            return await run_in_threadpool(self._door, request, way, f"{error}.", 429)
        await run_in_threadpool(self._note_login, cookie, address)
        if cookie is None:
            return await run_in_threadpool(self._door, request, way, NOT_OPEN, 401)
        answer = RedirectResponse(way, 303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=int(LIFETIME.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def sign_out(self, request: Request) -> Response:
        """End the session."""
        _same_origin(request)
        session: Session = request.scope["session"]
        self._access.sign_out(session)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    def _note_login(self, cookie: str | None, address: str) -> None:
        """Write into the audit who came in, or from where somebody tried; nobody comes in without that."""
        who = self._access.session(cookie) if cookie else None
        actor, action = (f"operator/{who.holder}", "login") if who else ("nobody", "login-refused")
        with writing(self._engine) as session:
            audit(session, self._clock(), actor, action, who.holder if who else "dashboard", address=address)

    def health(self, _request: Request) -> Response:
        """Say whether the database answers."""
        with reading(self._engine) as session:
            session.execute(text("SELECT 1"))
        return PlainTextResponse("ok\n")

    def not_here(self, request: Request, error: Exception) -> Response:
        """Answer a page that is not there, or a call that is not allowed."""
        assert isinstance(error, HTTPException)
        title = "Not found" if error.status_code == 404 else "Not possible"
        detail = "This page is not here." if error.detail == "Not Found" else error.detail
        return self.page(request, "error.html", error.status_code, title=title, message=detail)

    def not_well(self, request: Request, error: Exception) -> Response:
        """Answer for a database or store that fails, with its own sentence."""
        return self.page(request, "error.html", 503, title="The aggregator is not well", message=f"{error}.")

    def broken(self, request: Request, _error: Exception) -> Response:
        """Answer for what nobody foresaw, without telling its inside."""
        message = "This page could not be made; the aggregator's log says more."
        answer = self.page(request, "error.html", 500, title="Something failed", message=message)
        answer.headers.update(HEADERS)  # Starlette answers this one from outside of all middleware
        return answer

    def _door(self, request: Request, way: str, message: str, status: int) -> Response:
        return self.page(request, "login.html", status, next=way, message=message)

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Fill a template; 304 when the reader has the same already."""
        session: Session | None = request.scope.get("session")
        body = self._templates.get_template(template).render(
            values, here=request.url.path, holder=session.holder if session else "", now=self._clock()
        )
        tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:20]}"'
        if status == 200 and request.headers.get("if-none-match", "").removeprefix("W/") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(body, status, {"etag": tag}, "text/html")


def _number(request: Request, name: str) -> int | None:
    value = request.query_params.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 else None


def _inside(way: str) -> str:
    # Only a path of ours: "//host" and "/\host" would lead away.
    return way if way.startswith("/") and way[1:2] not in {"/", "\\"} and way.isprintable() else "/"


def _same_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise HTTPException(403, "The form came from another page.")


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            raise HTTPException(413, "The form is too long.")
    return body
