"""Tiles read ahead: several at once, in order, so many and no more, and nothing goes on when they are not wanted."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cairn.errors import ImageError
from cairn.images import Image, open_image
from cairn.images.image import Values, Window

WAIT_S = 30.0


class Rows:
    """An image of rows that are read one by one; who reads waits for `gate` and is counted."""

    def __init__(self, broken: int | None = None, width: int = 512) -> None:
        self.begun: list[int] = []
        self.inside = self.most = 0
        self.moved = threading.Condition()
        self.gate = threading.Event()
        self.broken = broken
        self.width = width

    def read(self, bands: Sequence[int], at: Window) -> Values:
        with self.moved:
            self.begun.append(at.y)
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.moved.notify_all()
        self.gate.wait(WAIT_S)
        with self.moved:
            self.inside -= 1
            self.moved.notify_all()
        if self.broken is not None and at.y >= self.broken:
            raise OSError(f"row {at.y}")
        return np.full((len(bands), at.h, at.w), at.y, np.uint8)

    def image(self, **more: object) -> Image:
        return Image("a", ("0",), 12, self.width, np.dtype(np.uint8), (1, self.width), self.read, **more)  # type: ignore[arg-type]

    def reached(self, begun: int, inside: int = 0) -> bool:
        with self.moved:
            return self.moved.wait_for(lambda: (len(self.begun), self.inside) == (begun, inside), WAIT_S)


def test_so_many_tiles_are_read_at_once_and_come_in_order() -> None:
    rows = Rows()
    tiles = rows.image().tiles(["0"], 1, readers=3)
    taken: list[int] = []
    taking = threading.Thread(target=lambda: taken.extend(tile.y for tile in tiles))
    taking.start()
    assert rows.reached(3, 3)
    rows.gate.set()
    taking.join()
    assert taken == list(range(12))
    assert rows.most == 3


@pytest.mark.parametrize(("readers", "begun"), [(1, 2), (3, 4)])
def test_one_tile_more_than_there_are_readers_is_begun_and_closing_begins_no_other(readers: int, begun: int) -> None:
    rows = Rows()
    rows.gate.set()
    tiles = rows.image().tiles(["0"], 1, readers=readers)
    assert rows.begun == []  # nothing before the first is taken
    assert next(tiles).y == 0
    assert rows.reached(begun)
    assert next(tiles).y == 1
    assert rows.reached(begun + 1)
    rows.gate.clear()
    assert next(tiles).y == 2
    assert rows.reached(begun + 2, 1)
    threading.Timer(0.05, rows.gate.set).start()
    tiles.close()
    assert rows.inside == 0
    assert len(rows.begun) == begun + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_large_tiles_are_fewer_at_once() -> None:
    rows = Rows(width=100 << 20)
    rows.gate.set()
    tiles = rows.image().tiles(["0"], 1, readers=8)
    next(tiles)
    assert rows.reached(2)
    next(tiles)
    assert rows.reached(3)
    tiles.close()
    assert rows.most <= 2


def test_a_format_whose_reader_is_for_one_thread_is_read_by_one() -> None:
    rows = Rows()
    rows.gate.set()
    assert [tile.y for tile in rows.image(at_once=False).tiles(["0"], 1, readers=8)] == list(range(12))
    assert rows.begun == list(range(12))
    assert rows.most == 1


def test_what_fails_first_in_order_is_raised_where_its_tile_is_taken() -> None:
    rows = Rows(broken=5)
    rows.gate.set()
    tiles = rows.image().tiles(["0"], 1, readers=4)
    assert [next(tiles).y for _ in range(5)] == list(range(5))
    with pytest.raises(ImageError, match="a: corrupt") as caught:
        next(tiles)
    assert str(caught.value.__cause__) == "row 5"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@pytest.mark.parametrize("decoders", [1, 3])
def test_a_file_is_decoded_by_so_many_threads_however_many_tiles_are_read_at_once(
    make: Callable[..., Any], decoders: int
) -> None:
    made = make("ome-tiff-zstd-stack")
    before = set(threading.enumerate())  # of which some may end meanwhile
    with open_image(made.source, decoders=decoders) as image:
        assert len(list(image.tiles(image.bands, 32, readers=4))) > 4
        assert 1 <= len(set(threading.enumerate()) - before) <= decoders
