"""The aggregator, assembled: from its settings to two gRPC ports, the pages and the coordinator, and down again."""

import json
import resource
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aggregator import database
from aggregator.at_rest import open_sealer
from aggregator.dashboard.app import make_app
from aggregator.housekeeping import Housekeeping
from aggregator.intake.store import BlobStore
from aggregator.intake.tallies_service import TalliesService
from aggregator.intake.uploads import Entered, Uploads
from aggregator.masking.arrivals import Arrivals
from aggregator.masking.service import MaskingService
from aggregator.masking.sums import Sums
from aggregator.measuring import measure
from aggregator.members import pki, trainer
from aggregator.members.enrolment_service import EnrolmentService, Gate, RenewalService
from aggregator.members.server_certificate import ServerCertificate
from aggregator.members.sites_service import SitesService
from aggregator.members.tokens import Attempts
from aggregator.ports import Ports, bind_all
from aggregator.runs import superlink
from aggregator.runs.bell import Bell
from aggregator.runs.replay import ReplayPlans
from aggregator.runs.runs_service import RunsService
from aggregator.runs.training_service import TrainingService
from aggregator.settings import AggregatorSettings, split_address
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
from cairn.rpc import Identity
from cairn.stopping import told_to_stop
from cairn.tracing import open_traces
from cairn.v1 import (
    enrolment_pb2_grpc,
    masking_pb2_grpc,
    operations_pb2_grpc,
    plans_pb2_grpc,
    tallies_pb2_grpc,
    training_pb2_grpc,
)

SITE, OPERATOR, TRAINER = frozenset({"site"}), frozenset({"operator"}), frozenset({"trainer"})
# Which roles may call which service on the mutual-TLS port; a service that is not here admits nobody.
ROLES: Mapping[str, frozenset[str]] = {
    "cairn.v1.Plans": SITE,
    "cairn.v1.Tallies": SITE,
    "cairn.v1.Masking": SITE,
    "cairn.v1.Sites": OPERATOR,
    "cairn.v1.Studies": OPERATOR,
    "cairn.v1.Runs": OPERATOR,
    "cairn.v1.Training": TRAINER,
    "cairn.v1.Renewal": SITE | OPERATOR,
    health.SERVICE_NAME: SITE | OPERATOR | TRAINER,
    reflection.SERVICE_NAME: OPERATOR,
}
# What the enrolment port offers to everybody.
OPEN: Mapping[str, frozenset[str]] = {
    name: frozenset() for name in ("cairn.v1.Enrolment", health.SERVICE_NAME, reflection.SERVICE_NAME)
}
ENROLMENT_THREADS = 16
SWEEP_S = 2.0  # between two looks whether those with open streams may still be here, and writing who was seen
GRACE_S = 3.0  # for calls that are open when the aggregator is told to stop

Log = structlog.typing.FilteringBoundLogger


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Aggregator:
    """One aggregator process: it holds its ports from the beginning, serves from `start`, and drains in `stop`.

    programs  how SuperLink and trainer are called
    Raises ConfigError when the settings, the CA, the database, the blobs or a port cannot be used.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        log: Log,
        now: Callable[[], datetime] = utc_now,
        programs: superlink.Programs | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._now = now
        self._health = health.HealthServicer()
        self.metrics = make_metrics()
        if settings.trains_here:
            superlink.check_installed()
        authority = pki.load_authority(settings.federation, settings.pki_dir)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        settings.addresses_file.unlink(missing_ok=True)  # of a run that was killed
        self.engine = database.open_database(settings.database_url)
        database.upgrade(self.engine)
        if settings.trains_here:
            trainer.check_name(self.engine)
        self._sealer = open_sealer(settings)
        self._store = BlobStore(settings.blobs_url, sealer=self._sealer)
        self._board = Board(self.engine, now)
        self._bell = Bell()
        self._masking_bell = Bell()
        self._arrivals = Arrivals(self.engine, now, self._something_came)
        self._superlink: superlink.Superlink | None = None
        self._gate = Gate(self.engine, settings.federation, now)
        self._traces = open_traces(settings.telemetry, "cairn-aggregator", settings.federation, log)
        self._admission = rpc.Admission(
            ROLES,
            self._gate,
            self._failed,
            settings.limits.calls_a_second,
            lambda method, who: self._traces.span(method, b"", **{who.role: who.name}),
        )
        self._server = rpc.server([self._admission], settings.limits.threads)
        self._stopped = threading.Event()
        self._watchers = [
            threading.Thread(
                target=self._again, args=(self._sweep, "open streams not looked at"), name="sweep", daemon=True
            ),
            threading.Thread(
                target=self._again, args=(self._gate.keep_seen, "not kept who was seen"), name="seen", daemon=True
            ),
        ]
        self._enrolment = rpc.server([rpc.Admission(OPEN, None, self._failed)], ENROLMENT_THREADS)
        ports = self._listen(authority)
        self.addresses = ports.addresses(settings)
        if ports.superlink:
            self._superlink = superlink.Superlink(
                self.engine,
                authority,
                superlink.places(settings, ports.listen, ports.superlink, self.addresses.superlink),
                now=now,
                log=log,
                metrics=self.metrics,
                tell_health=self._health,
                programs=programs,
            )
        self._uploads = Uploads(
            self.engine,
            self._store,
            settings.spool,
            largest=settings.limits.upload_bytes,
            now=now,
            counted=self._counted,
            masked=self._arrivals,
            sealer=self._sealer,
        )
        self._sums = Sums(self.engine, self._store, settings.spool, now, self._masking_bell.ring)
        self._coordinator = Coordinator(
            self.engine,
            self._store,
            self._board,
            self._uploads,
            folder=settings.state_dir,
            now=now,
            log=log,
            metrics=self.metrics,
            sums=self._sums,
            traces=self._traces,
        )
        measure(self.metrics, self.engine, settings, now)
        self._housekeeping = Housekeeping(
            self.engine, self._store, settings, authority,
            now=now, log=log, metrics=self.metrics,
        )  # fmt: skip
        self._serve_sites(authority)
        self._serve_operators(authority)
        self._serve_trainer()
        for server, offered in ((self._server, ROLES), (self._enrolment, OPEN)):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            reflection.enable_server_reflection(tuple(offered), server)

    def _serve_sites(self, authority: pki.Authority) -> None:
        address, attempts = (
            self.addresses.superlink,
            Attempts(self._settings.limits.failed_enrolments, timedelta(minutes=1), self._now),
        )
        plans = PlansService(self.engine, self._board, self._now, self._something_came, address)
        plans_pb2_grpc.add_PlansServicer_to_server(plans, self._server)
        tallies = TalliesService(self.engine, self._store, self._uploads)
        tallies_pb2_grpc.add_TalliesServicer_to_server(tallies, self._server)
        masking = MaskingService(self.engine, self._arrivals, self._masking_bell)
        masking_pb2_grpc.add_MaskingServicer_to_server(masking, self._server)
        renewal = RenewalService(self.engine, authority, self._now)
        enrolment_pb2_grpc.add_RenewalServicer_to_server(renewal, self._server)
        enrolment = EnrolmentService(self.engine, authority, attempts, self._now, address)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(enrolment, self._enrolment)

    def _serve_operators(self, authority: pki.Authority) -> None:
        sites = SitesService(self.engine, self._invitation(authority), self._now)
        operations_pb2_grpc.add_SitesServicer_to_server(sites, self._server)
        wake = self._coordinator.wake
        studies = StudiesService(self.engine, self._store, self._settings.spool, self._now, wake)
        operations_pb2_grpc.add_StudiesServicer_to_server(studies, self._server)
        runs = RunsService(
            self.engine,
            self._settings.runs,
            self._bell,
            self._now,
            store=self._store,
            spool=self._settings.spool,
            largest=self._settings.limits.upload_bytes,
            training=self._settings.training,
            sealer=self._sealer,
        )
        training_pb2_grpc.add_RunsServicer_to_server(runs, self._server)

    def _serve_trainer(self) -> None:
        parts: dict[str, Any] = {"now": self._now, "log": self._log, "metrics": self.metrics}
        plans = ReplayPlans(
            self.engine, self._store, self._board, self._uploads, self._sums, self._settings.spool, self._bell, **parts
        )
        service = TrainingService(self.engine, self._store, plans, self._bell, **parts)
        training_pb2_grpc.add_TrainingServicer_to_server(service, self._server)

    def start(self) -> None:
        """Serve, then announce the addresses."""
        self._coordinator.start()
        for thread in self._watchers:
            thread.start()
        self._housekeeping.start()
        self._web.start()
        self._enrolment.start()
        self._server.start()
        with write_atomically(self._settings.addresses_file) as file:
            file.write(json.dumps(asdict(self.addresses)).encode() + b"\n")
        if self._superlink:
            self._superlink.start()
        self._log.info("serving", federation=self._settings.federation, **asdict(self.addresses))
        if self._sealer is None:
            self._log.warning("not sealed", what="blobs and checkpoints lie in plain; set at_rest.key_file")

    def stop(self) -> None:
        """Take no new call, let open ones end within a few seconds, and release everything."""
        self._stopped.set()
        self._settings.addresses_file.unlink(missing_ok=True)
        self._health.enter_graceful_shutdown()
        self._board.stop()
        self._bell.stop()
        self._masking_bell.stop()
        if self._superlink:
            self._superlink.ask()
        for done in [self._server.stop(GRACE_S), self._enrolment.stop(GRACE_S)]:
            done.wait()
        if self._superlink:
            self._superlink.stop()
        self._coordinator.stop()
        for thread in self._watchers:
            if thread.is_alive():
                thread.join()
        self._housekeeping.stop()
        self._web.stop()
        self._traces.stop()
        self.engine.dispose()
        self._log.info("stopped")

    def _again(self, do: Callable[[], None], undone: str) -> None:
        """Do something every few seconds, whatever became of it before."""
        while not self._stopped.wait(SWEEP_S):
            try:
                do()
            except Exception as error:  # noqa: BLE001 - the database is away: nobody's next call is admitted either
                self._log.error(undone, exc_info=error)

    def _sweep(self) -> None:
        """End the open streams of those who were revoked, or whose certificate ended."""
        if callers := self._admission.streaming():
            self._admission.hang_up(self._gate.shut_out(callers))

    def _listen(self, authority: pki.Authority) -> Ports:
        settings = self._settings
        pages = make_app(self.engine, self._store, "", self.metrics.registry, self._now, training=self._training)
        public = [*settings.addresses, *([settings.enrolment_address] if settings.enrolment_address else [])]
        # The trainer reaches the aggregator where it listens, whatever the sites call it.
        hosts = [*(split_address(address)[0] for address in public), superlink.near(split_address(settings.listen)[0])]
        certificate = ServerCertificate(authority, hosts, self._now)
        known, unknown = (rpc.server_credentials(certificate, ask_client=ask) for ask in (True, False))

        def open_web(at: str) -> int:
            host, wanted = split_address(at)
            self._web = Web(pages, (host, wanted or 0))
            return self._web.port

        return bind_all(
            settings,
            listen=lambda at: self._server.add_secure_port(at, known),
            enrolment=lambda at: self._enrolment.add_secure_port(at, unknown),
            dashboard=open_web,
        )

    def _training(self) -> dict[str, bool] | None:
        return self._superlink.up if self._superlink else None

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

    def _counted(self, entered: Entered) -> None:
        self.metrics.uploads.inc()
        self._log.info("tally counted", **asdict(entered))
        self._something_came()

    def _something_came(self) -> None:
        self._coordinator.wake()
        self._bell.ring()

    def _failed(self, method: str, error: Exception, who: Identity | None) -> None:
        kind = type(error).__name__ if isinstance(error, CairnError) else "unexpected"
        self.metrics.errors.labels(kind).inc()
        ids = {who.role: who.name} if who else {}
        if isinstance(error, CairnError):
            self._log.info("refused", method=method, kind=kind, because=str(error), **ids)
        else:
            self._log.error("failed", method=method, exc_info=error, **ids)


def serve_until_told(settings: AggregatorSettings, log: Log) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigError."""
    told = told_to_stop()
    _open_many_files()
    try:
        aggregator = Aggregator(settings, log)
        aggregator.start()
    except OSError as error:
        raise ConfigError(f"the aggregator cannot start: {error.strerror or error} {error.filename or ''}") from error
    told.wait()
    aggregator.stop()


def _open_many_files() -> None:
    """Take all the open files that this process may have: each connection and each upload holds one, and 1,024 come."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
