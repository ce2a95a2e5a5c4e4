"""Images as hospitals have them too: every one of them is a file that a site cannot count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

SIDE = 96


@dataclass(frozen=True)
class Bad:
    """A bad image: how it is made, what its own site says of it, and what the aggregator is told.

    make  writes it to a path, with these bands
    """

    make: Callable[[Path, Sequence[str]], None]
    detail: str
    kind: str


def write(path: Path, bands: Sequence[str], values: np.ndarray, compression: str | None = None) -> None:
    """Write a tiled OME-TIFF with named bands."""
    about = {"axes": "CYX", "Channel": {"Name": list(bands)}}
    tifffile.imwrite(path, values, tile=(32, 32), metadata=about, ome=True, compression=compression)


def counts(bands: Sequence[str], side: int = SIDE) -> np.ndarray:
    """Draw what a camera might have seen; uint16[bands, side, side]."""
    return np.random.default_rng(5).integers(0, 60_000, (len(bands), side, side)).astype(np.uint16)


def truncated(path: Path, bands: Sequence[str]) -> None:
    write(path, bands, counts(bands))
    path.write_bytes(path.read_bytes()[:-20_000])


def corrupt(path: Path, bands: Sequence[str]) -> None:
    write(path, bands, counts(bands), "zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[1].dataoffsets[4], tiff.pages[1].databytecounts[4]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)


def not_a_number(path: Path, bands: Sequence[str]) -> None:
    values = counts(bands).astype(np.float32)
    values[-1, 90, 90] = np.nan
    write(path, bands, values)


def empty(path: Path, _bands: Sequence[str]) -> None:
    path.write_bytes(b"")


BAD = {
    "truncated.ome.tif": Bad(truncated, "truncated", "an image could not be read"),
    "corrupt.ome.tif": Bad(corrupt, "corrupt", "an image could not be read"),
    "complex.ome.tif": Bad(
        lambda path, bands: write(path, bands, counts(bands).astype(np.complex64)),
        "expected real numbers",
        "an image could not be read",
    ),
    "not-a-number.ome.tif": Bad(not_a_number, "not a number", "an image holds values that cannot be counted"),
    "empty.ome.tif": Bad(empty, "empty", "an image could not be read"),
    "fewer-bands.ome.tif": Bad(
        lambda path, bands: write(path, bands[:-1], counts(bands[:-1])),
        "missing",
        "an image lacks",
    ),
}
