"""The site's own gRPC service, on this machine only: status, health, reflection."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cairn import __version__
from cairn.errors import ConfigError, Unreachable
from cairn.files import write_atomically
from cairn.health import ADDRESSES
from cairn.rpc import errors_from_wire, server
from cairn.v1 import edge_pb2, edge_pb2_grpc
from edge_node.status import Snapshot, TrainingNote

EDGE = "cairn.v1.Edge"


class Edge(edge_pb2_grpc.EdgeServicer):
    """Answers with what the board says.

    outbox  number of sealed tallies that wait to be sent
    """

    def __init__(self, site: str, snapshot: Callable[[], Snapshot], outbox: Callable[[], int], page: str) -> None:
        self._site = site
        self._snapshot = snapshot
        self._outbox = outbox
        self._page = page

    def Status(self, request: edge_pb2.StatusRequest, context: grpc.ServicerContext) -> edge_pb2.StatusResponse:  # noqa: ARG002, N802
        """Tell how it stands."""
        now = self._snapshot()
        answer = edge_pb2.StatusResponse(
            site=self._site,
            version=__version__,
            connected=now.connection == "connected",
            outbox=self._outbox(),
            bytes_sent=now.bytes_sent,
            problems=[problem.detail for problem in now.problems],
            page=self._page,
        )
        if now.connection in {"away", "refused"} and now.said:
            answer.problems.insert(0, now.said)
        if now.work:
            answer.working_on = str(now.work)
            answer.pixels_done, answer.pixels_total = max(0, now.work.pixels_done), now.work.pixels_total
            answer.files_done, answer.files_total = now.work.files_done, now.work.files_total
        if now.training.state != "off":
            answer.training.CopyFrom(_training(now.training))
        return answer


def _training(note: TrainingNote) -> edge_pb2.TrainingStatus:
    status = edge_pb2.TrainingStatus(state=note.state, sentence=note.said)
    if note.now:
        status.run, status.round, status.busy = note.now.run, note.now.round, note.now.busy
        status.metrics.update(note.now.metrics)
    return status


def serve(edge: Edge, listen: str) -> tuple[grpc.Server, str]:
    """Start the service; returns it and the address that it took. Raises ConfigError when that is in use."""
    running = server([], 4)
    edge_pb2_grpc.add_EdgeServicer_to_server(edge, running)
    state = health.HealthServicer()
    for name in ("", EDGE):
        state.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, running)
    reflection.enable_server_reflection((EDGE, health.SERVICE_NAME, reflection.SERVICE_NAME), running)
    try:
        port = running.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigError(f"{listen} is in use; set local.listen to another port, or to 127.0.0.1:0") from error
    running.start()
    return running, f"{listen.rpartition(':')[0]}:{port}"


def announce(state_dir: Path, **addresses: str) -> None:
    """Write where the service and the page are to addresses.json."""
    with write_atomically(state_dir / ADDRESSES) as file:
        file.write(json.dumps(addresses).encode())


def ask(state_dir: Path) -> edge_pb2.StatusResponse:
    """Ask the service of a state folder for its status. Raises Unreachable when none runs."""
    try:
        address = json.loads((state_dir / ADDRESSES).read_bytes())["grpc"]
    except (OSError, ValueError, KeyError) as error:
        raise Unreachable("no edge node runs here; start it with `cairn edge run --config site.toml`") from error
    try:
        with grpc.insecure_channel(address) as channel, errors_from_wire():
            return edge_pb2_grpc.EdgeStub(channel).Status(edge_pb2.StatusRequest(), timeout=5)
    except Unreachable as error:
        raise Unreachable(
            "the edge node does not answer; start it with `cairn edge run --config site.toml`, or see its log"
        ) from error
