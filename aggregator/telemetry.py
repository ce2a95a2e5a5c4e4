"""Logs as JSON lines and metrics for Prometheus. Neither ever holds a pixel value, a file name or a patient's name."""

from dataclasses import dataclass
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True)
class Metrics:
    """What the aggregator counts, all of it on one registry that is handed around.

    uploads        tallies entered into the ledger
    ledger_bytes   of all uploads in the ledger, also of former runs; the server sets its function
    merges         merged tallies made
    errors         calls that failed, by `kind`, the error's class
    sites          sites connected now; the server sets its function
    stage_seconds  from opening a stage to its merge, by `stage`
    runs           training runs, by `state`; the server sets its functions
    rounds         of training that counted
    round_seconds  that such a round took
    training_up    whether the SuperLink answers and the trainer is there, by `process`
    """

    registry: CollectorRegistry
    uploads: Counter
    ledger_bytes: Gauge
    merges: Counter
    errors: Counter
    sites: Gauge
    stage_seconds: Histogram
    runs: Gauge
    rounds: Counter
    round_seconds: Histogram
    training_up: Gauge


def make_metrics() -> Metrics:
    """Make the metrics on a registry of their own."""
    registry = CollectorRegistry()
    return Metrics(
        registry=registry,
        uploads=Counter("cairn_uploads", "Tallies entered into the ledger.", registry=registry),
        ledger_bytes=Gauge("cairn_ledger_bytes", "Bytes of all uploads in the ledger.", registry=registry),
        merges=Counter("cairn_merges", "Merged tallies made.", registry=registry),
        errors=Counter("cairn_errors", "Calls that failed, by the error's kind.", ["kind"], registry=registry),
        sites=Gauge("cairn_sites_connected", "Sites connected now.", registry=registry),
        stage_seconds=Histogram(
            "cairn_stage_seconds",
            "Seconds from opening a stage to its merge.",
            ["stage"],
            buckets=(1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600),
            registry=registry,
        ),
        runs=Gauge("cairn_runs", "Training runs, by state.", ["state"], registry=registry),
        rounds=Counter("cairn_rounds", "Rounds of training that counted.", registry=registry),
        round_seconds=Histogram(
            "cairn_round_seconds",
            "Seconds that a round of training took.",
            buckets=(1, 2, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600),
            registry=registry,
        ),
        training_up=Gauge(
            "cairn_training_up", "Whether a process of training is there.", ["process"], registry=registry
        ),
    )


def make_log(stream: TextIO) -> structlog.typing.FilteringBoundLogger:
    """Make a logger that writes one JSON object a line: time in UTC, level, event, and what the caller binds."""
    log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            # No local variables: they could hold tables or tokens, and where it happened is enough.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
            ),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return log
