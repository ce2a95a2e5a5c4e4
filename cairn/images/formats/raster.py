"""PNG and JPEG. Their codecs decode whole images, so that a size limit takes the place of tiles."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import imagecodecs
import numpy as np
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images.image import Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained
from cairn.images.source import ImageSource

DECODED_BYTES = 128 << 20  # of one image; 44 megapixels in colour

MODES: dict[str, tuple[str, tuple[str, ...]]] = {  # Pillow's mode -> mode to read it in, bands
    "1": ("L", ("grey",)),
    "L": ("L", ("grey",)),
    "I": ("I", ("grey",)),
    "I;16": ("I;16", ("grey",)),
    "I;16B": ("I;16", ("grey",)),
    "F": ("F", ("grey",)),
    "LA": ("LA", ("grey", "A")),
    "P": ("RGB", ("R", "G", "B")),
    "PA": ("RGBA", ("R", "G", "B", "A")),
    "RGB": ("RGB", ("R", "G", "B")),
    "RGBA": ("RGBA", ("R", "G", "B", "A")),
}
DTYPES = {"I": "i4", "I;16": "u2", "F": "f4"}  # others are of 8 bits
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@contextmanager
def open_raster(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open a PNG or JPEG file. Raises ImageError."""
    _ = how
    name, path = source.name, source.paths[0]
    expected = SUFFIXES[path.suffix.lower()]
    with explained(
        name, f"corrupt or not a {expected}, its header cannot be read; expected the file to be as its suffix"
    ):
        with Pillow.open(path, formats=["PNG", "JPEG"]) as picture:
            kind, mode, (width, height) = str(picture.format), picture.mode, picture.size
        with path.open("rb") as file:
            head = file.read(26)
    if kind != expected:
        raise ImageError(f"{name}: found a {kind}; expected a {expected} by its suffix")
    if mode not in MODES:
        raise ImageError(f"{name}: found colours of kind {mode}; expected grey or RGB")
    as_mode, bands = MODES[mode]
    # Pillow cuts colours of 16 bits to 8, so these go another way.
    deep = kind == "PNG" and head[24] == 16 and len(bands) > 1
    if deep:
        bands = {2: ("R", "G", "B"), 4: ("grey", "A"), 6: ("R", "G", "B", "A")}[head[25]]
    dtype = np.dtype("u2" if deep else DTYPES.get(as_mode, "u1"))
    if width * height * len(bands) * dtype.itemsize > DECODED_BYTES:
        raise ImageError(
            f"{name}: found {width} × {height} pixels; expected at most {DECODED_BYTES >> 20} MiB of a {kind}, "
            "store it as a tiled TIFF"
        )

    @cache  # of this one image, for as long as it is open
    def decoded() -> Values:
        if kind == "PNG":
            with Pillow.open(path, formats=[kind]) as picture:
                picture.verify()  # the checksums, which loading skips
        if deep:
            whole = imagecodecs.png_decode(path.read_bytes())
        else:
            with Pillow.open(path, formats=[kind]) as picture:
                whole = np.asarray(picture if picture.mode == as_mode else picture.convert(as_mode))
        if whole.shape[:2] != (height, width):
            raise ImageError(f"{name}: corrupt, its size is not the one in its header; export it again")
        return whole.reshape(height, width, len(bands))

    def read(wanted: Sequence[int], at: Window) -> Values:
        part = decoded()[at.y : at.y + at.h, at.x : at.x + at.w]
        return bands_first(part, wanted).astype(dtype, copy=False)

    yield Image(
        name=name,
        bands=bands,
        height=height,
        width=width,
        dtype=dtype,
        chunk=(1, width),
        read=read,
        bands_apart=False,
        at_once=False,  # the first call decodes the whole image, and a second would too
    )
