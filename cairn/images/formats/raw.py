"""Raw pixels without a header, as AstroPath's flat-field-corrected `.fw`; the site's settings say the shape."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cairn.errors import ImageError
from cairn.images.image import Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained, read_into
from cairn.images.source import ImageSource


@contextmanager
def open_raw(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open a raw file. Raises ImageError when its size is not that of the layout."""
    name, raw = source.name, how.raw
    with explained(name, "the [raw] settings name a type that does not exist; write it as '<u2'"):
        stored = np.dtype(raw.dtype)
    expected = raw.height * raw.width * raw.bands * stored.itemsize
    found = source.raw_bytes
    if found != expected:
        raise ImageError(
            f"{name}: found {found} bytes; expected {expected} for {raw.width} × {raw.height} pixels of {raw.bands} "
            f"bands in {stored.name} as the [raw] settings say"
        )
    with explained(name):
        file = source.paths[0].open("rb")
    row = raw.width * stored.itemsize
    dtype = stored.newbyteorder("=")

    def read(bands: Sequence[int], at: Window) -> Values:
        columns = slice(at.x, at.x + at.w)
        if raw.bands_last:
            values = np.empty((at.h, raw.width, raw.bands), stored)
            read_into(file, at.y * row * raw.bands, values, name)
            return bands_first(values[:, columns], bands)
        out = np.empty((len(bands), at.h, at.w), dtype)
        plane = np.empty((at.h, raw.width), stored)
        for slot, band in enumerate(bands):
            read_into(file, (band * raw.height + at.y) * row, plane, name)
            out[slot] = plane[:, columns]
        return out

    with file:
        yield Image(
            name=name,
            bands=tuple(str(i) for i in range(raw.bands)),
            height=raw.height,
            width=raw.width,
            dtype=dtype,
            chunk=(1, raw.width),
            read=read,
            bands_apart=not raw.bands_last,
        )
