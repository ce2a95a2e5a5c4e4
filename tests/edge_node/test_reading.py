"""The next image is begun while the last tile of the one before is counted; what is begun is taken or closed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cairn.images import Image, Tile
from edge_node.reading import Reads

WAIT_S = 30.0
IMAGE = Image("a", ("0",), 1, 1, np.dtype(np.uint8), (1, 1), lambda bands, at: np.zeros((1, 1, 1), np.uint8))


class Folder:
    """Images of so many tiles each; a negative number is one that cannot be read."""

    def __init__(self, *images: int) -> None:
        self.images = images
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.moved = threading.Condition()

    @contextmanager
    def read(self, number: int) -> Iterator[tuple[Image, Iterator[Tile]]]:
        with self.moved:
            self.opened.append(number)
            self.moved.notify_all()
        try:
            if self.images[number] < 0:
                raise ValueError(number)
            yield IMAGE, (Tile(number, 0, x, np.zeros((1, 1, 1))) for x in range(self.images[number]))
        finally:
            self.closed.append(number)

    def reads(self) -> Reads[int]:
        return Reads(range(len(self.images)), self.read)

    def has_opened(self, *numbers: int) -> bool:
        with self.moved:
            return self.moved.wait_for(lambda: self.opened == list(numbers), WAIT_S)


def test_the_next_image_is_opened_with_the_last_tile_and_no_earlier() -> None:
    folder = Folder(2, 1, 3)
    reads = folder.reads()
    with reads.image(0, 2) as (_, tiles):
        next(tiles)
        assert folder.opened == [0]
        next(tiles)
        assert folder.has_opened(0, 1)
        assert not list(tiles)
    for number, expected in ((1, 1), (2, 3)):
        with reads.image(number, expected) as (_, tiles):
            assert [(tile.z, tile.x) for tile in tiles] == [(number, x) for x in range(expected)]
    reads.close()
    assert folder.opened == [0, 1, 2]
    assert sorted(folder.closed) == [0, 1, 2]


def test_an_image_counted_again_is_opened_again_and_the_next_one_once() -> None:
    folder = Folder(1, 1)
    reads = folder.reads()
    for _ in range(2):
        with reads.image(0, 1) as (_, tiles):
            assert len(list(tiles)) == 1
    with reads.image(1, 1) as (_, tiles):
        assert [tile.z for tile in tiles] == [1]
    reads.close()
    assert sorted(folder.opened) == sorted(folder.closed) == [0, 0, 1]


def test_what_fails_in_the_next_image_is_raised_where_that_is_taken() -> None:
    folder = Folder(1, -1, 1)
    reads = folder.reads()
    with reads.image(0, 1) as (_, tiles):
        assert len(list(tiles)) == 1
    with pytest.raises(ValueError, match="1"), reads.image(1, 1):
        pass
    with reads.image(2, 1) as (_, tiles):
        assert len(list(tiles)) == 1
    reads.close()
    assert sorted(folder.closed) == [0, 1, 2]


@pytest.mark.parametrize("following", [1, -1])
def test_what_was_begun_and_is_not_wanted_any_more_is_closed(following: int) -> None:
    folder = Folder(1, following)
    reads = folder.reads()
    with reads.image(0, 1) as (_, tiles):
        next(tiles)
        assert folder.has_opened(0, 1)
    reads.close()
    assert sorted(folder.closed) == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("open")]
