"""Scanners' own slide formats that are no plain TIFF (Hamamatsu, Mirax, Leica, Ventana), by openslide: R, G, B."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from openslide import OpenSlide, OpenSlideCache
from openslide.lowlevel import OpenSlideUnsupportedFormatError
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images.image import TILE, Image, RawLayout, Values, Window
from cairn.images.reading import bands_first, explained
from cairn.images.source import ImageSource


@contextmanager
def open_slide(source: ImageSource, raw: RawLayout) -> Iterator[Image]:
    """Open a slide's full-resolution level; parts that were not scanned are white. Raises ImageError."""
    _ = raw
    name = source.name
    with ExitStack() as stack:
        with explained(name, "corrupt or truncated, the slide cannot be opened; copy or export it again"):
            try:
                slide = stack.enter_context(OpenSlide(source.paths[0]))
            except OpenSlideUnsupportedFormatError as error:
                raise ImageError(
                    f"{name}: is not a slide that openslide knows; expected what its suffix says"
                ) from error
            slide.set_cache(OpenSlideCache(8 << 20))
            about = slide.properties
            width, height = slide.dimensions
            tile = [int(about.get(f"openslide.level[0].tile-{side}", TILE)) for side in ("height", "width")]
            mpp = [float(about.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy"]
        blank = Pillow.new("RGBA", (1, 1), f"#{about.get('openslide.background-color', 'ffffff')}")

        def read(bands: Sequence[int], at: Window) -> Values:
            part = slide.read_region((at.x, at.y), 0, (at.w, at.h))
            whole = np.asarray(Pillow.alpha_composite(blank.resize(part.size), part).convert("RGB"))
            return bands_first(whole, bands)

        yield Image(
            name=name,
            bands=("R", "G", "B"),
            height=height,
            width=width,
            dtype=np.dtype(np.uint8),
            pixel_size_um=mpp[0] if mpp[0] > 0 and abs(mpp[0] - mpp[1]) <= 0.01 * mpp[0] else None,
            chunk=(tile[0], tile[1]),
            read=read,
            bands_apart=False,
        )
