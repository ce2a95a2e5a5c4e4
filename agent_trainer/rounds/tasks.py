"""What the executors of the sites and of the middle share: taking a task, keeping it alive, pulling messages.

Pinned to Flower 1.41.0.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from agent_trainer.rounds.flower import Link, TokenHeader, retries

AGAIN_S = 0.05  # between two questions for what is not there yet, at first


class Task:
    """A task that an executor has taken: its client, and a heartbeat until it is finished.

    lost  set when the daemon no longer knows the task
    """

    def __init__(self, link: Link, component: str, task_token: str) -> None:
        self.client = _client(link, component, RuntimeTokenHttpInterceptor(task_token))
        self.lost = threading.Event()
        self._heart = HeartbeatSender(self._beat)
        self._heart.start()

    def _beat(self) -> bool:
        # Flower's own interrupts the process when the task is gone.
        try:
            if not self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                self.lost.set()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                self.lost.set()
        except httpx.HTTPError:
            return False
        return True

    def finish(self, context: Context | None, *, completed: bool) -> None:
        """Tell how the task ended, if anyone still listens."""
        if self._heart.is_running:
            self._heart.stop()
        output = PushTaskOutputRequest(
            context=context_to_proto(context) if context else None,
            sub_status=SubStatus.COMPLETED if completed else SubStatus.FAILED,
        )
        try:
            self.client.PushTaskOutput(output)
        except httpx.HTTPError:
            self.lost.set()
        self.client.close()


def pull(client: RuntimeHttpClient, tree: ObjectTree, node: ProtoNode, run_id: int, patience_s: float) -> Message:
    """Pull a message's parts and put them together. Raises ObjectPullError when they do not come."""
    parts = pull_objects(
        [part.object_id for part in iterate_object_tree(tree)],
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        max_time=patience_s,
        max_tries_per_object=None,
        initial_backoff=AGAIN_S,
        backoff_cap=1.0,
    )
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=tree.object_id)
    )
    message = inflate_object_from_contents(tree.object_id, parts)
    assert isinstance(message, Message)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _client(link: Link, component: str, signer: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        link.address,
        insecure=link.ca_pem is None,
        root_certificates=link.ca_pem,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), TokenHeader(link.secret), signer],
        retry_invoker=retries(),
    )


@contextmanager
def acquirer(link: Link) -> Iterator[RuntimeHttpClient]:
    """Give a client that may take tasks."""
    method = "/flwr.proto.Runtime/AcquireTask"
    client = _client(
        link, "SuperExec", SuperExecAuthHttpInterceptor(master_secret=link.secret, protected_methods={method})
    )
    try:
        yield client
    finally:
        client.close()
