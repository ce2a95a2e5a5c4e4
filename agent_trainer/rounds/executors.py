"""A site's executor, which stays: it holds imports, learner and replay between rounds; pinned to Flower 1.41.0.

Stock Flower starts a process for every message, which imports flwr and torch for seconds and forgets what it held.
This one takes a task, pulls its message, calls the app that is installed, and pushes the reply.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

from agent_trainer.rounds.flower import Link, bundle, reached
from agent_trainer.rounds.tasks import Task, acquirer, pull
from cairn.errors import MaskingError, PlanError, PolicyError, TrainingError

SHOWN = (TrainingError, PlanError, PolicyError, MaskingError)  # errors whose sentence may leave a site
QUICK_POLL_S, IDLE_POLL_S = 0.1, 1.0  # between two questions for a task: soon after one, and after a minute without
MESSAGE_WAIT_S = 1800.0  # for a message's parts to reach a site over a slow line

App = Callable[[Message, Context], Message]


class SiteExecutor:
    """Runs the installed ClientApp on the messages that the site's SuperNode receives.

    incident  called with a number and the exception when the app raises; the aggregator is told the number and the
              exception's kind alone, because its text can hold what must not leave the site
    """

    def __init__(self, link: Link, app: App, incident: Callable[[str, Exception], None]) -> None:
        self._link, self._app, self._incident = link, app, incident
        self._shell = hashlib.sha256(bundle()).digest()

    def serve(self, stop: threading.Event) -> None:
        """Take and run tasks until `stop` is set. Raises Unreachable when the SuperNode stays away."""
        busy_at = time.monotonic()
        with reached("SuperNode"), acquirer(self._link) as client:
            while not stop.is_set():
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
                if found.token:
                    self._run(found.token)
                    busy_at = time.monotonic()
                else:
                    stop.wait(min(IDLE_POLL_S, QUICK_POLL_S + (time.monotonic() - busy_at) / 60))

    def _run(self, task_token: str) -> None:
        task = Task(self._link, "flwr-clientapp", task_token)
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


def _pull_input(client: RuntimeHttpClient) -> tuple[Message, Context, bytes]:
    """Pull a site's task: the message, its context and the bundle. Its parts may still be on their way to the site."""
    given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.message_object_trees:
        raise ObjectPullError("", "the message is gone")
    node = ProtoNode(node_id=given.context.node_id)
    message = pull(client, found.message_object_trees[0], node, given.run.run_id, MESSAGE_WAIT_S)
    return message, context_from_proto(given.context), given.fab.content
