"""A source: the file or files that make one image, named before anything is opened."""

import os
import stat as stat_bits
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import ImageError


@dataclass(frozen=True)
class ImageSource:
    """One image's place on the disk.

    id      path relative to the site's folder, with forward slashes; stays the same when other images arrive
    paths   the files, in the order of bands or slices; for OME-Zarr the one directory
    format  a key of `cairn.images.OPENERS`
    """

    id: str
    paths: tuple[Path, ...]
    format: str

    @property
    def name(self) -> str:
        """Return the last part of the id, for messages."""
        return self.id.rsplit("/", 1)[-1]

    def stamp(self) -> tuple[int, int]:
        """Return the size and modification time over all files; another stamp means that the image changed.

        bytes, summed; nanoseconds, summed mod 2^63 over files (so that a file put back with an older time shows too).
        Raises ImageError when a file is gone.
        """
        size = mtime = 0
        for found in self._stats():
            size, mtime = size + found.st_size, mtime + found.st_mtime_ns
        return size, mtime % 2**63

    @property
    def raw_bytes(self) -> int:
        """Sum of the file sizes."""
        return self.stamp()[0]

    def _stats(self) -> Iterator[os.stat_result]:
        try:
            for path in self.paths:
                found = path.stat()
                if not stat_bits.S_ISDIR(found.st_mode):
                    yield found
                    continue
                for folder, _, names in os.walk(path):
                    for file in names:
                        yield (Path(folder) / file).stat()
        except OSError as error:
            raise ImageError(f"{self.name}: no such file any more; expected it to stay while it is read") from error
