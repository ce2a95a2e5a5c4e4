"""Traces for OpenTelemetry, when a setting names a collector; without one nothing is imported and nothing kept.

All that is done for a plan is one trace, at every party: its id is the beginning of the plan's fingerprint, so that no
context has to travel between them, and a log line's `plan` leads to its trace. A site's spans go to the site's own
collector. Spans hold names of studies, stages, sites, runs, methods and kinds of errors, and the numbers of windows and
rounds; no counts, no messages.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field

from cairn import __version__
from cairn.errors import ConfigError

Log = structlog.typing.FilteringBoundLogger
TRACE, SPAN = 16, 8  # bytes of their ids
STOP_MS: Final = 2000
SAID_EVERY_S: Final = 60.0  # at most: without a collector every batch of spans would say so
SAID: Final = 300  # characters of what OpenTelemetry says that the log quotes


class Telemetry(BaseModel):
    """Where traces go; nowhere when not set.

    otlp  http://HOST:PORT of an OpenTelemetry collector that takes OTLP over gRPC; https:// for TLS
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    otlp: str | None = Field(None, pattern=r"^https?://[^\s/]+:\d{1,5}/?$")


@dataclass(frozen=True)
class Traces:
    """Makes spans; without a provider it makes none."""

    provider: Any = None

    @contextmanager
    def span(self, name: str, of: bytes = b"", /, **ids: str | int) -> Iterator[None]:
        """Note how long the block took and whether it failed, as a part of the trace of a plan.

        of  32 bytes, the fingerprint of a plan; empty for what belongs to none: a trace of its own
        """
        if self.provider is None:
            yield
            return
        from opentelemetry import trace  # noqa: PLC0415 - only where traces are wanted

        context = None
        if len(of) >= TRACE + SPAN:
            found, above = int.from_bytes(of[:TRACE]), int.from_bytes(of[TRACE : TRACE + SPAN])
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            parent = trace.SpanContext(found, above, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        tracer = self.provider.get_tracer("cairn", __version__)
        span = tracer.start_span(name, context, attributes={f"cairn.{key}": value for key, value in ids.items()})
        try:
            yield
        except Exception as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)  # what it says may be for this party alone
            raise
        finally:
            span.end()

    def stop(self) -> None:
        """Send what is left."""
        if self.provider is not None:
            self.provider.force_flush(STOP_MS)
            self.provider.shutdown()


class _IntoLog(logging.Handler):
    """Lets what OpenTelemetry says of itself, such as that no collector answers, be a line of the service's log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._last = -SAID_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        if record.created - self._last < SAID_EVERY_S:
            return
        self._last = record.created
        self._log.warning("traces", said=record.getMessage()[:SAID], source=record.name)


def open_traces(settings: Telemetry, service: str, name: str, log: Log) -> Traces:
    """Begin to send traces where the settings say.

    service  such as cairn-edge
    name     of the party
    log      for what OpenTelemetry says of itself
    Raises ConfigError when OpenTelemetry is not installed.
    """
    if settings.otlp is None:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "telemetry.otlp is set and OpenTelemetry is not installed; install cairn-federation[otel], or take it out"
        ) from error
    itself = logging.getLogger("opentelemetry")
    itself.handlers, itself.propagate = [_IntoLog(log)], False
    about = {"service.name": service, "service.instance.id": name, "service.version": __version__}
    provider = TracerProvider(resource=Resource(about))
    exporter = OTLPSpanExporter(settings.otlp, insecure=settings.otlp.startswith("http://"), timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=2000))
    return Traces(provider)
