"""How a call waits for something in the database: it looks again when somebody rings, and now and then by itself."""

import threading
import time
from collections.abc import Callable

LOOK_EVERY_S = 1.0  # for what another process of this aggregator did


class Bell:
    """Rung by whoever changes what calls may wait for: an upload, an answer, a line of a log, the end of a run."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self._times = 0
        self.stopped = False  # the aggregator stops: nobody waits any more

    @property
    def times(self) -> int:
        """How often it was rung."""
        with self._rung:
            return self._times

    def stop(self) -> None:
        """End every wait."""
        self.stopped = True
        self.ring()

    def ring(self) -> None:
        """Let every waiting call look again."""
        with self._rung:
            self._times += 1
            self._rung.notify_all()

    def wait_until(self, so: Callable[[], bool], seconds: float, active: Callable[[], bool]) -> bool:
        """Wait until something is so; false when the time is over, the caller gone, or the aggregator stops.

        active  tells whether the caller is there; ring when it is not any more
        """
        end = time.monotonic() + seconds
        while True:
            with self._rung:
                before = self._times
            if so():
                return True
            left = end - time.monotonic()
            if left <= 0 or self.stopped or not active():
                return False
            with self._rung:
                self._rung.wait_for(lambda: self._times != before, min(LOOK_EVERY_S, left))  # noqa: B023 - waits here
