"""The next batch made while this one is learned from."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")


@contextmanager
def one_ahead(make: Callable[[], Made], many: int) -> Iterator[Iterator[Made]]:
    """Make so many things in their order, each in a thread of its own while the caller works with the one before it.

    All is as if each had been made when it was needed; a caller that leaves early may have made one more than it took.
    Behind the block nothing is being made any more.
    """
    with ThreadPoolExecutor(1, "batches") as loader:

        def all_of_them() -> Iterator[Made]:
            coming = loader.submit(make)
            for left in reversed(range(many)):
                found = coming.result()
                if left:
                    coming = loader.submit(make)
                yield found

        yield all_of_them() if many else iter(())


@contextmanager
def each(make: Callable[[], Made], many: int, *, ahead: bool) -> Iterator[Iterator[Made]]:
    """Make so many things in their order, each when it is taken, or `one_ahead`."""
    if ahead:
        with one_ahead(make, many) as things:
            yield things
    else:
        yield (make() for _ in range(many))
