"""The two trainer processes' log: JSON lines on standard error, kind and place of an exception without its text."""

import json
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO


class Words:
    """Writes lines of JSON; Flower's and torch's own lines may stand between them."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream

    def say(self, event: str, **fields: object) -> None:
        """Write a line."""
        line = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        print(json.dumps(line, default=str), file=self._stream, flush=True)

    def incident(self, number: str, error: BaseException) -> None:
        """Write what an exception was and where it came from."""
        frames = [
            f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
        ]
        self.say("incident", number=number, kind=type(error).__name__, frames=frames[-12:])
