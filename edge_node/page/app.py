"""The page: what runs, what left, what needs a person, the label images, searches to watch, answers explained.

It changes nothing at the site and loads nothing from elsewhere.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cairn import __version__
from cairn.errors import ConfigError
from edge_node.page.content import departures, figure_words, label_pictures, size_words, stage_words, time_words
from edge_node.page.curves import curves
from edge_node.page.explain import explain_routes
from edge_node.page.search import search_routes
from edge_node.status import Snapshot
from edge_node.training.trainer import Trainer

SHOWN = 12  # departures and pictures before "all"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Site:
    """What the page tells about.

    outbox   number of sealed tallies that wait to be sent
    trainer  answers for the pages of searches and explanations; None at a site that does not train
    """

    name: str
    federation: str
    aggregator: str
    snapshot: Callable[[], Snapshot]
    outbox: Callable[[], int]
    audit: Path
    labels: Path
    trainer: Trainer | None = None


def make_app(site: Site) -> Starlette:
    """Make the page of a site."""
    templates = Environment(
        loader=PackageLoader("edge_node.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters.update(size=size_words, time=time_words, stage=stage_words, figure=figure_words)
    read_departures = departures(site.audit)

    def content(*, everything: bool) -> dict[str, object]:
        left, total = read_departures()
        pictures = label_pictures(site.labels)
        now = site.snapshot()
        return {
            "site": site,
            "version": __version__,
            "now": now,
            "curves": curves(now.training.rounds),
            "waiting": site.outbox(),
            "departures": left if everything else left[:SHOWN],
            "departures_total": len(left),
            "bytes_total": total,
            "pictures": pictures if everything else pictures[:SHOWN],
            "pictures_total": len(pictures),
            "everything": everything,
            "at": datetime.now().astimezone(),
        }

    def page(request: Request) -> Response:
        values = content(everything="all" in request.query_params)
        return HTMLResponse(templates.get_template("page.html").render(values), headers=HEADERS)

    def live(request: Request) -> Response:
        values = content(everything="all" in request.query_params)
        return HTMLResponse(templates.get_template("_live.html").render(values), headers=HEADERS)

    def picture(request: Request) -> Response:
        wanted = request.path_params["path"]
        for found in label_pictures(site.labels):  # only what the page lists is given out
            if found.path == wanted:
                return FileResponse(site.labels / found.path, headers=HEADERS)
        raise HTTPException(404)

    def page_of(name: str) -> Callable[[], str]:
        return lambda: templates.get_template(name).render(site=site, version=__version__)

    def trainer_routes(trainer: Trainer) -> list[Route]:
        searching = search_routes(trainer, page_of("search.html"), HEADERS)
        return searching + explain_routes(trainer, page_of("explain.html"), HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/live", live),
            Route("/healthz", lambda _request: PlainTextResponse("ok\n", headers=HEADERS)),
            Route("/picture/{path:path}", picture),
            *(trainer_routes(site.trainer) if site.trainer else ()),
            Mount("/static", StaticFiles(packages=[("edge_node.page", "static")])),
        ],
        # A page elsewhere could point its own name at 127.0.0.1 and read this one through the visitor's browser.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


@contextlib.contextmanager
def serve(site: Site, listen: str) -> Iterator[str]:
    """Serve the page from a thread while the block runs; gives the address. Raises ConfigError when it is in use."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, int(port)))
            listening.listen()
        except OSError as error:
            raise ConfigError(f"{listen} is in use; set local.page to another port, or to 127.0.0.1:0") from error
        app = make_app(site)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none")
        )
        thread = threading.Thread(target=server.run, args=([listening],), name="page", daemon=True)
        thread.start()
        try:
            yield f"{listen.rpartition(':')[0]}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(5)
