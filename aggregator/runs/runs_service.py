"""The service by which researchers start, watch, stop and resume runs, and take their weights."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.runs import first_weights, records
from aggregator.runs.bell import Bell
from aggregator.runs.checkpoints import open_journal, open_weights
from aggregator.settings import Training
from cairn.errors import TrainingError
from cairn.rpc import caller
from cairn.run import read_run, run_message
from cairn.sealing import Sealer
from cairn.v1 import training_pb2, training_pb2_grpc

CHUNK = 1 << 20
ROUNDS_BYTES = 4 << 20  # of rounds in one message; one of a thousand sites is far smaller
PAGE = 200  # rounds or lines read at once
FOLLOW_S = 3600.0  # between two looks that nothing but time has caused


class RunsService(training_pb2_grpc.RunsServicer):
    """cairn.v1.Runs, for operators.

    folder   of the checkpoints
    store    of the weights that runs begin with, on their way in `spool`
    largest  bytes of a file of weights
    bell     rung when a run has changed
    training  whether this aggregator has a trainer, and whether it is in this process
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        bell: Bell,
        now: Callable[[], datetime],
        *,
        store: BlobStore,
        spool: Path,
        largest: int,
        training: Training | None,
        sealer: Sealer | None = None,
    ) -> None:
        self._engine = engine
        self._store, self._spool, self._largest = store, spool, largest
        self._folder = folder
        self._bell = bell
        self._now = now
        self._training = training
        self._sealer = sealer

    def GiveWeights(  # noqa: N802 - the name in the proto
        self,
        request_iterator: Iterator[training_pb2.GiveWeightsRequest],
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.GiveWeightsResponse:
        """Take the weights that a run is to begin with."""
        self._check_trains()
        first_weights.take(request_iterator, self._store, self._spool, self._largest)
        return training_pb2.GiveWeightsResponse()

    def CreateRun(  # noqa: N802
        self, request: training_pb2.CreateRunRequest, context: grpc.ServicerContext
    ) -> training_pb2.CreateRunResponse:
        """Put a run into the queue."""
        self._check_trains()
        spec = read_run(request.spec)
        first_weights.check_here(spec, self._store)
        with database.writing(self._engine) as session:
            records.create(session, spec, _actor(context), self._now())
        self._bell.ring()
        return training_pb2.CreateRunResponse()

    def ListRuns(  # noqa: N802
        self,
        request: training_pb2.ListRunsRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.ListRunsResponse:
        """List all runs, the newest first."""
        with database.reading(self._engine) as session:
            rows = session.scalars(select(tables.Run).order_by(tables.Run.created_at.desc(), tables.Run.name))
            best = records.best_values(session)
            return training_pb2.ListRunsResponse(runs=[_summary(row, best.get(row.name)) for row in rows])

    def ShowRun(  # noqa: N802
        self,
        request: training_pb2.ShowRunRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> training_pb2.ShowRunResponse:
        """Show a run and its rounds."""
        with database.reading(self._engine) as session:
            run = records.find_run(session, request.name)
            answer = training_pb2.ShowRunResponse(
                summary=_summary(run, records.best_values(session, run.name).get(run.name)),
                spec=run_message(records.spec_of(run)),
            )
            after, size = request.after, 0
            while page := records.rounds(session, run.name, after, PAGE):
                for row in page:
                    shown = _round(row)
                    size += shown.ByteSize()
                    if size > ROUNDS_BYTES and answer.rounds:
                        answer.more = True
                        return answer
                    answer.rounds.append(shown)
                    after = row.round
        return answer

    def StopRun(  # noqa: N802
        self, request: training_pb2.StopRunRequest, context: grpc.ServicerContext
    ) -> training_pb2.StopRunResponse:
        """End a run after its round."""
        with database.writing(self._engine) as session:
            records.stop(session, request.name, _actor(context), self._now())
        self._bell.ring()
        return training_pb2.StopRunResponse()

    def ResumeRun(  # noqa: N802
        self, request: training_pb2.ResumeRunRequest, context: grpc.ServicerContext
    ) -> training_pb2.ResumeRunResponse:
        """Put a run that ended early back into the queue."""
        self._check_trains()
        with database.writing(self._engine) as session:
            records.resume(session, request.name, _actor(context), self._now())
        self._bell.ring()
        return training_pb2.ResumeRunResponse()

    def ReadLog(  # noqa: N802
        self, request: training_pb2.ReadLogRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.ReadLogResponse]:
        """Stream the log, with `follow` until the run ends."""
        context.add_callback(self._bell.ring)
        after = request.after
        while True:
            lines, over = self._lines(request.name, after)
            for row in lines:
                yield training_pb2.ReadLogResponse(line=row.line, at=_timestamp(row.at), text=row.text)
                after = row.line
            if lines:
                continue
            if over or not request.follow or self._bell.stopped or not context.is_active():
                return
            self._bell.wait_until(lambda: self._more(request.name, after), FOLLOW_S, context.is_active)  # noqa: B023 - waits here

    def FetchCheckpoint(  # noqa: N802
        self,
        request: training_pb2.FetchCheckpointRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[training_pb2.FetchCheckpointResponse]:
        """Stream the weights of a round; who takes them is in the audit."""
        self._check_kept_here()
        with database.reading(self._engine) as session:
            name = records.find_run(session, request.name).name
        with database.writing(self._engine) as session:
            database.audit(session, self._now(), _actor(context), "fetch-weights", name, round=request.round)
        with open_weights(self._folder, name, request.round, self._sealer) as file:
            while data := file.read(CHUNK):
                yield training_pb2.FetchCheckpointResponse(data=data)

    def FetchJournal(  # noqa: N802
        self,
        request: training_pb2.FetchJournalRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> Iterator[training_pb2.FetchJournalResponse]:
        """Stream a search's journal."""
        self._check_kept_here()
        with database.reading(self._engine) as session:
            name = records.find_run(session, request.name).name
        with open_journal(self._folder, name) as file:
            while data := file.read(CHUNK):
                yield training_pb2.FetchJournalResponse(data=data)

    def _check_trains(self) -> None:
        if self._training is None:
            raise TrainingError(
                "this aggregator has no trainer; its operator sets one up with [training] in aggregator.toml"
            )

    def _check_kept_here(self) -> None:
        if self._training is not None and not self._training.here:
            raise TrainingError(
                "weights and journals of runs are given out by the process of this aggregator that trains; ask that "
                "one, by a profile with its own address"
            )

    def _lines(self, name: str, after: int) -> tuple[Sequence[tables.RunLog], bool]:
        with database.reading(self._engine) as session:
            # Looked at before the lines: what had ended then has no more of them.
            over = records.find_run(session, name).state in records.ENDED
            query = select(tables.RunLog).filter_by(run=name).where(tables.RunLog.line > after)
            return session.scalars(query.order_by(tables.RunLog.line).limit(PAGE)).all(), over

    def _more(self, name: str, after: int) -> bool:
        lines, over = self._lines(name, after)
        return over or bool(lines)


def _summary(run: tables.Run, best: float | None) -> training_pb2.RunSummary:
    return training_pb2.RunSummary(
        name=run.name,
        algorithm=run.spec["algorithm"],
        state=run.state,
        round=run.round,
        rounds=run.spec["rounds"],
        created=_timestamp(run.created_at),
        message=run.message,
        best=best,
    )


def _round(row: tables.RunRound) -> training_pb2.Round:
    return training_pb2.Round(
        round=row.round,
        ended=_timestamp(row.ended_at),
        seconds=row.seconds,
        metrics=row.metrics,
        sites=[training_pb2.SiteRound(**site) for site in row.sites],
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _actor(context: grpc.ServicerContext) -> str:
    identity = caller(context).identity
    return f"{identity.role}/{identity.name}"
