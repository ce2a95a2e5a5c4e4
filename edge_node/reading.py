"""A site's images one after another: the next is opened, and reading it begins, while the last tile is counted."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Generic, TypeVar, final

from cairn.images import Image, Tile

One = TypeVar("One")


@final
class Reads(Generic[One]):
    """Images in their order.

    read  opens an image for as long as its block lasts, and gives its tiles
    """

    def __init__(
        self, ones: Sequence[One], read: Callable[[One], AbstractContextManager[tuple[Image, Iterator[Tile]]]]
    ) -> None:
        self._ones, self._read = ones, read
        self._pool = ThreadPoolExecutor(1, "open")
        self._begun: dict[int, Future[tuple[ExitStack, Image, Iterator[Tile]]]] = {}

    @contextmanager
    def image(self, number: int, tiles: int) -> Iterator[tuple[Image, Iterator[Tile]]]:
        """Give an image and its tiles, so many. Raises what `read` raises."""
        begun = self._begun.pop(number, None)
        stack, image, found = begun.result() if begun else self._begin(number)
        with stack:
            yield image, self._watched(found, number, tiles)

    def close(self) -> None:
        """Close what was begun and not taken."""
        with self._pool:
            for begun in self._begun.values():
                if not begun.cancel() and begun.exception() is None:
                    begun.result()[0].close()
            self._begun.clear()

    def _watched(self, found: Iterator[Tile], number: int, tiles: int) -> Iterator[Tile]:
        for taken, tile in enumerate(found, 1):
            if taken == tiles and number + 1 < len(self._ones) and number + 1 not in self._begun:
                self._begun[number + 1] = self._pool.submit(self._begin, number + 1)
            yield tile

    def _begin(self, number: int) -> tuple[ExitStack, Image, Iterator[Tile]]:
        with ExitStack() as stack:
            image, tiles = stack.enter_context(self._read(self._ones[number]))
            first = [tile for tile in [next(tiles, None)] if tile is not None]  # the others are read ahead from now on
            return stack.pop_all(), image, chain(first, tiles)
