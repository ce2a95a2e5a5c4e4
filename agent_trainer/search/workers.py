"""Jobs in processes of this machine: each a program that is given one job on its standard input and answers one line.

A worker ends when its standard input does, so that none outlives a search that was killed.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from agent_trainer.search.jobs import Answer, Job
from cairn.errors import CairnError, ConfigError


class Workers:
    """A runner: a process a job.

    command  of the program; it calls `serve`
    folder   of what the workers say, a file a job; made when missing
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command, self._folder = tuple(command), folder
        self._answers: queue.Queue[tuple[subprocess.Popen[bytes], Answer]] = queue.Queue()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, job: Job) -> None:
        """Start a job's process. Raises ConfigError when the program cannot be started."""
        with self.log(job.number).open("ab") as log:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C at a terminal is for the search; a worker ends with its own
                )
            except OSError as error:
                raise ConfigError(
                    f"the workers' program {self._command[0]} cannot be started ({error.strerror}); name another"
                ) from error
        self._running[job.number] = process
        with suppress(OSError):  # it has ended already, which its waiter will tell
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            process.stdin.flush()
        threading.Thread(target=self._wait, args=(job.number, process), name=f"job {job.number}", daemon=True).start()

    def log(self, job: int) -> Path:
        """Return the file in which a job's workers write what they say."""
        return self._folder / f"job-{job}.log"

    def answers(self, timeout_s: float) -> list[Answer]:
        """Wait for a worker to end; answers of workers that were withdrawn are passed over."""
        found: list[Answer] = []
        end = time.monotonic() + timeout_s
        while True:
            try:
                left = 0.0 if found else max(0.0, end - time.monotonic())
                process, answer = self._answers.get(timeout=left) if left else self._answers.get_nowait()
            except queue.Empty:
                return found
            if self._running.get(answer.job) is process:
                del self._running[answer.job]
                found.append(answer)

    def withdraw(self, job: int) -> None:
        """End a job's process and all that it started, at once."""
        if (process := self._running.pop(job, None)) is not None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in list(self._running):
            self.withdraw(job)

    def _wait(self, job: int, process: subprocess.Popen[bytes]) -> None:
        """Read a worker's words to their end, in a thread of its own."""
        assert process.stdout is not None
        assert process.stdin is not None
        with process.stdout:
            said = process.stdout.read()
        code = process.wait()
        with suppress(OSError):
            process.stdin.close()
        self._answers.put((process, _answer(job, code, said)))


def _answer(job: int, code: int, said: bytes) -> Answer:
    """Read an answer: the last line, a JSON object with a reward and figures, or with what failed."""
    lines = said.splitlines()
    if code == 0 and lines:
        with suppress(ValueError, TypeError, AttributeError):
            last = json.loads(lines[-1])
            figures = {str(name): float(value) for name, value in last.get("figures", {}).items()}
            reward = last.get("reward")
            return Answer(job, None if reward is None else float(reward), str(last.get("failed", "")), figures=figures)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code} and no answer"
    return Answer(job, why=f"the worker {how}; what it said is in job-{job}.log", lost=True)


Train = Callable[[Job], tuple[float, Mapping[str, float]]]
"""Trains a job, and returns its reward and further figures. A CairnError is a strategy that cannot be trained."""


def serve(train: Train, heard: IO[bytes] | None = None) -> None:
    """Be a worker: take a job from standard input, train it, answer. The whole of a worker's main function.

    Whatever `train` prints goes to standard error.
    """
    heard = sys.stdin.buffer if heard is None else heard
    job = Job(**json.loads(heard.readline()))
    threading.Thread(target=_end_with, args=(heard,), name="search", daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer: dict[str, Any]
    try:
        reward, figures = train(job)
        answer = {"reward": reward, "figures": dict(figures)}
    except CairnError as error:
        answer = {"failed": str(error)}
    except Exception:  # noqa: BLE001 - a fault of ours, or of the machine: told in the log, and no answer is given
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # as below
    with answers:
        answers.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the search's end would keep the interpreter from its own


def _end_with(heard: IO[bytes]) -> None:
    """End this process when the search's side of its standard input is closed."""
    heard.read()
    os._exit(1)
