"""The middle's way to the aggregator: the service Training over mutual TLS."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from agent_trainer.rounds.replay_plans import read
from agent_trainer.rounds.reports import RoundReport
from cairn.errors import Unreachable
from cairn.rpc import errors_from_wire
from cairn.run import RunSpec, read_run
from cairn.tally import Tally
from cairn.v1 import training_pb2, training_pb2_grpc

CALL_S: Final = 30.0
FETCH_S: Final = 600.0
STEPS: Final = 6  # of a masked sum, for each of which the aggregator has patience
AWAY: Final = timedelta(minutes=10)  # for which the aggregator may be away before the trainer gives up and is restarted
ASK_EVERY_S: Final = 5.0
A = TypeVar("A")


class GrpcDesk:
    """Speaks for one run at a time; calls are tried again while the aggregator is away. See `run.Desk`.

    Raises Unreachable when it stays away, and what the aggregator raises.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._training = training_pb2_grpc.TrainingStub(channel)
        self._run = ""
        self._stop, self._asked = False, 0.0
        self.known = 0  # rounds of the claimed run that the aggregator knew of

    def claim(self) -> RunSpec | None:
        """Take the run to work on now; None when there is none."""
        answer = _call(lambda: self._training.ClaimRun(training_pb2.ClaimRunRequest(), timeout=CALL_S))
        if not answer.HasField("spec"):
            return None
        self._run, self.known = answer.spec.name, answer.round
        self._stop, self._asked = False, 0.0
        return read_run(answer.spec)

    def keys(self) -> dict[str, bytes]:
        """List the sites that may train, with the public keys of their SuperNodes in PEM."""
        answer = _call(lambda: self._training.ListNodes(training_pb2.ListNodesRequest(), timeout=CALL_S))
        return {node.site: node.supernode_key_pem for node in answer.nodes if node.supernode_key_pem}

    def publish(self, plan: bytes, open_for: timedelta) -> None:
        """Publish a round's replay plan to the sites."""
        request = training_pb2.PublishReplayRequest(plan=plan, open_for=_duration(open_for))
        _call(lambda: self._training.PublishReplay(request, timeout=CALL_S))

    def merge(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> Tally:
        """Close a replay plan and return the merged tally."""
        return self.sum(fingerprint, sites, patience)[0]

    def sum(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> tuple[Tally, list[str]]:
        """Close a plan of the run, masked or not; returns the merged tally and the sites in it."""
        request = training_pb2.MergeReplayRequest(fingerprint=fingerprint, sites=sites, patience=_duration(patience))
        limit = FETCH_S + STEPS * patience.total_seconds()
        parts = _call(lambda: list(self._training.MergeReplay(request, timeout=limit)))
        content, inside = b"".join(part.data for part in parts), [site for part in parts for site in part.sites]
        return read(content), inside

    def first_weights(self) -> bytes:
        """Fetch the weights that the run was given to begin with, one safetensors file."""
        request = training_pb2.FetchWeightsRequest(name=self._run)
        return _call(lambda: b"".join(part.data for part in self._training.FetchWeights(request, timeout=FETCH_S)))

    def log(self, text: str) -> None:
        """Note a line in the run's log."""
        self._report(training_pb2.ReportRunRequest(log=text))

    def report(self, report: RoundReport) -> None:
        """Note a round; again: in place of what was noted before."""
        self._report(training_pb2.ReportRunRequest(round=round_message(report)))

    def end(self, state: str, message: str) -> None:
        """Note the run's end: "done", "stopped" or "failed"."""
        self._report(training_pb2.ReportRunRequest(ended=state, message=message))

    def stopping(self) -> bool:
        """Tell whether a person has asked the run to stop; asks every few seconds."""
        if not self._stop and time.monotonic() - self._asked > ASK_EVERY_S:
            self._report(training_pb2.ReportRunRequest())
        return self._stop

    def _report(self, request: training_pb2.ReportRunRequest) -> None:
        request.name = self._run
        self._stop = _call(lambda: self._training.ReportRun(request, timeout=CALL_S)).stop or self._stop
        self._asked = time.monotonic()


def round_message(report: RoundReport) -> training_pb2.Round:
    """Write a report as its message."""
    ended = Timestamp()
    ended.FromDatetime(datetime.now(UTC))
    return training_pb2.Round(
        round=report.number,
        ended=ended,
        seconds=report.seconds,
        sites=[
            training_pb2.SiteRound(
                site=site.site, state=site.state, reason=site.reason, metrics=dict(site.metrics), bytes=site.bytes
            )
            for site in report.sites
        ],
        metrics=dict(report.metrics),
    )


def _call(call: Callable[[], A]) -> A:
    retrying = Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=stop_after_delay(AWAY),
        reraise=True,
    )

    def once() -> A:
        with errors_from_wire():
            return call()

    return retrying(once)


def _duration(span: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(span)
    return message
