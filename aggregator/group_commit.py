"""Group commit: of the threads that wait to write, the first one writes for all of them, in one transaction.

A commit waits for the disk, whatever is in it. With one a call, a thousand sites would wait for a thousand of them.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TypeAlias

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

Work: TypeAlias = Callable[[Session], None]
MOST = 100  # pieces of work in one transaction: other writers wait for its end


class GroupCommit:
    """Where threads that write meet."""

    def __init__(self) -> None:
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[Work, Future[None]]] = []

    def keep(self, transaction: Callable[[], AbstractContextManager[Session]], work: Work) -> None:
        """Do a piece of work and commit it, with that of others; returns when it is committed.

        Raises what the work raises, which undoes that work alone; or what the transaction does, which undoes all.
        """
        kept: Future[None] = Future()
        with self._lock:
            self._waiting.append((work, kept))
        with self._turn:
            if not kept.done():  # by the one who had the turn before
                with self._lock:
                    together, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                _keep(transaction, together)
        kept.result()


def _keep(
    transaction: Callable[[], AbstractContextManager[Session]], together: list[tuple[Work, Future[None]]]
) -> None:
    failures: list[Exception | None] = []
    try:
        with transaction() as session:
            failures += [_failure(session, work) for work, _ in together]
    except BaseException as error:  # noqa: BLE001 - raised in every thread that waits
        for _, kept in together:
            kept.set_exception(error)
        return
    for (_, kept), failure in zip(together, failures, strict=True):
        if failure is None:
            kept.set_result(None)
        else:
            kept.set_exception(failure)


def _failure(session: Session, work: Work) -> Exception | None:
    """Do a piece of work within a savepoint; returns what it raised. Raises OperationalError: the database fails."""
    savepoint = session.begin_nested()
    try:
        work(session)
        savepoint.commit()
    except OperationalError as error:
        raise _first(error) from error
    except Exception as error:  # noqa: BLE001 - raised again in the thread whose work it was
        savepoint.rollback()
        return error
    return None


def _first(error: OperationalError) -> OperationalError:
    """Return what failed first: on a full disk SQLite ends the transaction, and then the savepoint is not found."""
    found: BaseException | None = error
    while found is not None:
        error = found if isinstance(found, OperationalError) else error
        found = found.__context__
    return error
