"""Child processes that are kept running: started, listened to, started again when they end, and never left behind.

A child is told to end by closing its standard input, which a supervisor that is killed does too. So every program that
is kept here must end when its standard input does.
"""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import structlog

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
STEADY_S = 60.0  # a child that ran for so long is started again at the shortest wait
GRACE_S = 10.0  # between asking and forcing
LINE_BYTES = 1 << 20
LOOK_EVERY_S = 60.0  # whether a child is due to be started anew

TRANSCRIPT_BYTES = 1 << 20
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Log = structlog.typing.FilteringBoundLogger
Hear = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    """How a child is started.

    until  when it should be ended and started anew, because a certificate that it was given is about to end
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    until: datetime | None = None


class Child:
    """One child process, kept running from `start` to `stop`.

    name        in the log
    command     called before each start; makes what the child needs. When it raises, that is a failed start
    said        called with each line of its standard error, from a thread of its own
    heard       the same for its standard output; None: `said` takes both
    now         the clock, for `Command.until`
    line_bytes  of its output; a longer line is cut in two
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Command],
        said: Hear,
        log: Log,
        heard: Hear | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        line_bytes: int = LINE_BYTES,
    ) -> None:
        self.name = name
        self.starts = 0
        self._command = command
        self._said = said
        self._heard = heard or said
        self._log = log
        self._now = now
        self._line_bytes = line_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    @property
    def running(self) -> bool:
        """Tell whether the process is there now."""
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child, and again whenever it ends."""
        self._thread.start()

    def ask(self) -> None:
        """Begin to stop: close the child's standard input, so that several children can end side by side."""
        self._stopped.set()
        with self._lock:
            process = self._process
        if process is not None:
            _close_input(process)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Let the child end by itself, then force it; returns when it is gone."""
        self.ask()
        with self._lock:
            process = self._process
        if process is not None:
            _end(process, grace_s)
        if self._thread.is_alive():
            self._thread.join()

    def write(self, line: str) -> bool:
        """Write a line to the child's standard input; false when there is no child to read it."""
        with self._lock:
            process = self._process
        if process is None or process.stdin is None:
            return False
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError):  # it ended, or is being ended
            return False
        return True

    def _keep(self) -> None:
        wait = FIRST_WAIT_S
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                ended = self._once()
            except Exception as error:  # noqa: BLE001 - whatever keeps it from starting may be over next time
                self._log.error("child not started", child=self.name, again_in_s=wait, exc_info=error)
            else:
                if self._stopped.is_set():
                    return
                if time.monotonic() - began >= STEADY_S:
                    wait = FIRST_WAIT_S
                self._log.warning("child ended", child=self.name, code=ended, again_in_s=wait)
            self._stopped.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _once(self) -> int:
        command = self._command()
        with self._lock:
            if self._stopped.is_set():
                return 0
            process = subprocess.Popen(
                command.arguments,
                env=dict(command.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at a terminal is for the supervisor, which then stops its children
            )
            self._process = process
            self.starts += 1
        self._log.info("child started", child=self.name, pid=process.pid)
        assert process.stdout is not None  # asked for above
        assert process.stderr is not None
        readers = [
            threading.Thread(target=self._read, args=(pipe, hear), name=f"{self.name} output", daemon=True)
            for pipe, hear in ((process.stdout, self._heard), (process.stderr, self._said))
        ]
        for reader in readers:
            reader.start()
        code = self._wait(process, command.until)
        _close_input(process)
        for reader in readers:
            reader.join(GRACE_S)  # not for ever: a grandchild may hold the pipe
        return code

    def _wait(self, process: subprocess.Popen[bytes], until: datetime | None) -> int:
        while True:
            try:
                return process.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                if until is not None and self._now() >= until:
                    _end(process, GRACE_S)

    def _read(self, pipe: IO[bytes], hear: Hear) -> None:
        with pipe:
            while line := pipe.readline(self._line_bytes):
                try:
                    hear(line.decode(errors="replace").rstrip())
                except Exception as error:  # noqa: BLE001 - the child must not block on a pipe that nobody reads
                    self._log.error("line of a child not taken", child=self.name, exc_info=error)


class Transcript:
    """What a child says, in a file of its own: so many bytes, and as many from before them. A full disk costs lines."""

    def __init__(self, path: Path, most_bytes: int = TRANSCRIPT_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes

    def write(self, line: str) -> None:
        """Add a line, without colours."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > self._most_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{uncoloured(line)}\n")


def uncoloured(line: str) -> str:
    """Take a terminal's colours out of a line."""
    return _COLOUR.sub("", line)


def _close_input(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # what was not written yet cannot be: the child has ended
        if process.stdin is not None:
            process.stdin.close()


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    _close_input(process)
    for force in (process.terminate, process.kill):
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            force()
        else:
            return
    process.wait()
