"""A folder of single-channel TIFFs as one image; the files' stems name the bands (MIBI, IMC and CODEX exports)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from cairn.errors import ImageError
from cairn.images.formats.tiff import open_tiff
from cairn.images.image import Image, Opening, Values, Window
from cairn.images.source import ImageSource


@contextmanager
def open_tiff_folder(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open the files together; all must be alike in size and type. Raises ImageError."""
    with ExitStack() as stack:
        one = Opening(decoders=1)  # several files are decoded at once instead
        files = [stack.enter_context(open_tiff(ImageSource(path.name, (path,), "tiff"), one)) for path in source.paths]
        first = files[0]
        for image in files:
            if len(image.bands) != 1 or image.depth != 1:
                raise ImageError(
                    f"{image.name}: found {len(image.bands)} channels, {image.depth} slices; expected one channel"
                )
            if (image.height, image.width, image.dtype) != (first.height, first.width, first.dtype):
                raise ImageError(
                    f"{image.name}: found {image.width} × {image.height} {image.dtype} beside {first.name} of "
                    f"{first.width} × {first.height} {first.dtype}; expected all channels of a folder alike"
                )

        pool = stack.enter_context(ThreadPoolExecutor(how.decoders))

        def read(bands: Sequence[int], at: Window) -> Values:
            out = np.empty((len(bands), at.h, at.w), first.dtype)
            for slot, values in enumerate(pool.map(lambda band: files[band].read([0], at)[0], bands)):
                out[slot] = values
            return out

        names = tuple(path.name.rsplit(".", 1)[0] for path in source.paths)
        yield replace(first, name=source.name, bands=names, read=read, bands_apart=True)
