"""Images of many formats, read tile by tile; label images, written tile by tile.

    for source in find_images(folder):
        with open_image(source, {"CD45": "channel 3"}) as image:
            for tile in image.tiles(["CD45", "DAPI"]):
                ...

Every failure is an `ImageError` of one sentence that begins with the file's name; other images can still be read.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import cast

from cairn.errors import ImageError
from cairn.images.find import find_image, find_images
from cairn.images.gpu_decoding import GpuDecoder
from cairn.images.image import DECODERS, BandMapping, Image, Opening, RawLayout, Tile
from cairn.images.reading import explained
from cairn.images.source import ImageSource

__all__ = [
    "DECODERS",
    "OPENERS",
    "BandMapping",
    "Image",
    "ImageSource",
    "RawLayout",
    "Tile",
    "find_image",
    "find_images",
    "open_image",
]

# Format -> module and function. Imported when asked for, as each brings its own large library.
OPENERS = {
    "tiff": ("cairn.images.formats.tiff", "open_tiff"),
    "tiff-folder": ("cairn.images.formats.tiff_folder", "open_tiff_folder"),
    "raw": ("cairn.images.formats.raw", "open_raw"),
    "raster": ("cairn.images.formats.raster", "open_raster"),
    "nifti": ("cairn.images.formats.nifti", "open_nifti"),
    "zarr": ("cairn.images.formats.ome_zarr", "open_zarr"),
    "dicom": ("cairn.images.formats.dicom", "open_dicom"),
    "slide": ("cairn.images.formats.slide", "open_slide"),
    "dicom-slide": ("cairn.images.formats.dicom_slide", "open_dicom_slide"),
}


@contextmanager
def open_image(
    source: ImageSource,
    bands: BandMapping | None = None,
    raw: RawLayout | None = None,
    decoders: int = DECODERS,
    gpu: GpuDecoder | None = None,
) -> Iterator[Image]:
    """Open an image for as long as the context lasts.

    bands     wanted name -> name (or index from 0) in this site's files, for names that differ; None or {} maps nothing
    raw       shape of files without a header, default AstroPath's
    decoders  threads that decode the parts of an image
    gpu       decodes what it gives the same values of as the CPU
    Raises ImageError.
    """
    if source.format not in OPENERS:
        raise ImageError(f"{source.name}: cannot be listed or read; grant read permission")
    for path in source.paths:
        with explained(path.name):
            if path.stat().st_size == 0:
                raise ImageError(f"{path.name}: found an empty file; expected an image")
    module, function = OPENERS[source.format]
    opener = cast(
        Callable[[ImageSource, Opening], AbstractContextManager[Image]], getattr(import_module(module), function)
    )
    with opener(source, Opening(raw or RawLayout(), decoders, gpu)) as image:
        yield replace(image, mapping=dict(bands or {}))
