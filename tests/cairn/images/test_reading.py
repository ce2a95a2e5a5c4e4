"""Warnings of image libraries, kept from the user while several threads read."""

import threading
import warnings

import pytest

from cairn.errors import ImageError
from cairn.images.reading import explained


def test_the_last_of_overlapping_readers_puts_the_filters_back_that_the_first_has_found() -> None:
    found = list(warnings.filters)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with explained("a.tif"):
            first_in.set()
            assert second_in.wait(timeout=10)
            warnings.warn("of a library", UserWarning, stacklevel=1)
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(timeout=10)
    with explained("b.tif"):
        second_in.set()
        assert first_out.wait(timeout=10), "a warning was an error"
        warnings.warn("of another", UserWarning, stacklevel=1)
    thread.join(timeout=10)
    assert warnings.filters == found
    with pytest.raises(UserWarning, match="after"):
        warnings.warn("after", UserWarning, stacklevel=1)


def test_a_reader_that_fails_puts_the_filters_back() -> None:
    found = list(warnings.filters)
    with pytest.raises(ImageError, match=r"a\.tif: corrupt or truncated"), explained("a.tif"):
        raise ValueError
    assert warnings.filters == found
