"""Warnings of image libraries, kept from the user while several threads read; bands, laid apart."""

import threading
import warnings

import numpy as np
import pytest

from cairn.errors import ImageError
from cairn.images.reading import bands_first, explained


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


@pytest.mark.parametrize("shape", [(0, 5, 3), (70, 90, 3), (1000, 7, 4), (9, 4000, 35), (3, 5, 0)])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f8"])
def test_interleaved_bands_are_laid_apart_whatever_the_length_of_rows(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for bands in (list(range(shape[2])), list(range(shape[2]))[::-2]):
        found = bands_first(values[:, ::-1], bands)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, np.moveaxis(values[:, ::-1], -1, 0)[bands])
