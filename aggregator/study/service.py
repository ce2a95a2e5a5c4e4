"""The service by which researchers create, watch, approve, extend and export studies."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.study import records, steps, studies
from aggregator.study.messages import read_spec, spec_message
from cairn import codec
from cairn.errors import StudyError
from cairn.rpc import caller
from cairn.study import StudySpec
from cairn.v1 import operations_pb2, operations_pb2_grpc

CHUNK = 1 << 20


class StudiesService(operations_pb2_grpc.StudiesServicer):
    """cairn.v1.Studies, for operators.

    spool    folder for files on their way into the store
    changed  called after a study was created, approved or extended
    """

    def __init__(
        self, engine: Engine, store: BlobStore, spool: Path, now: Callable[[], datetime], changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._store = store
        self._spool = spool
        self._now = now
        self._changed = changed

    def CreateStudy(  # noqa: N802 - the name in the proto
        self, request: operations_pb2.CreateStudyRequest, context: grpc.ServicerContext
    ) -> operations_pb2.CreateStudyResponse:
        """Publish the first plan of a new study."""
        spec, now = read_spec(request.spec), self._now()
        plan = studies.as_published(spec, studies.moments_plan(spec))
        with database.writing(self._engine) as session:
            records.check_name(session, spec.name)
            session.add(
                tables.Study(
                    name=spec.name,
                    spec=spec.model_dump(mode="json"),
                    state=studies.FIRST,
                    window=0,
                    created_at=now,
                    message="",
                    results={},
                )
            )
            session.flush()
            records.publish(session, plan, now + spec.stage_deadline, now)
            database.audit(session, now, _actor(context), "create", spec.name)
        self._changed()
        return operations_pb2.CreateStudyResponse()

    def ListStudies(  # noqa: N802
        self,
        request: operations_pb2.ListStudiesRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> operations_pb2.ListStudiesResponse:
        """List all studies, the newest first."""
        with database.reading(self._engine) as session:
            rows = session.scalars(select(tables.Study).order_by(tables.Study.created_at.desc(), tables.Study.name))
            return operations_pb2.ListStudiesResponse(studies=[_summary(row) for row in rows])

    def ShowStudy(  # noqa: N802
        self,
        request: operations_pb2.ShowStudyRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> operations_pb2.ShowStudyResponse:
        """Show one study: its stages at each site, and its results so far."""
        with database.reading(self._engine) as session:
            study = records.find_study(session, request.name)
            plans = session.scalars(
                select(tables.Plan).filter_by(study=study.name).order_by(tables.Plan.opened_at, tables.Plan.window)
            ).all()
            return operations_pb2.ShowStudyResponse(
                summary=_summary(study),
                spec=spec_message(StudySpec.model_validate(study.spec)),
                stages=[_stage(session, plan) for plan in plans],
                results_json=json.dumps(study.results),
            )

    def ApproveStudy(  # noqa: N802
        self, request: operations_pb2.ApproveStudyRequest, context: grpc.ServicerContext
    ) -> operations_pb2.ApproveStudyResponse:
        """Send the codebook out, with the states as the researcher named them."""
        with database.reading(self._engine) as session:
            study = records.find_study(session, request.name)
            studies.following(studies.as_state(study.state), "approved")
            recovery = records.find_plan(session, study.name, "recovery", study.window)
        with self._store.open(study.results["heavy_hitters_digest"]) as file:
            table = file.read()
        plan = codec.decode_plan(recovery.published)
        outcome = steps.approve(plan, study.results, table, dict(request.cluster_states))
        self._advance(study, outcome, _actor(context))
        return operations_pb2.ApproveStudyResponse()

    def ExtendStudy(  # noqa: N802
        self, request: operations_pb2.ExtendStudyRequest, context: grpc.ServicerContext
    ) -> operations_pb2.ExtendStudyResponse:
        """Open the next window, for files that are new at the sites."""
        with database.reading(self._engine) as session:
            study = records.find_study(session, request.name)
            studies.following(studies.as_state(study.state), "extended")
            counts = records.find_plan(session, study.name, "counts", study.window)
        plan = studies.next_window(codec.decode_plan(counts.published))
        self._advance(study, steps.Outcome("extended", plan, {}), _actor(context))
        return operations_pb2.ExtendStudyResponse()

    def ExportStudy(  # noqa: N802
        self,
        request: operations_pb2.ExportStudyRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[operations_pb2.ExportStudyResponse]:
        """Stream the heavy hitters' table; who takes it is in the audit."""
        with database.reading(self._engine) as session:
            study = records.find_study(session, request.name)
        digest = study.results.get("heavy_hitters_digest")
        if digest is None:
            raise StudyError(f"{study.name} is in the state {study.state} and has no map yet; export it after that")
        with database.writing(self._engine) as session:
            database.audit(session, self._now(), _actor(context), "export", study.name, digest=digest)
        with self._store.open(digest) as file:
            while data := file.read(CHUNK):
                yield operations_pb2.ExportStudyResponse(data=data)

    def _advance(self, study: tables.Study, outcome: steps.Outcome, actor: str) -> None:
        table = records.keep_table(self._store, self._spool, outcome)
        with database.writing(self._engine) as session:
            if not records.advance(session, study, outcome, table=table, actor=actor, now=self._now()):
                raise StudyError(f"{study.name} has gone on meanwhile; look at it again before you decide")
        self._changed()


def _summary(study: tables.Study) -> operations_pb2.StudySummary:
    return operations_pb2.StudySummary(
        name=study.name,
        state=study.state,
        window=study.window,
        created=_timestamp(study.created_at),
        message=study.message,
    )


def _stage(session: Session, plan: tables.Plan) -> operations_pb2.StageProgress:
    answers = {row.site: row for row in session.scalars(select(tables.Answer).filter_by(plan=plan.fingerprint))}
    uploads = {row.site: row for row in session.scalars(select(tables.Upload).filter_by(plan=plan.fingerprint))}
    sites = [
        _site(site.name, answers.get(site.name), uploads.get(site.name))
        for site in records.participants(session, plan.fingerprint)
        if site.enrolled or site.name in uploads or site.name in answers
    ]
    stage = operations_pb2.StageProgress(
        stage=plan.stage,
        window=plan.window,
        state=plan.state,
        fingerprint=bytes.fromhex(plan.fingerprint),
        opened=_timestamp(plan.opened_at),
        sites=sites,
    )
    if plan.closed_at is not None:
        stage.closed.FromDatetime(plan.closed_at)
    return stage


def _site(name: str, answer: tables.Answer | None, upload: tables.Upload | None) -> operations_pb2.SiteProgress:
    if upload is not None:
        at = _timestamp(upload.committed_at)
        return operations_pb2.SiteProgress(site=name, state="uploaded", bytes=upload.size, at=at)
    if answer is not None:
        state = "accepted" if answer.accepted else "refused"
        return operations_pb2.SiteProgress(site=name, state=state, reason=answer.reason, at=_timestamp(answer.at))
    return operations_pb2.SiteProgress(site=name, state="waiting")


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _actor(context: grpc.ServicerContext) -> str:
    identity = caller(context).identity
    return f"{identity.role}/{identity.name}"
