"""A process that waits for an event hears every signal, whichever thread gets it and however often."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 20.0
WAITS = """
import threading
from cairn.stopping import told_to_stop
stop = told_to_stop()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("waits", flush=True)
stop.wait()
print("ends", flush=True)
{then}
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a program that waits to be told, and then does what it is given."""
    started = []

    def begin(then: str = "") -> "subprocess.Popen[str]":
        code = WAITS.format(then=then)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        return process

    yield begin
    for process in started:
        process.kill()
        with process:
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_event_is_set_whichever_thread_gets_the_signal(start: Start, number: signal.Signals) -> None:
    threads = len(list(Path(f"/proc/{start('').pid}/task").iterdir()))
    assert threads == 3
    for which in range(threads):
        process = start("")
        # A signal to a thread's own number is for the whole process, but is handed to that thread.
        thread = sorted(int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir())[which]
        os.kill(thread, number)
        assert process.wait(PATIENCE_S) == 0


def test_a_second_signal_does_not_break_off_what_the_first_began(start: Start) -> None:
    process = start("print(input(), flush=True)")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ends\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    out, _ = process.communicate("in peace\n", timeout=PATIENCE_S)
    assert out == "in peace\n"
    assert process.returncode == 0
