"""A federation in one process: a grid whose nodes call an app, and a clock that moves when somebody waits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from agent_trainer.rounds.wire import EXAMPLES, answer, read_order

App = Callable[[Message], Message | None]


class MovingClock:
    """Moves only when somebody waits; `at` runs something when a moment is reached."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def at(self, moment: float, act: Callable[[], None]) -> None:
        self._due.append((moment, act))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for one in [one for one in self._due if one[0] <= self.now]:
            self._due.remove(one)
            one[1]()


@dataclass
class Site:
    """A node: its app is called once a message; None means that it never answers."""

    app: App
    online: bool = True
    since: str = "2026-01-01"
    after_s: float = 0.0
    seen: list[Message] = field(default_factory=list)


class Post:
    """Delivers to the sites and brings their replies, `after_s` later."""

    def __init__(self, sites: dict[int, Site], clock: MovingClock) -> None:
        self.sites, self._clock = sites, clock
        self._replies: dict[str, tuple[float, Message]] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=n, last_activated_at=site.since) for n, site in self.sites.items() if site.online]

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        names = []
        for message in messages:
            site = self.sites[message.metadata.dst_node_id]
            name = f"m{len(site.seen)}-{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = name
            site.seen.append(message)
            names.append(name)
            if (reply := site.app(message)) is not None:
                self._replies[name] = (self._clock.now + site.after_s, reply)
        return names

    def pull_messages(self, message_ids: Sequence[str]) -> list[Message]:
        there = [name for name in message_ids if name in self._replies and self._replies[name][0] <= self._clock.now]
        return [self._replies.pop(name)[1] for name in there]


def adds(amount: float, examples: float = 1.0, **metrics: float) -> App:
    """An app whose update is what came plus an amount."""

    def app(message: Message) -> Message:
        order, weights = read_order(message)
        numbers = {EXAMPLES: examples, **{name.replace("__", "/"): value for name, value in metrics.items()}}
        if not order.evaluate:
            numbers = {name: value for name, value in numbers.items() if not name.startswith("validation")}
        trains = message.metadata.message_type.startswith("train")
        return answer(numbers, (weights + np.float32(amount)) if trains else None, message)

    return app


def fails(code: int, reason: str) -> App:
    """An app in whose place Flower answers with an error."""
    return lambda message: Message(Error(code, reason), reply_to=message)


def silent(_: Message) -> None:
    """An app that never answers."""


def in_turn(*apps: App) -> App:
    """One app for the first message, the next for the second …; the last for all later ones."""
    left = list(apps)

    def app(message: Message) -> Message | None:
        now = left.pop(0) if len(left) > 1 else left[0]
        return now(message)

    return app
