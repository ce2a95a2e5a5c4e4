"""How work is cut, and that no piece can be in a sum twice or be missing from it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.errors import PlanMismatch
from cairn.images import ImageSource
from edge_node.scale.pieces import LEAST, MOST, Sum, cut, hold, joined, same_image, share, whole
from edge_node.status import Problem
from edge_node.worker import Wanted

IMAGES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=12)  # tiles, pixels of each


def wanted_of(images: list[tuple[int, int]]) -> list[Wanted]:
    return [
        Wanted(ImageSource(f"{number}.tif", (Path("x"),), "tiff"), (0, 0), tiles * pixels, tiles)
        for number, (tiles, pixels) in enumerate(images)
    ]


@settings(deadline=None)
@given(images=IMAGES, at_once=st.integers(1, 100))
def test_every_tile_of_every_image_is_in_one_piece_and_large_images_are_parted(
    images: list[tuple[int, int]], at_once: int
) -> None:
    batches = cut(wanted_of(images), at_once)
    pieces = [piece for batch in batches for piece in batch]
    tiles = [(piece.image, tile) for piece in pieces for tile in piece.tiles or range(images[piece.image][0])]
    assert sorted(tiles) == [(image, tile) for image, (count, _) in enumerate(images) for tile in range(count)]
    assert sorted(piece.number for piece in pieces) == list(range(len(pieces)))
    for batch in batches:
        pixels = sum(piece.pixels for piece in batch)
        if len(batch) == 1:
            assert pixels < at_once + 2 * 9, "a part is at most a tile larger than asked for, here and there two"
        else:
            assert pixels - batch[-1].pixels <= at_once
            assert all(piece.tiles is None for piece in batch)
    assert sum(piece.pixels for piece in pieces) == sum(tiles * pixels for tiles, pixels in images)
    grouped = [number for _, numbers in same_image(batches) for number in numbers]
    assert sorted(grouped) == list(range(len(batches)))


def test_images_of_one_size_go_round_without_a_small_rest() -> None:
    assert [len(batch) for batch in cut(wanted_of([(1, 3)] * 160), -(-480 // 6))] == [27, 27, 26, 27, 27, 26]


def sum_of(number: int, value: int) -> Sum:
    return Sum(((number, number + 1),), {"pixels": np.array([value]), "sum": np.array([[2**32 - 1], [value]])})


@settings(deadline=None)
@given(values=st.permutations(range(9)), cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_sums_are_the_same_in_whatever_order_they_are_added_and_what_is_added_stays(
    values: list[int], cuts: tuple[int, int]
) -> None:
    parts = [sum_of(number, number) for number in values]
    low, high = sorted(cuts)
    total = joined([joined(parts[:low]), joined(parts[low:high]), joined(parts[high:])])
    assert total.tables is not None
    assert total.tables["pixels"].tolist() == [36]
    assert total.tables["sum"].tolist() == [[9 * (2**32 - 1) % 2**32], [36 + 9 * (2**32 - 1) // 2**32]]
    whole(total, 9)
    assert [part.tables["pixels"].tolist() for part in parts if part.tables] == [[number] for number in values]


def test_a_piece_that_would_be_added_twice_or_is_missing_is_refused() -> None:
    twice = joined([sum_of(0, 1), sum_of(1, 1)])
    with pytest.raises(PlanMismatch, match=r"piece 1 .* twice"):
        joined([twice, sum_of(1, 1)])
    with pytest.raises(PlanMismatch, match="lacks 1 of 3"):
        whole(twice, 3)
    with pytest.raises(PlanMismatch, match="lacks 1 of 3"):
        whole(joined([sum_of(0, 1), sum_of(2, 1)]), 3)
    assert hold([(4, 6), (0, 2), (2, 4)]) == ((0, 6),)


def test_an_image_of_which_a_part_cannot_be_counted_leaves_nothing_behind() -> None:
    bad = Sum(((1, 2),), None, ((0, Problem("an image could not be read", "a.tif: corrupt")),))
    image = joined([sum_of(0, 5), bad, sum_of(2, 5)], one_image=True)
    assert image.tables is None
    assert image.held == ((0, 3),)
    assert len(image.unfit) == 1
    others = joined([image, sum_of(3, 7)])
    assert others.tables is not None
    assert others.tables["pixels"] == 7


def test_tables_are_narrow_where_they_fit_and_the_same_numbers_everywhere() -> None:
    large = Sum(((0, 1),), {"pixels": np.array([2**31 - 1])})
    both = joined([large, Sum(((1, 2),), {"pixels": np.array([1], np.int32)})])
    assert both.tables is not None
    assert (both.tables["pixels"].dtype, both.tables["pixels"].item()) == (np.int64, 2**31)
    back = joined([both, Sum(((2, 3),), {"pixels": np.array([-1], np.int32)})])
    assert back.tables is not None
    assert (back.tables["pixels"].dtype, back.tables["pixels"].item()) == (np.int32, 2**31 - 1)


def test_work_goes_round_and_is_never_too_small_or_large() -> None:
    assert share(10, 64, cells=9) == LEAST
    assert share(10**8, 64, cells=13_800_000) == 13_800_000
    assert share(10**12, 64, cells=9) == MOST
    assert share(10**9, 16, cells=9) == 10**9 // 48
    assert share(10**9, 0, cells=9) == MOST, "the scheduler has no workers yet"
