"""Counting in a process of its own, which ends when there has been nothing to count for a while.

    service ──order──► child: worker.count_files ──how far, …, the tally table by table──► service

So a service at rest holds no compiler and no decoder, and what one of them breaks is not the service. Child and service
are one program from one installation, and each ends with the other.
"""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from cairn import codec
from cairn.errors import CairnError
from cairn.kernels import Kernels, load
from cairn.memory import give_back
from cairn.secrecy import no_dumps
from cairn.tally import Tally
from edge_node.settings import SiteSettings
from edge_node.status import Board, Problem
from edge_node.worker import File, GivenUp, Job, count_files

IDLE_S = 30.0  # after which a child without work ends
TOLD_EVERY_S = 0.2
GRACE_S = 2.0  # for a child to give up by itself, which it does between two tiles


@dataclass(frozen=True)
class Order:
    """What a child is to count; as in `worker.Job`."""

    published: bytes
    fingerprint: bytes
    files: Sequence[File]
    seed: bytes


class Apart:
    """A child that counts: started when it is needed, kept for the next plan, ended when none came for `idle_s`.

    warn  told when a GPU fails and the CPU goes on
    """

    def __init__(self, settings: SiteSettings, warn: Callable[[str], None], idle_s: float = IDLE_S) -> None:
        self._settings = settings
        self._warn = warn
        self._idle_s = idle_s
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None

    def count_files(self, job: Job, files: Sequence[File]) -> tuple[Tally, list[Problem]]:
        """Count as `worker.count_files` does, in the child. Raises what it does, and CairnError when the child dies."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            child, pipe = self._child or self._start()
            try:
                pipe.send(Order(codec.encode_plan(job.plan), job.fingerprint, files, job.seed))
                answer = self._hear(job, pipe)
            except (EOFError, OSError) as error:
                self._end()
                raise CairnError(f"the process that counts ended ({_how(child.returncode)})") from error
            except BaseException:
                self._end()
                raise
            self._idle = threading.Timer(self._idle_s, self.end)
            self._idle.daemon = True
            self._idle.start()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._child is None:
            return
        child, pipe = self._child
        self._child = None
        pipe.close()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        give_back()  # what tallies took

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-m", "edge_node.apart", str(theirs.fileno())]
            child = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._child = child, Connection(ours.detach())
        self._child[1].send(self._settings)
        return self._child

    def _hear(self, job: Job, pipe: Connection) -> tuple[Tally, list[Problem]] | BaseException:
        """Listen until the child has its answer. Raises GivenUp, EOFError or OSError when the child is gone."""
        while True:
            heard = pipe.poll(TOLD_EVERY_S)
            if job.cancelled():
                raise GivenUp
            match pipe.recv() if heard else None:
                case "far", work, problems:
                    job.board.work(work)
                    if work.pixels_total:  # all images were looked at; until then those of the last stage stand
                        job.board.problems(job.plan.study, problems)
                case "warning", sentence:
                    self._warn(sentence)
                case "failed", BaseException() as error:
                    return error
                case "tally", heads, problems:
                    job.board.problems(job.plan.study, problems)
                    return Tally(job.fingerprint, {name: _table(pipe, *head) for name, *head in heads}), problems


def _table(pipe: Connection, kind: str, shape: tuple[int, ...]) -> Any:
    table = np.empty(shape, np.dtype(kind))
    if table.size:
        pipe.recv_bytes_into(table.data.cast("B"))
    return table


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"by {name}" + (", for want of memory perhaps" if name == "SIGKILL" else "")
    return f"exit code {code}"


def serve(pipe: Connection) -> None:
    """Count what is ordered, one after another, until EOFError or OSError: the service wants no more, or is gone."""
    settings = pipe.recv()
    warnings: list[str] = []
    functions: Kernels | None = None
    while True:
        order = pipe.recv()
        functions = functions or load(settings.kernels, warnings.append)
        plan, board = codec.decode_plan(order.published), Board()
        job = Job(plan, order.fingerprint, settings, functions, board, pipe.poll, order.seed)
        try:
            with _telling(pipe, job, warnings):
                tally, problems = count_files(job, order.files)
        except BaseException as error:  # noqa: BLE001 - it is raised in the service
            _fail(pipe, error)
            continue
        tables = {name: np.ascontiguousarray(table) for name, table in tally.tables.items()}
        pipe.send(("tally", [(name, table.dtype.str, table.shape) for name, table in tables.items()], problems))
        for table in tables.values():
            if table.size:
                pipe.send_bytes(table.data.cast("B"))
        del tally, tables


@contextmanager
def _telling(pipe: Connection, job: Job, warnings: list[str]) -> Iterator[None]:
    """Tell the service how far the work is, now and then and at its end."""
    ended = threading.Event()

    def tell() -> None:
        told = None
        over = False
        while not over:
            over = ended.wait(TOLD_EVERY_S)
            while warnings:
                pipe.send(("warning", warnings.pop(0)))
            now = job.board.snapshot()
            if now.work and (now.work, now.problems) != told:
                told = now.work, now.problems
                pipe.send(("far", *told))

    def tell_while_heard() -> None:
        with suppress(OSError):  # the service is gone, and the work is given up at the next tile
            tell()

    teller = threading.Thread(target=tell_while_heard, name="tell")
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _fail(pipe: Connection, error: BaseException) -> None:
    """Send an error to be raised in the service, or its sentence where it cannot be made anew there."""
    try:
        copy(error)  # makes it anew, as receiving it does
        pipe.send(("failed", error))
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - whatever an error of a library does when it is copied or packed
        pipe.send(("failed", CairnError(f"{type(error).__name__}: {error}")))


def main() -> None:
    """Be the child: `python -m edge_node.apart DESCRIPTOR`."""
    no_dumps()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who is told to stop is the service, and this ends with it
    with suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
