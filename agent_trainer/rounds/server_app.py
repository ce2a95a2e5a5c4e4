"""A run's rounds at the middle: send the weights, wait with patience, judge what comes, aggregate.

Flower's own loop (`Strategy.start`) polls every 3 s, hangs when a reply is lost and stops when too few sites are there.
This one goes round the same hooks of its strategies. A lost site costs its update, never the run.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from agent_trainer.rounds.layout import Vector
from agent_trainer.rounds.wire import EXAMPLES
from cairn.errors import TooFewSites

LOST = {  # a message that nobody works on any more: it is sent once again
    ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}
LOOK_S = 1.0  # between two looks at which nodes are online
POLL_S = (0.05, 0.5)  # between two questions for replies: at first, and in a long round
LATE_S = 5.0  # for which a message outlives its round's deadline, so that a reply on its way still arrives


class Post(Protocol):
    """What a round needs of Flower's grid."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """List the nodes that are online."""

    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]:
        """Send; returns an identifier each, "" for one that was refused."""

    def pull_messages(self, message_ids: Sequence[str]) -> Sequence[Message]:
        """Take the replies that are there."""


class Clock(Protocol):
    """What a round needs of time; the module `time` has it."""

    def monotonic(self) -> float:
        """Seconds from some moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Outcome:
    """What became of one site in a round.

    state    "trained", "late", "failed", "refused" or "absent"
    reason   one sentence when not trained
    update   float32[n], of a site that trained
    message  its answer
    """

    site: str
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    update: Vector | None = None
    message: Message | None = None

    @property
    def examples(self) -> float:
        """The site's weight in the aggregate."""
        return self.metrics.get(EXAMPLES, 0.0)


Judge = Callable[[str, Message], Outcome]
"""(site, reply without error) -> trained or refused."""


@dataclass
class _Letter:
    """What is known of one addressed site.

    since  when its SuperNode came online, as Flower writes it; another value tells that it was restarted
    here   whether its SuperNode was online at the last look
    lost   whether Flower says that nobody works on it any more
    again  whether it was written to twice
    """

    node_id: int
    since: str
    here: bool = True
    lost: bool = False
    again: bool = False
    outcome: Outcome | None = None


class Attempt:
    """One attempt at a round, until every site has answered or the deadline has passed.

    content  for every site; kind: the message's type; number: the round
    sites    node id → site, of all that are registered
    wanted   sites that must train; while fewer can, the attempt waits for more to come online
    """

    def __init__(
        self,
        post: Post,
        content: RecordDict,
        kind: str,
        number: int,
        sites: Mapping[int, str],
        wanted: int,
        deadline_s: float,
        judge: Judge,
        clock: Clock = time,
    ) -> None:
        self._post, self._content, self._kind, self._number = post, content, kind, number
        self._sites, self._wanted, self._judge = sites, wanted, judge
        self._deadline_s, self._clock = deadline_s, clock
        self._began = clock.monotonic()
        self._letters: dict[int, _Letter] = {}
        self._identifiers: dict[str, int] = {}

    def play(self, stopped: Callable[[], bool]) -> list[Outcome]:
        """Send, wait and judge; returns an outcome for every site. Raises Unreachable when SuperLink stays away.

        stopped  whether a person has asked the run to stop: what sites work on is waited for, other sites are not
        """
        looked = -LOOK_S
        while (elapsed := self._clock.monotonic() - self._began) < self._deadline_s:
            if elapsed - looked >= LOOK_S:
                looked = elapsed
                self._look({node.node_id: node for node in self._post.get_nodes()}, elapsed)
            self._collect()
            if self._settled() or (stopped() and not self._awaited()):
                break
            self._clock.sleep(min(max(POLL_S[0], elapsed / 100), POLL_S[1]))
        return [self._outcome(node_id, site) for node_id, site in self._sites.items()]

    def _look(self, online: Mapping[int, NodeInfo], elapsed: float) -> None:
        """Write to sites that were not written to, and once again to those whose message must have been lost."""
        for letter in self._letters.values():
            letter.here = letter.node_id in online
        new = [node_id for node_id in self._sites if node_id in online and node_id not in self._letters]
        if not self._letters or self._hopeful() < self._wanted:
            for node_id in new:
                self._letters[node_id] = _Letter(node_id, online[node_id].last_activated_at)
            self._send(new)
        repeated = [
            letter
            for letter in self._letters.values()
            if letter.here
            and not letter.again
            and letter.outcome is None
            and (
                letter.lost
                or letter.since != online[letter.node_id].last_activated_at
                or elapsed > self._deadline_s / 2
            )
        ]
        for letter in repeated:
            letter.again, letter.lost, letter.since = True, False, online[letter.node_id].last_activated_at
        self._send([letter.node_id for letter in repeated])

    def _send(self, nodes: Sequence[int]) -> None:
        if not nodes:
            return
        left = self._deadline_s - (self._clock.monotonic() - self._began)
        messages = [
            Message(self._content, node_id, self._kind, ttl=left + LATE_S, group_id=str(self._number))
            for node_id in nodes
        ]
        for node_id, identifier in zip(nodes, self._post.push_messages(messages), strict=True):
            if identifier:
                self._identifiers[identifier] = node_id
            else:
                self._letters[node_id].outcome = Outcome(
                    self._sites[node_id], "failed", "SuperLink refused its message"
                )

    def _collect(self) -> None:
        if not self._identifiers:
            return
        for reply in self._post.pull_messages(list(self._identifiers)):
            node_id = self._identifiers.pop(reply.metadata.reply_to_message_id)
            letter = self._letters[node_id]
            if letter.outcome is not None and letter.outcome.state == "trained":
                continue  # the second answer of a site that was asked twice
            if reply.has_content():
                letter.outcome = self._judge(self._sites[node_id], reply)
            elif reply.error.code in LOST and not letter.again:
                letter.lost = True
            elif node_id not in self._identifiers.values():
                reason = reply.error.reason or f"Flower's error {reply.error.code}"
                letter.outcome = Outcome(self._sites[node_id], "failed", reason[:300])

    def _hopeful(self) -> int:
        """Count the sites that have trained or, being there, still may."""
        return sum(
            letter.outcome.state == "trained" if letter.outcome else letter.here for letter in self._letters.values()
        )

    def _awaited(self) -> bool:
        """Tell whether a site that is there still works on its message."""
        return any(letter.outcome is None and letter.here for letter in self._letters.values())

    def _settled(self) -> bool:
        """Tell whether waiting longer is of no use: enough have trained and nobody works, or all have answered."""
        outcomes = [letter.outcome for letter in self._letters.values()]
        trained = sum(outcome is not None and outcome.state == "trained" for outcome in outcomes)
        if trained >= self._wanted:
            return not self._awaited()
        return len(outcomes) == len(self._sites) > 0 and all(outcomes)

    def _outcome(self, node_id: int, site: str) -> Outcome:
        letter = self._letters.get(node_id)
        if letter is None:
            return Outcome(site, "absent", "its SuperNode was not connected")
        if letter.outcome is None and not letter.here:
            return Outcome(site, "failed", "its SuperNode went away in mid-round")
        if letter.outcome is None:
            sentence = f"it did not answer within the round's deadline of {self._deadline_s:.0f} s"
            return Outcome(site, "late", sentence)
        return letter.outcome


def check_quorum(outcomes: Sequence[Outcome], wanted: int) -> list[Outcome]:
    """Return those that trained. Raises TooFewSites."""
    trained = [outcome for outcome in outcomes if outcome.state == "trained"]
    if len(trained) < wanted:
        others = ", ".join(f"{o.site} {o.state}" for o in outcomes if o.state != "trained") or "no site is registered"
        raise TooFewSites(f"{len(trained)} sites trained where {wanted} are needed ({others})")
    return trained
