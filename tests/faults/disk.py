"""A disk that stops between two of its operations: at once and for good, as for a process that is killed, or full."""

import errno
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import OperationalError

EFFECTS = ("write", "fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "ftruncate")
GROWS = {"write", "mkdir"}  # what a full disk refuses


class Killed(BaseException):
    """The process is gone: nothing may catch it but whoever starts it again."""


class Disk:
    """Counts what the running process does to its disk, and kills it before some of it.

    A killed process does nothing more: the clean-up that Python still runs on the way out meets the same exception.

    who   the process that runs now; "" outside of all
    kill  how likely each operation is the last one
    full  how likely a growing one finds no room
    full_at  number of the one operation, of all growing ones and commits, that finds no room; -1: none
    """

    def __init__(self, rng: random.Random, kill: float, full: float) -> None:
        self.rng, self.kill, self.full = rng, kill, full
        self.who, self.full_at, self.grown = "", -1, 0
        self.dead: set[str] = set()
        self.kills = 0
        self.refusals = 0

    @contextmanager
    def running(self, who: str) -> Iterator[None]:
        """Run as a process."""
        before, self.who = self.who, who
        try:
            yield
        finally:
            self.who = before

    def step(self) -> None:
        """Let the running process end here, or not: before a database's commit."""
        if self.who in self.dead:
            raise Killed
        if self.who and self.rng.random() < self.kill:
            self._die()
        if self.who and self._without_room():
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))

    def _without_room(self) -> bool:
        """Count an operation that needs room; tell whether it is the one that finds none."""
        self.grown += 1
        self.refusals += self.grown == self.full_at
        return self.grown == self.full_at

    def _die(self) -> None:
        self.dead.add(self.who)
        self.kills += 1
        raise Killed

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Stand between this Python and its disk."""
        kept = {name: getattr(os, name) for name in EFFECTS}
        for name, real in kept.items():
            setattr(os, name, self._guarded(name, real))
        try:
            yield
        finally:
            for name, real in kept.items():
                setattr(os, name, real)

    def _guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if not self.who:
                return real(*arguments, **named)
            if self.who in self.dead:
                raise Killed
            if self.rng.random() < self.kill:
                if name == "write":  # torn
                    real(arguments[0], bytes(arguments[1])[: self.rng.randrange(len(arguments[1]) + 1)])
                self._die()
            if name in GROWS and (self.rng.random() < self.full or self._without_room()):
                self.refusals += self.grown != self.full_at
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **named)

        return guarded
