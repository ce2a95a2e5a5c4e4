"""Executors that stay: one in each site's trainer, one in the middle's; pinned to Flower 1.41.0.

Stock Flower starts a process for every message, which imports flwr and torch for seconds and forgets what it held.
These take a task, pull its message, call the app that is installed, and push the reply.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import push_message

from agent_trainer.rounds.flower import Link, TokenHeader, bundle, reached, retries
from cairn.errors import MaskingError, PlanError, PolicyError, TrainingError, Unreachable

SHOWN = (TrainingError, PlanError, PolicyError, MaskingError)  # errors whose sentence may leave a site
SITE_POLL_S = 0.1
TASK_WAIT_S = 30.0
PULL_AGAIN_S = 0.05
MESSAGE_WAIT_S = 1800.0  # for a message's parts to reach a site over a slow line
REPLY_WAIT_S = 600.0  # for a reply's parts to reach SuperLink

App = Callable[[Message, Context], Message]


class _Task:
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


class SiteExecutor:
    """Runs the installed ClientApp on the messages that the site's SuperNode receives.

    incident  called with a number and the exception when the app raises; the aggregator is told the number and the
              exception's kind alone, because its text can hold what must not leave the site
    """

    def __init__(self, link: Link, app: App, incident: Callable[[str, Exception], None]) -> None:
        self._link, self._app, self._incident = link, app, incident
        self._shell = hashlib.sha256(bundle()).digest()

    def serve(self, stop: threading.Event, poll_s: float = SITE_POLL_S) -> None:
        """Take and run tasks until `stop` is set. Raises Unreachable when the SuperNode stays away."""
        with reached("SuperNode"), _acquirer(self._link) as acquirer:
            while not stop.is_set():
                found = acquirer.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
                if found.token:
                    self._run(found.token)
                else:
                    stop.wait(poll_s)

    def _run(self, task_token: str) -> None:
        task = _Task(self._link, "flwr-clientapp", task_token)
        context, completed = None, False
        try:
            message, context, fab = _pull_input(task.client)
            reply = self._reply(message, context, fab)
            completed = reply.has_content()
            if not task.lost.is_set():
                push_message(task.client, reply, context)
        except (httpx.HTTPStatusError, ObjectPullError) as error:
            # The run was stopped, or its round is over: nobody waits for this reply.
            self._incident("stopped", error)
        finally:
            task.finish(context, completed=completed)

    def _reply(self, message: Message, context: Context, fab: bytes) -> Message:
        if hashlib.sha256(fab).digest() != self._shell:
            text = "the run's app is not the one that this version of Cairn builds; update the older side"
            return Message(Error(ErrorCode.INVALID_FAB, text), reply_to=message)
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - the boundary of the site
            number = secrets.token_hex(4)
            self._incident(number, error)
            sentence = str(error) if isinstance(error, SHOWN) else f"the site's incident {number}"
            reason = f"{type(error).__name__}: {sentence}"[:300]
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class QuickGrid(HttpGrid):
    """Flower's grid with bounded retries, prompt pulls, and calls that raise Unreachable."""

    def __init__(self, link: Link, task: _Task) -> None:
        super().__init__(link.address, link.ca_pem is None, link.ca_pem, token="-")  # noqa: S106 - the task has the client
        self._client = task.client

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Send messages; return their identifiers, empty for one that was refused."""
        with reached("SuperLink"):
            return [found or "" for found in super().push_messages(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies that are there to some messages; one whose parts were lost is left out."""
        client, run_id = self._runtime_client, self.run.run_id
        with reached("SuperLink"):
            answer = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
            replies = []
            for tree in answer.message_object_trees:
                with suppress(ObjectPullError):  # parts that were lost
                    replies.append(_pull(client, tree, self.node, run_id, REPLY_WAIT_S))
        return replies

    def get_node_ids(self) -> list[int]:
        """List the nodes that are online."""
        with reached("SuperLink"):
            return list(super().get_node_ids())


@contextmanager
def server_task(link: Link, run_id: int) -> Iterator[QuickGrid]:
    """Take the task of a run that was just started; the block sends and receives, and the run ends with it.

    Raises Unreachable when SuperLink does not offer the task.
    """
    task = _Task(link, "flwr-serverapp", _acquire(link, run_id))
    grid = QuickGrid(link, task)
    context, completed = None, False
    try:
        with reached("SuperLink"):
            given = task.client.PullTaskInput(PullTaskInputRequest())
        context = context_from_proto(given.context)
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        grid.set_run(run_from_proto(given.run))
        yield grid
        completed = True
    finally:
        task.finish(context, completed=completed)


def _pull_input(client: RuntimeHttpClient) -> tuple[Message, Context, bytes]:
    """Pull a site's task: the message, its context and the bundle. Its parts may still be on their way to the site."""
    given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.message_object_trees:
        raise ObjectPullError("", "the message is gone")
    node = ProtoNode(node_id=given.context.node_id)
    message = _pull(client, found.message_object_trees[0], node, given.run.run_id, MESSAGE_WAIT_S)
    return message, context_from_proto(given.context), given.fab.content


def _pull(client: RuntimeHttpClient, tree: ObjectTree, node: ProtoNode, run_id: int, patience_s: float) -> Message:
    """Pull a message's parts and put them together. Raises ObjectPullError when they do not come."""
    parts = pull_objects(
        [part.object_id for part in iterate_object_tree(tree)],
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        max_time=patience_s,
        max_tries_per_object=None,
        initial_backoff=PULL_AGAIN_S,
        backoff_cap=1.0,
    )
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=tree.object_id)
    )
    message = inflate_object_from_contents(tree.object_id, parts)
    assert isinstance(message, Message)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _acquire(link: Link, run_id: int) -> str:
    deadline = time.monotonic() + TASK_WAIT_S
    with reached("SuperLink"), _acquirer(link) as acquirer:
        while time.monotonic() < deadline:
            found = acquirer.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if found.token and found.task.run_id == run_id:
                return found.token
            time.sleep(PULL_AGAIN_S)  # another run's task, if any, is one that was stopped
    raise Unreachable(f"SuperLink did not offer the task of run {run_id}; restart the trainer")


def _client(link: Link, component: str, signer: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        link.address,
        insecure=link.ca_pem is None,
        root_certificates=link.ca_pem,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), TokenHeader(link.secret), signer],
        retry_invoker=retries(),
    )


@contextmanager
def _acquirer(link: Link) -> Iterator[RuntimeHttpClient]:
    method = "/flwr.proto.Runtime/AcquireTask"
    client = _client(
        link, "SuperExec", SuperExecAuthHttpInterceptor(master_secret=link.secret, protected_methods={method})
    )
    try:
        yield client
    finally:
        client.close()
