"""Label images, written tile by tile: a number for each pixel, with names and colours of the numbers.

    with LabelWriter(folder / "slide7.ome.tif", height, width, names=("background", "tumour")) as writer:
        writer.write(y, x, labels)

The tiles gather in an unnamed file beside the target, so that memory does not grow with the image; the image appears
under its name when the block ends well, and not at all when it ends with an exception.
"""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError, StorageFull
from cairn.images.label_tiff import write_tiff
from cairn.images.label_zarr import write_zarr
from cairn.images.pyramid import TILE, Labels, Level, reduced
from cairn.palette import BACKGROUND, cluster_colour


class LabelWriter:
    """Write a label image as a pyramid: OME-TIFF, or OME-Zarr 0.4 for a path that ends in `.zarr`.

    names          of the values 0, 1, …; 1 to 256
    colours        hex colours of the same; by default those of the clusters, after the background's
    pixel_size_um  side of a pixel in µm, None when unknown
    Pixels never written are 0. Raises ImageError, StorageFull.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        *,
        depth: int = 1,
        pixel_size_um: float | None = None,
        names: Sequence[str] = ("background",),
        colours: Sequence[str] | None = None,
    ) -> None:
        chosen = tuple(colours) if colours else (BACKGROUND, *(cluster_colour(i) for i in range(len(names) - 1)))
        if min(height, width, depth) < 1 or not 1 <= len(names) <= 256 or len(chosen) != len(names):
            raise ImageError(
                f"{path.name}: {width} × {height} × {depth} labels with {len(names)} names and {len(chosen)} colours; "
                "expected at least one pixel, and 1 to 256 names with a colour each"
            )
        self._path = path
        self._about = Labels(tuple(names), chosen, pixel_size_um)
        self._shape = (depth, height, width)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with explained(self._path):
            file = self._stack.enter_context(scratch_beside(self._path))
            self._level = Level(file, *self._shape)
        return self

    def write(self, y: int, x: int, tile: npt.NDArray[np.uint8], z: int = 0) -> None:
        """Put a tile in its place; later tiles overwrite earlier ones.

        tile  uint8[h, w], wholly within the image, each value with a name
        """
        depth, height, width = self._shape
        h, w = tile.shape if tile.ndim == 2 else (height + 1, 0)
        if tile.dtype != np.uint8 or not (0 <= z < depth and 0 <= y <= height - h and 0 <= x <= width - w):
            raise ImageError(
                f"{self._path.name}: labels {tile.dtype}{tile.shape} at slice {z}, row {y}, column {x} do not fit "
                f"uint8({depth}, {height}, {width})"
            )
        if tile.max(initial=0) >= len(self._about.names):
            raise ImageError(f"{self._path.name}: label {tile.max()} has no name among {len(self._about.names)}")
        with explained(self._path):
            self._level.write(z, y, x, tile)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is not None:
                return
            with explained(self._path):
                levels = [self._level]
                while max(levels[-1].height, levels[-1].width) > TILE:
                    levels.append(reduced(levels[-1], self._stack.enter_context(scratch_beside(self._path))))
                (write_zarr if self._path.suffix == ".zarr" else write_tiff)(self._path, levels, self._about)


@contextmanager
def scratch_beside(path: Path) -> Iterator[BinaryIO]:
    """Open a file without a name on the disk that the image will be on; it vanishes with the process."""
    with tempfile.TemporaryFile(dir=path.parent) as file:
        yield file


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a disk's failure into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{path.name}: no room for the label image; free some and run again") from error
        reason = os.strerror(error.errno) if error.errno else "unknown cause"
        raise ImageError(f"{path.name}: the label image cannot be written ({reason})") from error
