"""The smaller copies of an image that a TIFF holds: SubIFDs (OME-TIFF) or pages of their own (SVS, QPTIFF, plain)."""

from collections.abc import Sequence
from itertools import groupby

from tifffile import TiffPage

from cairn.images.formats.tiff_layout import Layout, Place

ASPECT = 0.02  # by which a copy's proportions may differ: halves are rounded, thumbnails fitted


def smaller_layouts(pages: Sequence[TiffPage], layout: Layout) -> list[Layout]:
    """Lay out each smaller copy as the image is laid out, largest first.

    A page is a copy of the image's when it is in tiles and has its samples, type and proportions: the pictures of the
    label and of the whole glass that scanners add are neither. Of an SVS the second page is one too, its thumbnail.
    """
    bases = list({int(place.page.offset): place.page for row in layout.planes for place in row}.values())
    nested = [[page for page in base.pages or () if isinstance(page, TiffPage)] for base in bases]
    groups = list(map(list, zip(*nested, strict=False))) if all(nested) else _beside(pages, bases)
    found = []
    for group in groups:
        if len(group) == len(bases) and all(map(is_copy, group, bases)):
            of = {int(base.offset): page for base, page in zip(bases, group, strict=True)}
            planes = tuple(tuple(Place(of[int(p.page.offset)], p.sample) for p in row) for row in layout.planes)
            found.append(Layout(layout.bands, planes))
    return sorted(found, key=lambda one: -int(one.planes[0][0].page.imagewidth))


def _beside(pages: Sequence[TiffPage], bases: Sequence[TiffPage]) -> list[list[TiffPage]]:
    """Group the other pages by size; within a size they are in the order of the bands."""
    taken = {int(base.offset) for base in bases}
    thumbnail = pages[1:2] if str(pages[0].description).startswith("Aperio") else ()
    others = [page for page in pages if int(page.offset) not in taken and (page.is_tiled or page in thumbnail)]
    by_size = sorted(others, key=lambda page: (int(page.imagewidth), int(page.imagelength), int(page.index)))
    return [list(group) for _, group in groupby(by_size, key=lambda page: (page.imagewidth, page.imagelength))]


def is_copy(page: TiffPage, base: TiffPage) -> bool:
    """Tell whether a page can be a smaller copy of another."""
    height, width = int(page.imagelength), int(page.imagewidth)
    alike = page.dtype == base.dtype and page.samplesperpixel == base.samplesperpixel
    ratio = height * int(base.imagewidth) / max(1, width * int(base.imagelength))
    # One pixel more or less of a tiny copy is no other proportion.
    near = abs(ratio - 1) <= max(ASPECT, 1 / max(1, min(height, width)))
    return bool(alike and near and width < int(base.imagewidth))
