"""Group commit: of the threads that wait to write, the first one writes for all of them, in one transaction.

A commit waits for the disk, whatever is in it. With one a call, a thousand sites would wait for a thousand of them.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from cairn.errors import StorageFull, Unreachable

Work: TypeAlias = Callable[[Session], None]
Transaction: TypeAlias = Callable[[], AbstractContextManager[Session]]
MOST = 50  # pieces of work in one transaction: other writers wait for its end


class _Call:
    """A thread's piece of work, and what it is told: that it is done or has failed, or that it leads."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.told = threading.Event()
        self.leads = False
        self.failure: BaseException | None = None


class GroupCommit:
    """Where threads that write meet. Whoever leads does the work of the first in the queue, and hands the lead on.

    most  pieces of work in one transaction
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._leader: int | None = None

    def keep(self, transaction: Transaction, work: Work) -> None:
        """Do a piece of work and commit it, with that of others; returns when it is committed.

        The work may not call this, and may be begun anew when its transaction failed.
        Raises what the work raises, which undoes that work alone; or what the transaction does, which undoes all.
        """
        mine = _Call(work)
        with self._lock:
            assert self._leader != threading.get_ident(), "work in a group would wait for itself"
            self._waiting.append(mine)
            if self._leader is None:
                self._leader, mine.leads = threading.get_ident(), True
        if not mine.leads:
            mine.told.wait()
        if mine.leads:
            self._lead(transaction)
        if mine.failure is not None:
            raise mine.failure

    def _lead(self, transaction: Transaction) -> None:
        """Write for the first in the queue, of whom this thread is one; the lead goes to who is first then."""
        with self._lock:
            self._leader = threading.get_ident()
            together = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        _keep(transaction, together)
        for call in together:
            call.told.set()
        with self._lock:
            if not self._waiting:
                self._leader = None
                return
            first = self._waiting[0]
            self._leader, first.leads = 0, True  # nobody else begins before it is awake
            first.told.set()


def _keep(transaction: Transaction, together: list[_Call]) -> None:
    try:
        with transaction() as session:
            for call in together:
                call.failure = _failure(session, call.work)
    except (StorageFull, Unreachable) as error:  # which is not for the sake of one of them
        for call in together:
            call.failure = type(error)(str(error))
            call.failure.__cause__ = error
    except BaseException as error:  # noqa: BLE001 - raised again in the thread whose work it was
        if len(together) == 1:
            together[0].failure = error
            return
        for call in together:  # whose work it was is not known: each by itself
            _keep(transaction, [call])


def _failure(session: Session, work: Work) -> Exception | None:
    """Do a piece of work within a savepoint; returns what it raised. Raises what the database cannot go on after."""
    savepoint = session.begin_nested()
    try:
        work(session)
        savepoint.commit()
    except DBAPIError as error:
        if not isinstance(error, IntegrityError | DataError | ProgrammingError):
            raise _first(error) from None
        savepoint.rollback()
        return error
    except Exception as error:  # noqa: BLE001 - raised again in the thread whose work it was
        savepoint.rollback()
        return error
    return None


def _first(error: DBAPIError) -> DBAPIError:
    """Return what failed first: on a full disk SQLite ends the transaction, and then the savepoint is not found."""
    found: BaseException | None = error
    while found is not None:
        error = found if isinstance(found, DBAPIError) else error
        found = found.__context__
    return error
