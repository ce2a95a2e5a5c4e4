"""The conversation with the trainer: questions on its standard input, answers and news on its standard output.

A question has an id, and its answer the same; answers come in any order, between news.
"""

import itertools
import json
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from cairn.errors import TrainingError, Unreachable
from edge_node.training.messages import Answer, News, Refused, read_line

LONGEST = 4096  # bytes of a question: a pipe takes so much at once
WAITING = 16  # questions at a time; more would only queue up behind one another
A = TypeVar("A", bound=Answer)


class Conversation:
    """Questions and news of one trainer at a time.

    write  hands a line to the trainer; False when there is none
    news   called with what was not asked for, from the thread that reads
    lost   called, from the same thread, for each line that is not understood
    """

    def __init__(self, write: Callable[[str], bool], news: Callable[[News], None], lost: Callable[[], None]) -> None:
        self._write = write
        self._news = news
        self._lost = lost
        self._numbers = itertools.count(1)
        self._waiting: dict[str, queue.SimpleQueue[Answer | None]] = {}
        self._lock = threading.Lock()

    def heard(self, line: str) -> None:
        """Take a line that the trainer said."""
        try:
            message = read_line(line)
        except ValueError:
            self._lost()
            return
        if isinstance(message, News):
            self._news(message)
            return
        with self._lock:
            waiting = self._waiting.get(message.id)
        if waiting is not None:  # else nobody waits any longer
            waiting.put(message)

    def ask(self, kind: type[A], do: str, seconds: float, **details: object) -> A:
        """Ask and wait for the answer.

        Raises Unreachable when none comes, TrainingError with the trainer's own sentence when it refuses.
        """
        mine: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        with self._lock:
            if len(self._waiting) >= WAITING:
                raise Unreachable("the trainer is busy with other questions; ask again in a while")
            number = str(next(self._numbers))
            self._waiting[number] = mine
        try:
            self.tell(do, number, **details)
            answer = mine.get(timeout=seconds)
        except queue.Empty as error:
            raise Unreachable(f"the trainer did not answer within {seconds:.0f} s; ask again later") from error
        finally:
            with self._lock:
                del self._waiting[number]
        if answer is None:
            raise Unreachable("the trainer ended before it answered; it is started again, ask again in a while")
        if isinstance(answer, Refused):
            raise TrainingError(answer.sentence)
        if not isinstance(answer, kind):
            raise Unreachable("the trainer answered something else; are edge node and trainer of one version?")
        return answer

    def tell(self, do: str, number: str, **details: object) -> None:
        """Say something that has no answer. Raises Unreachable without a trainer, TrainingError when it is too long."""
        line = json.dumps({"do": do, "id": number, **details}, allow_nan=False)
        if len(line) >= LONGEST:
            raise TrainingError(f"a question of {len(line)} bytes is too long for the trainer")
        if not self._write(line):
            raise Unreachable("the trainer does not run; see this site's page for the reason")

    def hang_up(self) -> None:
        """Let nobody wait for answers of a trainer that has ended."""
        with self._lock:
            for waiting in self._waiting.values():
                waiting.put(None)
