"""A real database of both kinds, a real CA, and a real aggregator on free ports."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import Engine

from aggregator.database import open_database, upgrade
from aggregator.members.initialise import initialise
from aggregator.runs.superlink import Programs
from aggregator.server import Aggregator
from aggregator.settings import load_settings
from aggregator.telemetry import make_log
from cairn import enrolment, invitation
from cairn.profile import operator_channel, write_profile
from cairn.rpc import TlsFiles, errors_from_wire
from cairn.v1 import operations_pb2, operations_pb2_grpc
from tests.postgresql import serving


class Clock:
    """The time, which passes only when a test says so."""

    def __init__(self, start: datetime) -> None:
        self._time = start
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            return self._time

    def advance(self, span: timedelta) -> None:
        with self._lock:
            self._time += span


@pytest.fixture
def clock() -> Clock:
    # Today, because TLS itself looks at the real clock when it checks a certificate.
    return Clock(datetime.now(UTC))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start PostgreSQL for the whole run; returns the URL of its server, without a database."""
    with serving() as server:
        yield server.url


@pytest.fixture
def postgresql_url(postgresql: str) -> Iterator[str]:
    """Return the URL of an empty database of PostgreSQL."""
    server = sqlalchemy.make_url(postgresql)
    name = f"t{uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'cairn.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Return an open database with its tables, once of each kind."""
    engine = open_database(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@dataclass
class Running:
    """A real aggregator in this process, and how to become a member of its federation."""

    folder: Path
    aggregator: Aggregator
    log: StringIO

    @property
    def profile(self) -> Path:
        """The first operator's credentials."""
        return self.folder / "operator"

    def invite(self, name: str, role: str = "site", valid_for: timedelta | None = None) -> invitation.Invitation:
        """Invite as the first operator does."""
        request = operations_pb2.InviteSiteRequest(name=name, role=role)
        if valid_for is not None:
            request.valid_for.FromTimedelta(valid_for)
        with operator_channel(self.profile) as channel, errors_from_wire():
            stub = operations_pb2_grpc.SitesStub(channel)
            return invitation.parse(stub.InviteSite(request, timeout=10).invitation)

    def revoke(self, name: str, reason: str = "a test") -> None:
        """Revoke as the first operator does."""
        with operator_channel(self.profile) as channel, errors_from_wire():
            request = operations_pb2.RevokeSiteRequest(name=name, reason=reason)
            operations_pb2_grpc.SitesStub(channel).RevokeSite(request, timeout=10)

    def join(self, name: str, role: str = "site") -> TlsFiles:
        """Invite and enrol; returns the credentials, for an operator a whole profile folder."""
        invited = self.invite(name, role)
        files = enrolment.enrol(invited, self.folder / "members" / name)
        write_profile(files.ca.parent, address=invited.address)
        return files


@pytest.fixture
def start_aggregator(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Running]]:
    """Return a function that founds a federation (`database=URL` if it should not be SQLite) and starts it.

    programs  of its SuperLink and trainer; None: it does not train
    """
    running: list[Running] = []

    def start(database: str | None = None, programs: Programs | None = None) -> Running:
        folder = tmp_path / f"aggregator{len(running)}"
        initialise(folder, "tissue", ["127.0.0.1:0"], clock(), database=database, training=programs is not None)
        log = StringIO()
        aggregator = Aggregator(load_settings(folder / "aggregator.toml"), make_log(log), clock, programs)
        aggregator.start()
        running.append(Running(folder, aggregator, log))
        return running[-1]

    yield start
    for one in running:
        one.aggregator.stop()


@pytest.fixture
def running(start_aggregator: Callable[..., Running]) -> Running:
    """Return a running aggregator of the federation `tissue`, with SQLite."""
    return start_aggregator()
