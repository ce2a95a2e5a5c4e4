"""Launch one study on a running federation, show its progress, and keep what each stage cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aggregator.study.messages import spec_message
from cairn.errors import StudyError, Unreachable
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.study import StudySpec
from cairn.v1 import operations_pb2, operations_pb2_grpc
from deploy.federation import Federation
from deploy.processes import wait_for

STUDY = "tissue-map"
PATIENCE_S = 3600.0
STAGES = ("moments", "ranges", "counts", "recovery", "embedding", "codebook")


@dataclass(frozen=True)
class StageCost:
    """What one stage cost: seconds of the federation's time, and bytes that each site sent."""

    name: str
    seconds: float
    bytes_sent: Mapping[str, int]


@dataclass(frozen=True)
class Finished:
    """A study that has come to its end."""

    spec: StudySpec
    results: Mapping[str, Any]
    stages: tuple[StageCost, ...]


def run_study(
    running: Federation,
    bands: Sequence[str],
    states: Mapping[str, Sequence[str]],
    *,
    min_sites: int,
    top_k: int,
    console: Console,
) -> Finished:
    """Create the study and follow it to its end. Raises StudyError when it fails, CairnError when a program dies."""
    spec = StudySpec(
        name=STUDY,
        bands=tuple(bands),
        min_sites=min_sites,
        top_k=top_k,
        states={state: tuple(marks) for state, marks in states.items()},
        stage_deadline=timedelta(hours=1),
        auto_approve=True,
    )
    with operator_channel(running.profile) as channel:
        stub = operations_pb2_grpc.StudiesStub(channel)
        with errors_from_wire():
            begun = stub.ListStudies(operations_pb2.ListStudiesRequest(), timeout=30).studies
            if STUDY not in {study.name for study in begun}:  # else this was cut off, and goes on
                stub.CreateStudy(operations_pb2.CreateStudyRequest(spec=spec_message(spec)), timeout=30)
        with Progress(
            TextColumn("{task.description:<44}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), console=console,
        ) as bar:  # fmt: skip
            task = bar.add_task("waiting for the sites", total=len(STAGES))
            study = operations_pb2.ShowStudyResponse()

            def finished() -> bool:
                nonlocal study
                study = look(channel, study)
                bar.update(task, description=words(study), completed=stages_done(study))
                if study.summary.state == "failed":
                    raise StudyError(f"the study failed: {study.summary.message}")
                return study.summary.state == "done"

            wait_for("the end of the study", finished, running.programs, PATIENCE_S)
    return Finished(spec, json.loads(study.results_json), costs(study))


def look(channel: grpc.Channel, last: operations_pb2.ShowStudyResponse) -> operations_pb2.ShowStudyResponse:
    """Ask how the study is; the last answer while the aggregator cannot be reached, as when it restarts."""
    try:
        with errors_from_wire():
            request = operations_pb2.ShowStudyRequest(name=STUDY)
            return operations_pb2_grpc.StudiesStub(channel).ShowStudy(request, timeout=10)
    except Unreachable:
        return last


def stages_done(study: operations_pb2.ShowStudyResponse) -> float:
    """Count the stages that are over, with the share of sites that have answered the open one."""
    state = study.summary.state
    if state == "done":
        return len(STAGES)
    reached = {"recovering": "recovery", "awaiting_approval": "codebook"}.get(state, state)
    if reached not in STAGES:
        return 0
    answered = [site.state == "uploaded" for stage in study.stages if stage.stage == reached for site in stage.sites]
    return STAGES.index(reached) + (sum(answered) / len(answered) if answered else 0)


def words(study: operations_pb2.ShowStudyResponse) -> str:
    """Say in a few words what is going on."""
    state = study.summary.state or "starting"
    sites = [site for stage in study.stages if stage.stage == state for site in stage.sites]
    answered = sum(site.state == "uploaded" for site in sites)
    return f"{state}: {answered} of {len(sites)} sites have sent theirs" if sites else f"{state}: at the aggregator"


def costs(study: operations_pb2.ShowStudyResponse) -> tuple[StageCost, ...]:
    """Split the study's time into its stages, each from the end of the one before."""
    by_name = {stage.stage: stage for stage in study.stages}
    ends = {
        "moments": by_name["ranges"].opened,
        "ranges": by_name["counts"].opened,
        "counts": by_name["counts"].closed,
        "recovery": by_name["recovery"].closed,
        "embedding": by_name["codebook"].opened,
        "codebook": by_name["codebook"].closed,
    }
    before, found = seconds(by_name["moments"].opened), []
    for name in STAGES:
        end = seconds(ends[name])
        sent = {site.site: int(site.bytes) for site in by_name[name].sites} if name in by_name else {}
        found.append(StageCost(name, max(0.0, end - before), sent))
        before = end
    return tuple(found)


def seconds(moment: Timestamp) -> float:
    """Turn a moment into seconds since the epoch."""
    return float(moment.seconds + moment.nanos * 1e-9)
