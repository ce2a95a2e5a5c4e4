"""Tiles read ahead of who takes them, several at once, by threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(reads: Iterable[Callable[[], T | None]], readers: int, most: int) -> Generator[T]:
    """Call functions in threads and give what they return, in their order, until one returns None.

    readers  that call at once; with one, one call ends before the next begins
    most     results that are made or wait to be taken
    Raises what the first one in order raises. Closing waits for the calls that have begun; no other is made.
    """
    waiting: deque[Future[T | None]] = deque()
    with ThreadPoolExecutor(readers, "read") as pool:
        try:
            for read in reads:
                waiting.append(pool.submit(read))
                if len(waiting) < most:
                    continue
                if (made := waiting.popleft().result()) is None:
                    return
                yield made
            while waiting and (made := waiting.popleft().result()) is not None:
                yield made
        finally:
            for future in waiting:
                future.cancel()
