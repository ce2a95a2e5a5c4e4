"""The service by which the trainer's process takes runs, publishes and merges replay plans, and reports."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.intake.tallies_service import plan_name
from aggregator.members.sites_service import CONNECTED_WITHIN
from aggregator.runs import records
from aggregator.runs.bell import Bell
from aggregator.runs.replay import ReplayPlans
from aggregator.telemetry import Metrics
from cairn.errors import StudyError
from cairn.run import run_message
from cairn.v1 import training_pb2, training_pb2_grpc

CHUNK = 1 << 20
LONGEST_PATIENCE = timedelta(days=1)


class TrainingService(training_pb2_grpc.TrainingServicer):
    """cairn.v1.Training, for the aggregator's own trainer.

    bell  rung when a run has changed, for the calls that follow its log
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        plans: ReplayPlans,
        bell: Bell,
        *,
        now: Callable[[], datetime],
        log: structlog.typing.FilteringBoundLogger,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._store = store
        self._plans = plans
        self._bell = bell
        self._now = now
        self._log = log
        self._metrics = metrics

    def ClaimRun(  # noqa: N802 - the name in the proto
        self,
        request: training_pb2.ClaimRunRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.ClaimRunResponse:
        """Give the run to work on now."""
        if not self._anything():
            return training_pb2.ClaimRunResponse()
        with database.writing(self._engine) as session:
            run = records.claim(session, self._now())
        self._bell.ring()
        if run is None:
            return training_pb2.ClaimRunResponse()
        self._log.info("run claimed", run=run.name, round=run.round)
        return training_pb2.ClaimRunResponse(spec=run_message(records.spec_of(run)), round=run.round)

    def FetchWeights(  # noqa: N802
        self,
        request: training_pb2.FetchWeightsRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> Iterator[training_pb2.FetchWeightsResponse]:
        """Stream the weights that a run was given to begin with."""
        with database.reading(self._engine) as session:
            digest = records.spec_of(records.find_run(session, request.name)).first_weights
        if not digest:
            raise StudyError(f"the run {request.name} was given no weights to begin with")
        with self._store.open(digest) as file:
            while data := file.read(CHUNK):
                yield training_pb2.FetchWeightsResponse(data=data)

    def ListNodes(  # noqa: N802
        self,
        request: training_pb2.ListNodesRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.ListNodesResponse:
        """Name the sites that can train."""
        lately = self._now() - CONNECTED_WITHIN
        with database.reading(self._engine) as session:
            query = select(tables.Member).filter_by(role="site", state="enrolled").order_by(tables.Member.name)
            members = session.scalars(query.where(tables.Member.supernode_key.is_not(None)))
            return training_pb2.ListNodesResponse(
                nodes=[
                    training_pb2.TrainingNode(
                        site=member.name,
                        supernode_key_pem=(member.supernode_key or "").encode(),
                        connected=member.last_seen is not None and member.last_seen > lately,
                    )
                    for member in members
                ]
            )

    def PublishReplay(  # noqa: N802
        self,
        request: training_pb2.PublishReplayRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.PublishReplayResponse:
        """Publish a plan of a round."""
        self._plans.publish(request.plan, _span(request.open_for))
        return training_pb2.PublishReplayResponse()

    def MergeReplay(  # noqa: N802
        self, request: training_pb2.MergeReplayRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.MergeReplayResponse]:
        """Close and merge a plan of a run, and stream the merged tally."""
        context.add_callback(self._bell.ring)
        patience = min(_span(request.patience), LONGEST_PATIENCE)
        plan = plan_name(request.fingerprint)
        digest = self._plans.merge(plan, request.sites, patience, context.is_active)
        yield training_pb2.MergeReplayResponse(sites=self._plans.merged_sites(plan))
        with self._store.open(digest) as file:
            while data := file.read(CHUNK):
                yield training_pb2.MergeReplayResponse(data=data)

    def ReportRun(  # noqa: N802
        self,
        request: training_pb2.ReportRunRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.ReportRunResponse:
        """Note a round, a line of the log, or the run's end."""
        with database.writing(self._engine) as session:
            reported = records.report(session, request, self._now())
        self._bell.ring()
        if reported.seconds is not None:
            self._metrics.rounds.inc()
            self._metrics.round_seconds.observe(reported.seconds)
            self._log.info("round counts", run=request.name, round=request.round.round, s=reported.seconds)
        if request.ended:
            self._log.info("run ended", run=request.name, to=request.ended, why=request.message)
        return training_pb2.ReportRunResponse(stop=reported.stop)

    def _anything(self) -> bool:
        # The trainer asks every second; a writer's turn is not taken for nothing.
        states = ("queued", *records.AT_WORK)
        with database.reading(self._engine) as session:
            return session.scalar(select(tables.Run.name).where(tables.Run.state.in_(states)).limit(1)) is not None


def _span(duration: Duration) -> timedelta:
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
