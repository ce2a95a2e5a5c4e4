"""Logs as JSON lines and metrics for Prometheus. Neither ever holds a pixel value, a file name or a patient's name."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cairn import logs
from cairn.logs import Log, Stream


@dataclass(frozen=True)
class Metrics:
    """What the aggregator counts, all of it on one registry that is handed around.

    uploads        tallies entered into the ledger
    ledger_bytes   of all uploads in the ledger, also of former runs; the server sets its function
    merges         merged tallies made
    errors         calls that failed, by `kind`, the error's class
    sites          sites connected now; measuring.py sets the functions of this and of what follows, but the last ones
    sites_enrolled sites that are members
    stages_overdue open plans whose deadline has passed
    studies        by `state`
    disk_size, disk_free  bytes of the disk with the state folder
    backup         when the last one was made, seconds since the epoch; 0: never
    stage_seconds  from opening a stage to its merge, by `stage`
    runs           training runs, by `state`; the server sets its functions
    rounds         of training that counted
    round_seconds  that such a round took
    training_up    whether the SuperLink answers and the trainer is there, by `process`
    step_failures  steps of studies that failed and are tried again
    certificate_ends  seconds since the epoch, by `holder`: "ca", "site/north", "operator/ada"
    """

    registry: CollectorRegistry
    uploads: Counter
    ledger_bytes: Gauge
    merges: Counter
    errors: Counter
    sites: Gauge
    sites_enrolled: Gauge
    stages_overdue: Gauge
    studies: Gauge
    disk_size: Gauge
    disk_free: Gauge
    backup: Gauge
    stage_seconds: Histogram
    runs: Gauge
    rounds: Counter
    round_seconds: Histogram
    training_up: Gauge
    step_failures: Counter
    certificate_ends: Gauge


ALERTED = ("unexpected", "StorageFull")  # kinds of errors there from the start: an increase needs a first value


def make_metrics() -> Metrics:
    """Make the metrics on a registry of their own."""
    registry = CollectorRegistry()
    metrics = Metrics(
        registry=registry,
        uploads=Counter("cairn_uploads", "Tallies entered into the ledger.", registry=registry),
        ledger_bytes=Gauge("cairn_ledger_bytes", "Bytes of all uploads in the ledger.", registry=registry),
        merges=Counter("cairn_merges", "Merged tallies made.", registry=registry),
        errors=Counter("cairn_errors", "Calls that failed, by the error's kind.", ["kind"], registry=registry),
        sites=Gauge("cairn_sites_connected", "Sites connected now.", registry=registry),
        sites_enrolled=Gauge("cairn_sites_enrolled", "Sites that are members.", registry=registry),
        stages_overdue=Gauge("cairn_stages_overdue", "Open stages whose deadline has passed.", registry=registry),
        studies=Gauge("cairn_studies", "Studies, by state.", ["state"], registry=registry),
        disk_size=Gauge("cairn_disk_bytes", "Size of the disk with the state folder.", registry=registry),
        disk_free=Gauge("cairn_disk_free_bytes", "Free bytes of the disk with the state folder.", registry=registry),
        backup=Gauge("cairn_last_backup_timestamp_seconds", "Of the last backup; 0: never.", registry=registry),
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
        step_failures=Counter("cairn_step_failures", "Steps of studies that failed; tried again.", registry=registry),
        certificate_ends=Gauge(
            "cairn_certificate_ends_timestamp_seconds",
            "Ends, by holder.",
            ["holder"],
            registry=registry,
        ),
    )
    for kind in ALERTED:
        metrics.errors.labels(kind)
    return metrics


def make_log(stream: Stream) -> Log:
    """Make the aggregator's logger."""
    return logs.make_log(stream, quotes=True)
