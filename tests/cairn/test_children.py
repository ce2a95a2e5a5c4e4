"""Children are started, listened to, started again, and gone when their supervisor is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
import structlog

from cairn import children
from cairn.children import Child, Command, Transcript

ECHO = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('got', line.strip(), flush=True)\n"
DEAF = "import signal, sys, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)\n"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        tick.wait(0.01)


class Kept:
    """A child under supervision, and what it said."""

    def __init__(self, code: str, **more: object) -> None:
        self.lines: list[str] = []
        self.log = StringIO()
        log = structlog.wrap_logger(
            structlog.WriteLogger(self.log),
            processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
        )
        self.code = code
        self.until: datetime | None = None
        self.child = Child("echo", self.command, self.lines.append, log, **more)  # type: ignore[arg-type]

    def command(self) -> Command:
        return Command((sys.executable, "-c", self.code), os.environ, self.until)

    def said(self, line: str, times: int = 1) -> None:
        wait_until(lambda: self.lines.count(line) >= times, line)


@pytest.fixture
def keep() -> Iterator[Callable[..., Kept]]:
    kept: list[Kept] = []

    def start(code: str = ECHO, **more: object) -> Kept:
        kept.append(Kept(code, **more))
        kept[-1].child.start()
        return kept[-1]

    yield start
    for one in kept:
        one.child.stop(0.2)


def test_what_is_written_reaches_the_child_and_what_it_says_comes_back(keep) -> None:
    echo = keep()
    echo.said("ready")
    assert echo.child.running
    assert echo.child.write("hello")
    echo.said("got hello")


def test_standard_output_and_standard_error_can_be_heard_apart(keep) -> None:
    heard: list[str] = []
    both = keep("import sys; print('out'); print('err', file=sys.stderr); sys.stdin.read()", heard=heard.append)
    both.said("err")
    wait_until(lambda: heard == ["out"], "the line on standard output")
    assert both.lines == ["err"]


def test_a_child_that_ends_is_started_again(keep) -> None:
    echo = keep("print('ready')")
    echo.said("ready", times=2)
    assert echo.child.starts >= 2
    assert '"child": "echo"' in echo.log.getvalue()
    assert "child ended" in echo.log.getvalue()


def test_a_child_that_cannot_be_prepared_is_tried_again(keep) -> None:
    failed: list[bool] = []

    class Once(Kept):
        def command(self) -> Command:
            if not failed:
                failed.append(True)
                raise OSError("no room")
            return super().command()

    once = Once(ECHO)
    once.child.start()
    try:
        once.said("ready")
    finally:
        once.child.stop()
    assert "child not started" in once.log.getvalue()
    assert "no room" in once.log.getvalue()


def test_stopping_lets_a_child_end_by_itself(keep) -> None:
    echo = keep("import sys\nprint('ready', flush=True)\nsys.stdin.read()\nprint('ended well', flush=True)\n")
    echo.said("ready")
    echo.child.stop()
    echo.said("ended well")
    assert not echo.child.running
    assert not echo.child.write("too late")
    assert "child ended" not in echo.log.getvalue()


def test_a_child_that_hears_nothing_is_forced(keep) -> None:
    deaf = keep(DEAF)
    deaf.said("ready")
    began = time.monotonic()
    deaf.child.stop(0.2)
    assert not deaf.child.running
    assert time.monotonic() - began < 10


def test_a_child_whose_certificate_ends_is_started_anew(keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOOK_EVERY_S", 0.05)
    kept = Kept(ECHO)
    kept.until = datetime(2026, 1, 1, tzinfo=UTC)
    kept.child.start()
    try:
        kept.said("ready", times=2)
    finally:
        kept.child.stop()


def test_a_transcript_keeps_the_last_lines_without_colours(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "child.log", most_bytes=100)
    for number in range(40):
        transcript.write(f"\x1b[93mline {number:04d}\x1b[0m")
    kept = (tmp_path / "child.log.1").read_text() + (tmp_path / "child.log").read_text()
    lines = kept.splitlines()
    assert lines == [f"line {number:04d}" for number in range(40)][-len(lines) :]
    assert 10 <= len(lines) <= 22
    Transcript(tmp_path / "no" / "folder").write("a disk that is full costs lines, not the child")


def test_a_child_ends_with_a_supervisor_that_is_killed(tmp_path) -> None:
    code = (
        "import os, sys, structlog\n"
        "from cairn.children import Child, Command\n"
        "child = Child('c', lambda: Command((sys.executable, '-c',"
        " 'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()'), os.environ),"
        " lambda line: print(line, flush=True), structlog.wrap_logger(structlog.WriteLogger(sys.stderr)))\n"
        "child.start(); child._thread.join()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        supervisor.send_signal(signal.SIGKILL)

        def gone() -> bool:
            # A zombie has ended too: nobody here is its parent.
            try:
                return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
            except (FileNotFoundError, ProcessLookupError):
                return True

        wait_until(gone, "the child's end")
