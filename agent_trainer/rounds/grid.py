"""The middle's executor: the task of a Flower run, and the grid by which it reaches the sites; pinned to 1.41.0."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from agent_trainer.rounds.flower import Link, reached
from agent_trainer.rounds.tasks import AGAIN_S, Task, acquirer, pull
from cairn.errors import Unreachable

TASK_WAIT_S = 30.0
REPLY_WAIT_S = 600.0  # for a reply's parts to reach SuperLink


class QuickGrid(HttpGrid):
    """Flower's grid with bounded retries, prompt pulls, and calls that raise Unreachable."""

    def __init__(self, link: Link, task: Task) -> None:
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
                    replies.append(pull(client, tree, self.node, run_id, REPLY_WAIT_S))
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
    task = Task(link, "flwr-serverapp", _acquire(link, run_id))
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


def _acquire(link: Link, run_id: int) -> str:
    deadline = time.monotonic() + TASK_WAIT_S
    with reached("SuperLink"), acquirer(link) as client:
        while time.monotonic() < deadline:
            found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if found.token and found.task.run_id == run_id:
                return found.token
            time.sleep(AGAIN_S)  # another run's task, if any, is one that was stopped
    raise Unreachable(f"SuperLink did not offer the task of run {run_id}; restart the trainer")
