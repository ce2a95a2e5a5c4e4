"""A dashboard over a filled database, served on loopback, and the browser that looks at it."""

import importlib.util
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import Engine
from starlette.applications import Starlette

from aggregator.dashboard import make_app
from aggregator.database import open_database, upgrade
from aggregator.intake.store import BlobStore
from aggregator.members.tokens import token_hash

TOKEN = "a-token-of-the-tests"


@dataclass
class Clock:
    """A clock that stands until a test moves it."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Federation:
    """An aggregator's database and store, and the pages over them."""

    engine: Engine
    store: BlobStore
    folder: Path
    clock: Clock
    registry: CollectorRegistry
    app: Starlette
    token: str = TOKEN


@dataclass(frozen=True)
class Site:
    """A federation whose pages are served at an address."""

    federation: Federation
    address: str


BUSY_MS = 120_000  # a machine that is busy with other tests draws slowly; a quiet one needs two seconds


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """Return samples.py: tests are no package, so it is loaded by its place."""
    spec = importlib.util.spec_from_file_location("dashboard_samples", Path(__file__).with_name("samples.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _federation(folder: Path, samples: ModuleType) -> Federation:
    engine = open_database(f"sqlite:///{folder / 'cairn.db'}")
    upgrade(engine)
    store, clock = BlobStore(str(folder / "blobs")), Clock(samples.NOW)
    registry = CollectorRegistry()
    Counter("cairn_uploads", "Tallies entered into the ledger.", registry=registry).inc(17)
    app = make_app(engine, store, token_hash(TOKEN), registry, clock)
    return Federation(engine, store, folder, clock, registry, app)


@pytest.fixture
def empty(tmp_path: Path, samples: ModuleType) -> Iterator[Federation]:
    """Make a federation in which nothing has happened."""
    made = _federation(tmp_path, samples)
    yield made
    made.engine.dispose()


@pytest.fixture
def filled(empty: Federation, samples: ModuleType) -> Federation:
    """Make a federation of four clinics with studies in several states."""
    samples.fill(empty.engine, empty.store, empty.folder, rows=500)
    return empty


@contextmanager
def _serving(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))  # takes calls from here on, before the server does
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def visit() -> Iterator[Callable[..., httpx.Client]]:
    """Serve an application on loopback and return a client of it, which follows no redirection."""
    with ExitStack() as stack:
        addresses: dict[int, str] = {}

        def client(app: Starlette, from_address: str = "127.0.0.1") -> httpx.Client:
            if id(app) not in addresses:
                addresses[id(app)] = stack.enter_context(_serving(app))
            transport = httpx.HTTPTransport(local_address=from_address)
            return stack.enter_context(httpx.Client(base_url=addresses[id(app)], transport=transport))

        yield client


@pytest.fixture
def visitor(filled: Federation, visit: Callable[..., httpx.Client]) -> httpx.Client:
    """Open the pages without having signed in."""
    return visit(filled.app)


@pytest.fixture
def operator(visitor: httpx.Client) -> httpx.Client:
    """Open the pages signed in."""
    assert visitor.post("/login", data={"token": TOKEN}).status_code == 303
    return visitor


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, samples: ModuleType) -> Iterator[Site]:
    """Serve a filled federation for a browser; shared by a module's tests."""
    federation = _federation(tmp_path_factory.mktemp("served"), samples)
    samples.fill(federation.engine, federation.store, federation.folder)
    with _serving(federation.app) as address:
        yield Site(federation, address)
    federation.engine.dispose()


def _sign_in(browser: Browser, served: Site, width: int, height: int, *, phone: bool) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone, reduced_motion="reduce"
    )
    context.set_default_timeout(BUSY_MS)
    page = context.new_page()
    page.goto(served.address)
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{served.address}/")
    yield page
    context.close()


@pytest.fixture
def desktop(browser: Browser, served: Site) -> Iterator[Page]:
    """Sign in on a screen of 1280 x 800."""
    yield from _sign_in(browser, served, 1280, 800, phone=False)


@pytest.fixture
def phone(browser: Browser, served: Site) -> Iterator[Page]:
    """Sign in on a phone of 390 x 844."""
    yield from _sign_in(browser, served, 390, 844, phone=True)
