"""DICOM whole-slide images: the full-resolution level of a series, by wsidicom."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from wsidicom import WsiDicom
from wsidicom.config import Settings

from cairn.errors import ImageError
from cairn.images.image import Image, Opening, Values, Window
from cairn.images.reading import bands_first, explained
from cairn.images.source import ImageSource

# Tiles are read once, so a cache need only bridge neighbours; its default is 100 MB each.
SETTINGS = Settings(decoded_frame_cache_size=4 << 20, encoded_frame_cache_size=4 << 20)


@contextmanager
def open_dicom_slide(source: ImageSource, how: Opening) -> Iterator[Image]:
    """Open the files of a slide. Bands are R, G, B, or the optical paths of a fluorescence slide. Raises ImageError."""
    _ = how
    name = source.name
    with ExitStack() as stack:
        with explained(name, "corrupt or truncated, its levels cannot be read; copy or export the slide again"):
            slide = stack.enter_context(WsiDicom.open(source.paths, settings=SETTINGS))
            if len(slide.files) != len(source.paths):  # it passes over files that it cannot read
                raise ImageError(
                    f"{name}: {len(source.paths) - len(slide.files)} of the slide's {len(source.paths)} files cannot "
                    "be read; copy or export it again"
                )
            level = slide.pyramid.base_level
            planes = sorted(level.focal_planes)
            data = level.default_instance.image_data
            colour = data.samples_per_pixel == 3
            paths = list(level.optical_paths) if colour else paths_in_order(level, name)
            if colour and len(paths) > 1:
                raise ImageError(f"{name}: found {len(paths)} optical paths in colour; expected one")
            bands = ("R", "G", "B") if colour else path_names(level, paths)
            dtype, mpp = np.dtype(data.dtype), level.mpp
            size, tile = level.size, level.tile_size

        def read(wanted: Sequence[int], at: Window) -> Values:
            where: dict[str, Any] = {
                "location": (at.x, at.y),
                "level": level.level,
                "size": (at.w, at.h),
                "z": planes[at.z],
            }
            if colour:
                values = slide.read_region(**where, path=paths[0], threads=1, as_array=True)
                return bands_first(values, wanted)
            out = np.empty((len(wanted), at.h, at.w), dtype)
            for slot, band in enumerate(wanted):
                out[slot] = slide.read_region(**where, path=paths[band], threads=1, as_array=True).reshape(at.h, at.w)
            return out

        square = mpp is not None and abs(mpp.width - mpp.height) <= 0.01 * mpp.width
        yield Image(
            name=name,
            bands=bands,
            depth=len(planes),
            height=size.height,
            width=size.width,
            dtype=dtype,
            pixel_size_um=float(mpp.width) if square else None,
            chunk=(tile.height, tile.width),
            read=read,
            bands_apart=not colour,
        )


def paths_in_order(level: Any, name: str) -> list[str]:
    """List the identifiers of optical paths: files by their InstanceNumber, in each as its OpticalPathSequence does.

    That is the order in which a file's frames lie (PS3.3 C.7.6.17.3), and what a band's index means in a mapping;
    wsidicom's own list comes out of a set, so in another order in every process. Identifiers are unique in one file
    only (PS3.3 C.8.12.5), and wsidicom would read one of two files that share one. Raises ImageError then.
    """
    seen: set[tuple[str, float]] = set()
    paths: dict[str, None] = {}
    numbered = {
        uid: min(int(dataset.as_dataset().get("InstanceNumber") or 0) for dataset in instance.datasets)
        for uid, instance in level.instances.items()
    }
    for uid in sorted(numbered, key=lambda uid: numbered[uid]):
        instance = level.instances[uid]
        here = [(path, plane) for path in instance.optical_paths for plane in instance.focal_planes]
        twice = any(
            len(set(one.optical_path_identifiers)) < len(one.optical_path_identifiers) for one in instance.datasets
        )
        if twice or not seen.isdisjoint(here):
            raise ImageError(
                f"{name}: found several optical paths under one identifier; expected an OpticalPathIdentifier of its "
                "own for each, export the slide again"
            )
        seen.update(here)
        paths.update(dict.fromkeys(instance.optical_paths))
    return list(paths)


def path_names(level: Any, paths: list[str]) -> tuple[str, ...]:
    """Name optical paths by their descriptions where these tell them apart, else by their identifiers."""
    described = {
        str(path.OpticalPathIdentifier): str(path.get("OpticalPathDescription", ""))
        for dataset in level.datasets
        for path in dataset.as_dataset().get("OpticalPathSequence", [])
    }
    names = [described.get(path, "") for path in paths]
    return tuple(names if "" not in names and len(set(names)) == len(names) else paths)
