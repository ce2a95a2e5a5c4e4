"""OME-Zarr 0.1 to 0.5 (zarr formats 2 and 3): level 0 of the first multiscale image."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import zarr

from cairn.errors import ImageError
from cairn.images.image import CHUNK_BYTES, Image, Opening, Values, Window
from cairn.images.reading import explained
from cairn.images.source import ImageSource

AnyArray: TypeAlias = "zarr.Array[Any]"
MICROMETRES = {"meter": 1e6, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3}


@contextmanager
def open_zarr(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open an OME-Zarr directory. Raises ImageError.

    A chunk that is not there holds the fill value: the format does so by design, a lost file cannot be told from it.
    """
    name = source.name
    with explained(name, "corrupt or not OME-Zarr, its metadata cannot be read; expected multiscales"):
        group = zarr.open_group(source.paths[0], mode="r")
        about = dict(group.attrs.get("ome", group.attrs))
        scales = about["multiscales"][0]
        array = array_of(group, scales, 0, name)
        axes = axis_names(scales, array.ndim)
        size_um = pixel_size_of(scales, axes)
    with ThreadPoolExecutor(how.decoders) as pool:

        def levels() -> tuple[Image, ...]:
            with explained(name, "corrupt, its smaller copies cannot be opened; export it again"):
                found = [array_of(group, scales, place, name) for place in range(1, len(scales["datasets"]))]
                return tuple(replace(level_of(one, axes, name, pool), bands=image.bands) for one in found)

        image = level_of(array, axes, name, pool)
        yield replace(image, bands=band_names(about, len(image.bands)), pixel_size_um=size_um, levels=levels)


def array_of(group: zarr.Group, scales: dict[str, Any], level: int, name: str) -> AnyArray:
    """Open one level of a multiscale image. Raises ImageError, and whatever zarr raises."""
    array = group[scales["datasets"][level]["path"]]
    if not isinstance(array, zarr.Array):
        raise ImageError(f"{name}: its level {level} is no array; expected one")
    return array


def level_of(array: AnyArray, axes: list[str], name: str, pool: ThreadPoolExecutor) -> Image:
    """Describe one level; bands are numbered. Raises ImageError."""
    sizes = dict(zip(axes, array.shape, strict=True))
    chunks = dict(zip(axes, array.chunks, strict=True))
    if not {"y", "x"} <= set(axes) <= set("tczyx") or sizes.get("t", 1) != 1:
        raise ImageError(f"{name}: found axes {dict(sizes)}; expected c, z, y, x and one time point at most")
    dtype = np.dtype(array.dtype).newbyteorder("=")
    if dtype.kind in "uif" and dtype.itemsize * int(np.prod(list(chunks.values()), dtype=object)) > CHUNK_BYTES:
        raise ImageError(f"{name}: found chunks of {chunks}; expected at most {CHUNK_BYTES >> 20} MiB each")
    deep = chunks.get("c", 1)

    def one_chunk(job: tuple[int, list[tuple[int, int]], Window], at: Window, out: Values) -> None:
        part, slots, cell = job
        where = {
            "t": 0,
            "c": slice(part * deep, (part + 1) * deep),
            "z": cell.z,
            "y": slice(cell.y, cell.y + cell.h),
            "x": slice(cell.x, cell.x + cell.w),
        }
        values = np.asarray(array[tuple(where[axis] for axis in axes)])
        left = [axis for axis in axes if axis in "cyx"]  # in whatever order
        if "c" not in left:
            values, left = values[np.newaxis], ["c", *left]
        values = values.transpose([left.index(axis) for axis in "cyx"])
        y, x = cell.y - at.y, cell.x - at.x
        for slot, band in slots:
            out[slot, y : y + cell.h, x : x + cell.w] = values[band]

    def read(bands: Sequence[int], at: Window) -> Values:
        out = np.empty((len(bands), at.h, at.w), dtype)
        slots: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for slot, band in enumerate(bands):
            slots[band // deep].append((slot, band % deep))
        cells = list(cells_of(at, (chunks["y"], chunks["x"])))
        jobs = [(part, wanted, cell) for part, wanted in slots.items() for cell in cells]
        # Several chunks in one call are quicker, but when one of them is broken zarr leaves the others' tasks behind.
        list(pool.map(lambda job: one_chunk(job, at, out), jobs))
        return out

    return Image(
        name=name,
        bands=tuple(str(band) for band in range(sizes.get("c", 1))),
        depth=sizes.get("z", 1),
        height=sizes["y"],
        width=sizes["x"],
        dtype=dtype,
        chunk=(chunks["y"], chunks["x"]),
        read=read,
        bands_apart=deep == 1,
    )


def cells_of(at: Window, chunk: tuple[int, int]) -> Iterator[Window]:
    """Cut a window along the chunk grid."""
    for y in range(at.y // chunk[0] * chunk[0], at.y + at.h, chunk[0]):
        for x in range(at.x // chunk[1] * chunk[1], at.x + at.w, chunk[1]):
            top, left = max(y, at.y), max(x, at.x)
            yield Window(at.z, top, left, min(y + chunk[0], at.y + at.h) - top, min(x + chunk[1], at.x + at.w) - left)


def axis_names(scales: dict[str, Any], ndim: int) -> list[str]:
    """Name the axes; up to version 0.2 they were always the same five, in 0.3 plain names."""
    axes = scales.get("axes", list("tczyx"))
    names = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in axes]
    if len(names) != ndim:
        raise ValueError(f"{len(names)} axes named for {ndim}")
    return names


def band_names(about: dict[str, Any], bands: int) -> tuple[str, ...]:
    """Name the bands by the channels' labels."""
    omero = about.get("omero")
    channels = omero.get("channels", []) if isinstance(omero, dict) else []
    labels = [str(channel.get("label") or i) for i, channel in enumerate(channels) if isinstance(channel, dict)]
    return tuple(labels) if len(labels) == bands else tuple(str(i) for i in range(bands))


def pixel_size_of(scales: dict[str, Any], axes: list[str]) -> float | None:
    """Return the side of a pixel in µm, None without a unit or when it is not square."""
    named = {str(axis["name"]): str(axis.get("unit")) for axis in scales.get("axes", []) if isinstance(axis, dict)}
    for transform in scales["datasets"][0].get("coordinateTransformations", []):
        if transform.get("type") == "scale":
            y, x = (float(transform["scale"][axes.index(a)]) * MICROMETRES.get(named.get(a, ""), 0.0) for a in "yx")
            return x if x > 0 and abs(x - y) <= 0.01 * x else None
    return None
