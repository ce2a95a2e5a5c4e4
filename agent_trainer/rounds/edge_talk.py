"""The trainer's end of its conversation with the edge node: JSON lines on standard input and output.

What may be said is in `edge_node.training.messages`; the two never import each other.
"""

import hashlib
import json
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO

from agent_trainer.rounds.layout import Vector
from cairn.errors import PolicyError, TrainingError
from cairn.figures import told

WAIT_S = 60.0  # for the edge's leave to hand an update to Flower


class EdgeTalk:
    """Says news and answers, and waits for the edge's leave. Lines are written whole, from any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._leaves: dict[str, tuple[threading.Event, list[str]]] = {}

    def say(self, event: str, **fields: object) -> None:
        """Write one line. Raises TrainingError, and writes nothing, for a number that is not finite."""
        try:
            line = json.dumps({"event": event, **fields}, allow_nan=False)
        except ValueError as error:
            raise TrainingError(
                "the model answers with numbers that are not finite: its training has diverged; choose another model, "
                "or resume its run with a smaller learning rate"
            ) from error
        with self._lock:
            print(line, file=self._out, flush=True)

    def round(
        self,
        run: str,
        number: int,
        phase: Literal["begins", "trains", "ends"],
        metrics: Mapping[str, float],
        *,
        job: bool = False,
    ) -> None:
        """Tell how a round goes, or a search's job; numbers that are not finite, and counts, are left out."""
        numbers = {name: float(value) for name, value in told(metrics).items() if math.isfinite(value)}
        self.say("round", run=run, round=number, phase=phase, metrics=numbers, job=job)

    def problems(self, sentences: Sequence[str], kind: str) -> None:
        """Show people at the site what is wrong, of which the aggregator learns the kind alone; none takes it back."""
        self.say("problem", sentences=[sentence[:1000] for sentence in sentences], kind=kind)

    def hand_over(self, run: str, number: int, update: Vector) -> None:
        """Wait until the edge has written an update into its audit log. Raises PolicyError when it must stay."""
        name = secrets.token_hex(8)
        answered, words = threading.Event(), list[str]()
        self._leaves[name] = (answered, words)
        try:
            digest = hashlib.sha256(update.data).hexdigest()
            self.say("update", id=name, run=run, round=number, bytes=update.nbytes, sha256=digest)
            if not answered.wait(WAIT_S):
                raise PolicyError("the site's edge node did not give leave to send the update in time")
            if words:
                raise PolicyError(f"the site keeps its update back: {words[0]}")
        finally:
            del self._leaves[name]

    def heard(self, question: Mapping[str, Any]) -> bool:
        """Take the edge's leave, or its refusal; False for another question."""
        if question["do"] not in {"send", "keep"}:
            return False
        if (waiting := self._leaves.get(str(question["id"]))) is not None:
            answered, words = waiting
            if question["do"] == "keep":
                words.append(str(question.get("sentence", "no reason was given"))[:300])
            answered.set()
        return True
