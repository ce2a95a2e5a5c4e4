"""What the middle asks of SuperLink, and the shell app: Flower's insides behind its command line, pinned to 1.41.0.

The app bundle (FAB) that Flower wants to ship to the sites is an empty shell that every party builds by itself; it is
compared by digest and never unpacked, so that no code travels.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, exponential

from agent_trainer.rounds import guard
from cairn.errors import Unreachable

PINNED = "1.41.0"
PATIENCE_S = 20.0  # a call that fails for want of a connection is tried again for so long
APP = """\
[project]
name = "cairn"
version = "1"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "cairn"

[tool.flwr.app.components]
serverapp = "agent_trainer.rounds.server_app:app"
clientapp = "agent_trainer.rounds.client_app:app"
"""


def bundle() -> bytes:
    """Build the shell that Flower ships in place of an app: its name and nothing to run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, at a fixed date: the same bytes everywhere
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), APP)
        content = f"pyproject.toml,{hashlib.sha256(APP.encode()).hexdigest()},{8 * len(APP.encode())}"
        archive.writestr(zipfile.ZipInfo(".info/CONTENT"), content)
    return buffer.getvalue()


@dataclass(frozen=True)
class Node:
    """A site's SuperNode as SuperLink knows it."""

    node_id: int
    site: str
    key_pem: bytes
    online: bool


@dataclass(frozen=True)
class Link:
    """Where a SuperLink or SuperNode serves its executors.

    ca_pem  None: plain HTTP, for a SuperNode on the loopback interface
    """

    address: str
    secret: bytes
    ca_pem: bytes | None = None


class TokenHeader:
    """Shows the token that opens SuperLink's own APIs."""

    def __init__(self, secret: bytes) -> None:
        self._token = guard.token(secret)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header to a request."""
        context.request.headers[guard.HEADER] = self._token
        return call_next(context)


def retries() -> RetryInvoker:
    """Try again for a while what failed for want of a connection."""
    # Flower's own never gives up, and on 401 it interrupts the process.
    return RetryInvoker(
        lambda: exponential(base_delay=0.1, max_delay=2),
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=PATIENCE_S,
        should_giveup=lambda error: isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 502,
    )


@contextmanager
def reached(what: str) -> Iterator[None]:
    """Raise what goes wrong on the way as Unreachable."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        detail = error.response.text[:200]
        raise Unreachable(f"{what} answered {error.response.status_code}: {detail}") from error
    except httpx.TransportError as error:
        raise Unreachable(f"{what} did not answer ({type(error).__name__})") from error


class Control:
    """What the middle asks of SuperLink: which nodes there are, and runs. Close it after use."""

    def __init__(self, link: Link) -> None:
        self._client = ControlHttpClient.from_server_address(
            link.address,
            insecure=link.ca_pem is None,
            root_certificates=link.ca_pem,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), TokenHeader(link.secret)],
            retry_invoker=retries(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        """List the registered nodes."""
        with reached("SuperLink"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(node.node_id, node.name, node.public_key, node.status == "online")
            for node in found
            if not node.unregistered_at
        ]

    def register(self, keys: dict[str, bytes]) -> list[Node]:
        """Make the registered nodes those of `keys` (site → public key in PEM), and return them.

        A key that is gone or changed is unregistered: its node may not call any more.
        """
        for node in (before := self.nodes()):
            if keys.get(node.site) != node.key_pem:
                with reached("SuperLink"):
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        known = {(node.site, node.key_pem) for node in before}
        for site, key in keys.items():
            if (site, key) not in known:
                with reached("SuperLink"):
                    self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
        return before if known == set(keys.items()) else self.nodes()

    def start_run(self) -> int:
        """Start a Flower run of the shell app; its task waits for `ServerTask`."""
        content = bundle()
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        with reached("SuperLink"):
            return self._client.StartRun(StartRunRequest(fab=fab)).run_id

    def stop_runs(self) -> None:
        """Stop every run that has not ended: those of a trainer that is no more."""
        with reached("SuperLink"):
            runs = self._client.ListRuns(ListRunsRequest()).run_dict
            for run_id, run in runs.items():
                if run.status.status != Status.FINISHED:
                    self._client.StopRun(StopRunRequest(run_id=run_id))
