"""A pyramid of labels as OME-Zarr 0.4 (zarr format 2), the version that most viewers read."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cairn.files import sync_folder
from cairn.images.pyramid import TILE, Labels, Level
from cairn.palette import rgb


def write_zarr(path: Path, levels: Sequence[Level], about: Labels) -> None:
    """Write the levels as a directory, whole or not at all; one of the same name is replaced. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(part, path.name, levels, about)
        for folder, _, names in os.walk(part):
            for name in names:
                sync_folder(Path(folder) / name)
            sync_folder(Path(folder))
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.replace(old)
        part.replace(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fill(folder: Path, name: str, levels: Sequence[Level], about: Labels) -> None:
    """Write group, metadata (ngff.openmicroscopy.org/0.4) and arrays."""
    import zarr  # noqa: PLC0415 - who writes no OME-Zarr starts without it

    group = zarr.open_group(folder, mode="w", zarr_format=2)
    size = about.pixel_size_um
    axes = [{"name": axis, "type": "space"} | ({"unit": "micrometer"} if size else {}) for axis in "zyx"]
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [{"type": "scale", "scale": [1.0, *[(size or 1.0) * 2.0**number] * 2]}],
        }
        for number in range(len(levels))
    ]
    group.attrs.update(
        {
            "multiscales": [{"version": "0.4", "name": name, "type": "nearest", "axes": axes, "datasets": datasets}],
            "image-label": {
                "version": "0.4",
                "colors": [{"label-value": i, "rgba": [*rgb(colour), 255]} for i, colour in enumerate(about.colours)],
                "properties": [{"label-value": i, "name": label} for i, label in enumerate(about.names)],
            },
        }
    )
    for number, level in enumerate(levels):
        array = group.create_array(
            str(number),
            shape=(level.depth, level.height, level.width),
            chunks=(1, TILE, TILE),
            dtype=np.uint8,
            compressors={"id": "zstd", "level": 3},
            chunk_key_encoding={"name": "v2", "separator": "/"},
            fill_value=0,
        )
        for z in range(level.depth):
            for y in range(0, level.height, TILE):
                array[z, y : y + TILE] = level.rows(z, y, TILE)
