"""Scanners' own slide formats that are no plain TIFF (Hamamatsu, Mirax, Leica, Ventana), by openslide: R, G, B."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
from openslide import OpenSlide, OpenSlideCache
from openslide.lowlevel import OpenSlideUnsupportedFormatError
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images.image import TILE, Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained
from cairn.images.source import ImageSource


@contextmanager
def open_slide(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open a slide; parts that were not scanned are white. Raises ImageError."""
    _ = how
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
            image = level_of(slide, 0, name)
        yield replace(
            image, levels=lambda: tuple(level_of(slide, level, name) for level in range(1, slide.level_count))
        )


def level_of(slide: OpenSlide, level: int, name: str) -> Image:
    """Describe one level of a slide, 0 the full resolution."""
    about = slide.properties
    width, height = slide.level_dimensions[level]
    tile = [int(about.get(f"openslide.level[{level}].tile-{side}", TILE)) for side in ("height", "width")]
    mpp = [float(about.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy"]
    square = level == 0 and mpp[0] > 0 and abs(mpp[0] - mpp[1]) <= 0.01 * mpp[0]
    blank = Pillow.new("RGBA", (1, 1), f"#{about.get('openslide.background-color', 'ffffff')}")
    across, down = (full / own for full, own in zip(slide.dimensions, (width, height), strict=True))

    def read(bands: Sequence[int], at: Window) -> Values:
        # openslide takes the first pixel's place at full resolution, whatever the level
        part = slide.read_region((round(at.x * across), round(at.y * down)), level, (at.w, at.h))
        whole = np.asarray(Pillow.alpha_composite(blank.resize(part.size), part).convert("RGB"))
        return bands_first(whole, bands)

    return Image(
        name=name,
        bands=("R", "G", "B"),
        height=height,
        width=width,
        dtype=np.dtype(np.uint8),
        pixel_size_um=mpp[0] if square else None,
        chunk=(tile[0], tile[1]),
        read=read,
        bands_apart=False,
    )
