"""Traces, as a real collector on the wire gets them; nothing when none is named."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import StringIO

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from pydantic import ValidationError

from cairn.errors import ConfigError, Revoked
from cairn.logs import make_log
from cairn.tracing import Telemetry, Traces, open_traces

PLAN = bytes(range(1, 33))


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as any OpenTelemetry collector does."""

    address: str = ""
    came: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request, context):
        with self.lock:
            self.came.extend(
                ({one.key: one.value.string_value for one in resource.resource.attributes}, span)
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None).wait()


def test_what_two_parties_do_for_a_plan_is_one_trace(collector: Collector) -> None:
    for service, name in (("cairn-edge", "north"), ("cairn-aggregator", "tissue")):
        traces = open_traces(Telemetry(otlp=collector.address), service, name, make_log(StringIO(), quotes=False))
        with traces.span("merge", PLAN, study="map", window=0, plan=PLAN.hex()):
            pass
        with pytest.raises(Revoked), traces.span("call", b"", site="north"):
            raise Revoked("the site north was revoked: Jane Doe")
        traces.stop()
    merges = [span for _, span in collector.came if span.name == "merge"]
    assert {span.trace_id for span in merges} == {PLAN[:16]}
    assert {about["service.instance.id"] for about, _ in collector.came} == {"north", "tissue"}
    calls = [span for _, span in collector.came if span.name == "call"]
    assert all(span.trace_id != PLAN[:16] for span in calls)
    assert {span.status.message for span in calls} == {"Revoked"}
    assert b"Jane" not in b"".join(span.SerializeToString() for _, span in collector.came)
    names = {one.key for one in merges[0].attributes}
    assert names == {"cairn.study", "cairn.window", "cairn.plan"}


def test_a_collector_that_is_away_is_a_line_of_the_services_log(capfd: pytest.CaptureFixture[str]) -> None:
    written = StringIO()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    traces = open_traces(
        Telemetry(otlp=f"http://127.0.0.1:{port}"), "cairn-edge", "north", make_log(written, quotes=False)
    )
    with traces.span("count", PLAN):
        pass
    traces.stop()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("traces", "warning")
    ]  # said once, not for each batch
    assert "UNAVAILABLE" in lines[0]["said"]
    assert "UNAVAILABLE" not in capfd.readouterr().err


def test_without_a_collector_a_span_is_nothing_and_passes_on_what_is_raised() -> None:
    assert open_traces(Telemetry(), "cairn-edge", "north", make_log(StringIO(), quotes=False)) == Traces()
    with pytest.raises(ValueError, match="as it was"), Traces().span("count", PLAN, plan="x"):
        raise ValueError("as it was")


def test_a_collector_without_the_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"cairn-federation\[otel\]"):
        open_traces(Telemetry(otlp="http://127.0.0.1:4317"), "cairn-edge", "north", make_log(StringIO(), quotes=False))


@pytest.mark.parametrize("address", ["collector", "http://collector", "grpc://collector:4317", "http://a b:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError):
        Telemetry(otlp=address)
