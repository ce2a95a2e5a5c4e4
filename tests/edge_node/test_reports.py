"""How often a site tells how far it is."""

import threading
from datetime import UTC, datetime
from pathlib import Path

from edge_node.audit import AuditLog
from edge_node.connection import Reports
from edge_node.status import Board, Work


class Stop(threading.Event):
    """An event that is set after so many waits, and notes how long each would have been."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.left = waits
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.left -= 1
        return self.left == 0


def test_an_aggregator_that_is_slow_to_answer_is_asked_less_often(tmp_path: Path) -> None:
    board = Board()
    board.connection("connected")
    board.work(Work("tumour", "moments", 0, bytes(32), pixels_total=100))
    took_s = [0.0, 0.2]  # by a busy aggregator; then nothing is new, and nothing is sent

    def send(_request: object) -> None:
        threading.Event().wait(took_s.pop(0))
        if took_s:
            board.advance(10)

    stop, audit_log = Stop(4), AuditLog(tmp_path / "audit.jsonl", lambda: datetime.now(UTC))
    Reports(send, board, audit_log).run(stop)
    audit_log.close()
    assert took_s == []
    assert stop.pauses[0] == stop.pauses[3] == 1.0
    assert 1.0 <= stop.pauses[1] < 2.0
    assert 4.0 <= stop.pauses[2] <= 30.0
