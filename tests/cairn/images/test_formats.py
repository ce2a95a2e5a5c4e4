"""Every format gives the pixels that were written into it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cairn.errors import ImageError
from cairn.images import RawLayout, open_image

LAYOUT = RawLayout(70, 90, 3)


def test_what_is_read_is_what_was_written(make: Callable[..., Any], read: Callable[..., Any], form_name: str) -> None:
    made = make(form_name)
    with open_image(made.source, raw=LAYOUT) as image:
        assert image.bands == made.form.bands
        assert (image.depth, image.height, image.width) == (made.form.depth, 70, 90)
        assert image.dtype == np.dtype(made.form.dtype)
        assert image.pixel_size_um == pytest.approx(made.form.pixel_size_um)
    np.testing.assert_array_equal(read(made.source), made.values)


@pytest.mark.parametrize("size", [1, 33, 64, 100_000])
def test_tiles_of_any_size_cover_the_image_once(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str, size: int
) -> None:
    made = make(form_name)
    np.testing.assert_array_equal(read(made.source, size=size), made.values)


def test_several_tiles_read_at_once_are_those_read_one_by_one(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str
) -> None:
    made = make(form_name)
    np.testing.assert_array_equal(read(made.source, size=9, readers=8), made.values)


def test_bands_come_in_the_order_that_is_asked_for(
    make: Callable[..., Any], read: Callable[..., Any], form_name: str
) -> None:
    made = make(form_name)
    wanted = made.form.bands[::-1][:2]
    expected = made.values[:, ::-1][:, :2]
    np.testing.assert_array_equal(read(made.source, wanted), expected)


def test_a_missing_band_is_named_with_what_the_file_has(make: Callable[..., Any], form_name: str) -> None:
    made = make(form_name)
    with open_image(made.source, raw=LAYOUT) as image, pytest.raises(ImageError) as caught:
        image.tiles(["CD99"])
    assert "CD99 is missing" in str(caught.value)
    assert all(band in str(caught.value) for band in made.form.bands)
    assert str(caught.value).startswith(made.source.name)
