"""A pyramid of labels as one OME-TIFF: tiled, deflated, smaller levels as SubIFDs, colours as the TIFF's palette."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import FileHandle, TiffWriter

from cairn.files import write_atomically
from cairn.images.pyramid import TILE, Labels, Level
from cairn.palette import rgb


def write_tiff(path: Path, levels: Sequence[Level], about: Labels) -> None:
    """Write the levels, whole or not at all. Raises OSError."""
    colours = np.zeros((3, 256), np.uint16)
    for value, colour in enumerate(about.colours):
        colours[:, value] = np.array(rgb(colour), np.uint16) * 257
    stored: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "photometric": "palette",
        "colormap": colours,
        "buffersize": 16 << 20,
        "maxworkers": 2,
    }
    names = {f"label {value}": name for value, name in enumerate(about.names)}
    hues = {f"colour {value}": colour for value, colour in enumerate(about.colours)}
    metadata: dict[str, Any] = {
        "axes": "ZYX",
        "Name": path.name,
        "Channel": {"Name": ["labels"]},
        "MapAnnotation": {"Namespace": "cairn/labels/1", **names, **hues},
    }
    if about.pixel_size_um:
        for axis in "XY":
            metadata |= {f"PhysicalSize{axis}": about.pixel_size_um, f"PhysicalSize{axis}Unit": "µm"}
        stored |= {"resolution": (1e4 / about.pixel_size_um,) * 2, "resolutionunit": "CENTIMETER"}
    size = sum(level.depth * level.height * level.width for level in levels)
    with (
        write_atomically(path) as file,
        TiffWriter(FileHandle(file, name=path.name, size=0), ome=True, bigtiff=size > 2**31) as writer,
    ):
        for number, level in enumerate(levels):
            shape = (level.depth, level.height, level.width)
            if number == 0:
                writer.write(level.tiles(), shape=shape, subifds=len(levels) - 1, metadata=metadata, **stored)
            else:
                half = {"resolution": (1e4 / about.pixel_size_um / 2**number,) * 2} if about.pixel_size_um else {}
                writer.write(level.tiles(), shape=shape, subfiletype=1, metadata=None, **(stored | half))
