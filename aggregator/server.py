"""The aggregator, assembled: from its settings to two gRPC ports, the pages and the coordinator, and down again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy.orm import Session

from aggregator import database
from aggregator.dashboard.app import make_app
from aggregator.intake.store import BlobStore
from aggregator.intake.tallies_service import TalliesService
from aggregator.intake.uploads import Uploads
from aggregator.members import pki
from aggregator.members.enrolment_service import EnrolmentService, Gate, RenewalService
from aggregator.members.server_certificate import ServerCertificate
from aggregator.members.sites_service import SitesService, connected_sites, received_bytes
from aggregator.members.tokens import Attempts
from aggregator.settings import AggregatorSettings, join_address, split_address
from aggregator.study.board import Board
from aggregator.study.coordinator import Coordinator
from aggregator.study.plans_service import PlansService
from aggregator.study.service import StudiesService
from aggregator.telemetry import make_metrics
from aggregator.web import Web
from cairn import rpc
from cairn.errors import CairnError, ConfigError
from cairn.files import write_atomically
from cairn.invitation import Invitation
from cairn.stopping import told_to_stop
from cairn.v1 import enrolment_pb2_grpc, operations_pb2_grpc, plans_pb2_grpc, tallies_pb2_grpc

SITE, OPERATOR = frozenset({"site"}), frozenset({"operator"})
# Which roles may call which service on the mutual-TLS port; a service that is not here admits nobody.
ROLES: Mapping[str, frozenset[str]] = {
    "cairn.v1.Plans": SITE,
    "cairn.v1.Tallies": SITE,
    "cairn.v1.Sites": OPERATOR,
    "cairn.v1.Studies": OPERATOR,
    "cairn.v1.Renewal": SITE | OPERATOR,
    health.SERVICE_NAME: SITE | OPERATOR,
    reflection.SERVICE_NAME: OPERATOR,
}
# What the enrolment port offers to everybody.
OPEN: Mapping[str, frozenset[str]] = {
    name: frozenset() for name in ("cairn.v1.Enrolment", health.SERVICE_NAME, reflection.SERVICE_NAME)
}
ENROLMENT_THREADS = 16
GRACE_S = 3.0  # for calls that are open when the aggregator is told to stop
PORTS = "ports.json"  # the last run's ports, taken again where the settings say 0

Log = structlog.typing.FilteringBoundLogger


@dataclass(frozen=True)
class Addresses:
    """Where a running aggregator is, each host:port: for sites and operators, for newcomers, and the pages."""

    address: str
    enrolment: str
    dashboard: str


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Aggregator:
    """One aggregator process: it holds its ports from the beginning, serves from `start`, and drains in `stop`.

    Raises ConfigError when the settings, the CA, the database, the blobs or a port cannot be used.
    """

    def __init__(self, settings: AggregatorSettings, log: Log, now: Callable[[], datetime] = utc_now) -> None:
        self._settings = settings
        self._log = log
        self._health = health.HealthServicer()
        self.metrics = make_metrics()
        authority = pki.load_authority(settings.federation, settings.pki_dir)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        settings.addresses_file.unlink(missing_ok=True)  # of a run that was killed
        self.engine = database.open_database(settings.database_url)
        database.upgrade(self.engine)
        store = BlobStore(settings.blobs_url)
        self._board = Board(self.engine, now)
        gate = Gate(self.engine, settings.federation, now)
        self._server = rpc.server([rpc.Admission(ROLES, gate, self._failed)], settings.limits.threads)
        self._enrolment = rpc.server([rpc.Admission(OPEN, None, self._failed)], ENROLMENT_THREADS)
        pages = make_app(self.engine, store, "", self.metrics.registry, now)
        self.addresses = self._listen(authority, pages, now)
        self.metrics.sites.set_function(lambda: self._ask(lambda session: connected_sites(session, now())))
        self.metrics.ledger_bytes.set_function(lambda: self._ask(received_bytes))

        uploads = Uploads(
            self.engine,
            store,
            settings.spool,
            largest=settings.limits.upload_bytes,
            now=now,
            counted=self._counted,
        )
        self._coordinator = Coordinator(
            self.engine,
            store,
            self._board,
            uploads,
            folder=settings.state_dir,
            now=now,
            log=log,
            metrics=self.metrics,
        )
        wake = self._coordinator.wake
        attempts = Attempts(settings.limits.failed_enrolments, timedelta(minutes=1), now)
        inside, outside = self._server, self._enrolment
        plans_pb2_grpc.add_PlansServicer_to_server(PlansService(self.engine, self._board, now, wake), inside)
        tallies_pb2_grpc.add_TalliesServicer_to_server(TalliesService(self.engine, store, uploads), inside)
        operations_pb2_grpc.add_SitesServicer_to_server(
            SitesService(self.engine, self._invitation(authority), now), inside
        )
        operations_pb2_grpc.add_StudiesServicer_to_server(
            StudiesService(self.engine, store, settings.spool, now, wake), inside
        )
        enrolment_pb2_grpc.add_RenewalServicer_to_server(RenewalService(self.engine, authority, now), inside)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(
            EnrolmentService(self.engine, authority, attempts, now), outside
        )
        for server, offered in ((inside, ROLES), (outside, OPEN)):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            reflection.enable_server_reflection(tuple(offered), server)

    def start(self) -> None:
        """Serve, then announce the addresses."""
        self._coordinator.start()
        self._web.start()
        self._enrolment.start()
        self._server.start()
        with write_atomically(self._settings.addresses_file) as file:
            file.write(json.dumps(asdict(self.addresses)).encode() + b"\n")
        self._log.info("serving", federation=self._settings.federation, **asdict(self.addresses))

    def stop(self) -> None:
        """Take no new call, let open ones end within a few seconds, and release everything."""
        self._settings.addresses_file.unlink(missing_ok=True)
        self._health.enter_graceful_shutdown()
        self._board.stop()
        for done in [self._server.stop(GRACE_S), self._enrolment.stop(GRACE_S)]:
            done.wait()
        self._coordinator.stop()
        self._web.stop()
        self.engine.dispose()
        self._log.info("stopped")

    def _listen(self, authority: pki.Authority, pages: Any, now: Callable[[], datetime]) -> Addresses:
        settings, before = self._settings, _last_ports(self._settings)
        public = [*settings.addresses, *([settings.enrolment_address] if settings.enrolment_address else [])]
        certificate = ServerCertificate(authority, [split_address(address)[0] for address in public], now)
        known, unknown = (rpc.server_credentials(certificate, ask_client=ask) for ask in (True, False))
        port = _bind(settings.listen, before.get("listen"), lambda at: self._server.add_secure_port(at, known))
        enrolment_port = _bind(
            settings.enrolment_listen,
            before.get("enrolment"),
            lambda at: self._enrolment.add_secure_port(at, unknown),
        )

        def open_web(at: str) -> int:
            host, wanted = split_address(at)
            self._web = Web(pages, (host, wanted or 0))
            return self._web.port

        web_port = _bind(settings.dashboard_listen, before.get("dashboard"), open_web)
        with write_atomically(settings.state_dir / PORTS) as file:
            file.write(json.dumps({"listen": port, "enrolment": enrolment_port, "dashboard": web_port}).encode())
        host, public_port = split_address(settings.addresses[0])
        web_host = split_address(settings.dashboard_listen)[0]
        return Addresses(
            address=join_address(host, public_port or port),
            enrolment=settings.enrolment_address or join_address(host, enrolment_port),
            dashboard=join_address(host if web_host in {"0.0.0.0", "::"} else web_host, web_port),  # noqa: S104
        )

    def _invitation(self, authority: pki.Authority) -> Invitation:
        return Invitation(
            federation=self._settings.federation,
            name="",
            role="",
            address=self.addresses.address,
            enrolment_address=self.addresses.enrolment,
            ca_pem=authority.certificate_pem.decode(),
            token="",
        )

    def _counted(self) -> None:
        self.metrics.uploads.inc()
        self._coordinator.wake()

    def _ask(self, question: Callable[[Session], int]) -> int:
        with database.reading(self.engine) as session:
            return question(session)

    def _failed(self, method: str, error: Exception) -> None:
        kind = type(error).__name__ if isinstance(error, CairnError) else "unexpected"
        self.metrics.errors.labels(kind).inc()
        if isinstance(error, CairnError):
            self._log.info("refused", method=method, kind=kind, because=str(error))
        else:
            self._log.error("failed", method=method, exc_info=error)


def serve_until_told(settings: AggregatorSettings, log: Log) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigError."""
    told = told_to_stop()
    try:
        aggregator = Aggregator(settings, log)
        aggregator.start()
    except OSError as error:
        raise ConfigError(f"the aggregator cannot start: {error.strerror or error} {error.filename or ''}") from error
    told.wait()
    aggregator.stop()


def _last_ports(settings: AggregatorSettings) -> dict[str, int]:
    try:
        ports: dict[str, int] = json.loads((settings.state_dir / PORTS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return ports


def _bind(listen: str, before: int | None, bind: Callable[[str], int]) -> int:
    """Bind a port; where the settings say 0, first try the last run's, so that members find the aggregator again."""
    host, port = split_address(listen)
    wanted = [port] if port else [*([before] if before else []), 0]
    for one in wanted:
        try:
            return bind(join_address(host, one or 0))
        except (RuntimeError, ConfigError) as error:
            if one == wanted[-1]:
                raise ConfigError(
                    f"cannot listen on {join_address(host, one or 0)}; is it taken by another program?"
                ) from error
    raise AssertionError("there is always a last one")
