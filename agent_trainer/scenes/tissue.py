"""Scenes from the label images of a codebook: paper 1, §IV, four sequential slices of the binary tumour map."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tifffile import TiffFile

from agent_trainer.scenes.landmarks import Found
from agent_trainer.scenes.pixels import coarser, four_slices, known_spacing, read_picture
from agent_trainer.scenes.scene import Pixels, Place, Scene
from agent_trainer.scenes.settings import LabelImages
from cairn.errors import ImageError
from cairn.images import ImageSource, find_images
from cairn.images.formats.ome import parse_xml
from cairn.images.reading import explained

SLICES = 4
HALF = 128  # of a pixel made coarser: at least half of it is of the state


@dataclass(frozen=True)
class _Map:
    """The binary map of one label image: uint8[depth, height, width], 255 for 1; coarser pixels hold shares."""

    name: str
    folder: str
    values: Pixels
    spacing_mm: tuple[float, ...]


def label_scenes(settings: LabelImages, axes: int) -> Found:
    """Make the scenes of a folder of label images; images without the state give a sentence each.

    axes  3 searches the whole stack, one channel; 2 four sequential slices
    Raises ImageError when there is no such folder.
    """
    maps: list[_Map] = []
    problems: list[str] = []
    for source in find_images(settings.folder):
        if fnmatchcase(source.name, settings.pattern):
            try:
                maps.append(_read(settings, source, axes))
            except ImageError as error:
                problems.append(str(error))
    scenes: list[tuple[Scene, str | None]] = []
    for name, channels, spacing in _stacks(maps, axes, settings.sequence):
        centre = largest_centre(channels[0] if axes == 3 else channels, axes, settings.centre)
        if centre is None:
            problems.append(f"{name}: no pixel is {settings.state}, so there is no region to search")
        else:
            scenes.append((Scene(name, settings.task, channels, spacing, centre * spacing), None))
    return Found(tuple(scenes), tuple(problems))


def _read(settings: LabelImages, source: ImageSource, axes: int) -> _Map:
    names = label_names(source)
    if settings.state not in names:
        raise ImageError(
            f"{source.name}: no label is named {settings.state}, it has {', '.join(names) or 'no names'}; expected a "
            "label image that Cairn wrote, and the name of a state"
        )
    picture = read_picture(source)
    if axes == 3 and picture.values.shape[0] == 1:
        raise ImageError(f"{source.name}: found one slice; expected a stack, as the run searches in three axes")
    spacing = known_spacing(source.name, picture, settings.spacing_mm, axes)
    ones = np.where(picture.values == names.index(settings.state), np.uint8(255), np.uint8(0))
    # Slices stay slices in two axes; in three the stack is made coarser as a whole.
    stack, spacing, _ = coarser(ones if axes == 2 else ones[np.newaxis], spacing, settings.pixel_mm)
    values = np.asarray(np.rint(stack), np.uint8).reshape(-1, *stack.shape[-2:])
    return _Map(source.id, source.id[: -len(source.name)], values, spacing)


def _stacks(maps: Sequence[_Map], axes: int, sequence: str) -> Iterator[tuple[str, Pixels, tuple[float, ...]]]:
    """Put slices together: the image's name, uint8[channels, (z,) y, x] and the spacing of each scene."""
    for one in _blocks(maps) if sequence == "folder" and axes == 2 else maps:
        if axes == 3:
            yield one.name, one.values[np.newaxis], one.spacing_mm
            continue
        depth = len(one.values)
        for first in range(0, depth, SLICES):
            yield one.name, one.values[four_slices(depth, first + 1)], one.spacing_mm


def _blocks(maps: Sequence[_Map]) -> list[_Map]:
    """Join consecutive images of one folder, size and spacing, four at a time; the last four's rest stays shorter."""
    blocks: list[_Map] = []
    for one in maps:
        last = blocks[-1] if blocks else None
        alike = last is not None and (last.folder, last.values.shape[1:], last.spacing_mm) == (
            one.folder,
            one.values.shape[1:],
            one.spacing_mm,
        )
        if last is not None and alike and len(last.values) + len(one.values) <= SLICES:
            blocks[-1] = _Map(last.name, last.folder, np.concatenate([last.values, one.values]), last.spacing_mm)
        else:
            blocks.append(one)
    return blocks


def largest_centre(values: Pixels, axes: int, centre: Literal["mass", "inmost"] = "mass") -> Place | None:
    """Return the centre of the largest connected region, float64[axes] in px; None when there is none.

    values  uint8[(slices,) …], of which slices too are connected; a pixel belongs to a region when half of it does
    axes    how many of the last ones are wanted
    centre  "mass": the mean of its pixels, which may lie outside; "inmost": its pixel farthest from its border, of the
            region as seen through all slices
    Of equally large regions the first.
    """
    regions, count = ndimage.label(values >= HALF)
    if count == 0:
        return None
    sizes: npt.NDArray[np.int64] = np.bincount(regions.ravel())
    sizes[0] = 0
    region: npt.NDArray[np.bool_] = regions == sizes.argmax()
    if centre == "mass":
        return np.asarray(ndimage.center_of_mass(region), np.float64)[-axes:]
    seen = region.any(axis=0) if region.ndim > axes else region
    # A border of background all round: what the image cuts off does not count as inside.
    depth = ndimage.distance_transform_edt(np.pad(seen, 1))
    return np.array(np.unravel_index(depth.argmax(), depth.shape), np.float64) - 1


def label_names(source: ImageSource) -> list[str]:
    """Read what the values of a label image mean, value 0 first; [] where Cairn did not write it. Raises ImageError."""
    path = source.paths[0]
    with explained(source.name, "its label names cannot be read; expected a label image that Cairn wrote"):
        if path.is_dir():
            about = json.loads((path / ".zattrs").read_text(encoding="utf-8")).get("image-label", {})
            named = {int(one["label-value"]): str(one.get("name", "")) for one in about.get("properties", [])}
        else:
            with TiffFile(path) as tiff:
                text = tiff.ome_metadata
            entries = parse_xml(text, source.name).iter("M") if text else ()
            named = {
                int(str(one.get("K"))[6:]): one.text or "" for one in entries if str(one.get("K")).startswith("label ")
            }
    return [named.get(value, "") for value in range(max(named, default=-1) + 1)]
