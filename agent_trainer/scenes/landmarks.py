"""Where landmarks lie, by a file that a person or another program wrote.

CSV    one row a landmark: image, task, x_mm, y_mm and in volumes z_mm; or one row an image: image and a pair (or
       triple) of columns xNAME, yNAME (, zNAME) for each landmark. A column `split` says what a row is for.
JSON   a list of objects with the fields of the first kind of CSV.
masks  a folder of label images named like the images; a landmark is the centre of all pixels of one value.

Places are in mm along the image's own axes, x along rows, from the centre of the first pixel: not in a scanner's
coordinates.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.scenes.pixels import (
    TOGETHER,
    Picture,
    coarser,
    four_slices,
    image_named,
    images_by_name,
    known_spacing,
    read_picture,
)
from agent_trainer.scenes.scene import Scene, as_bytes
from agent_trainer.scenes.settings import LandmarkFiles
from agent_trainer.tables import read_rows
from cairn.errors import CairnError, ImageError
from cairn.images import ImageSource


@dataclass(frozen=True)
class Landmark:
    """One entry.

    place_mm  (y, x) or (z, y, x)
    split     of the file's column, None without one
    """

    image: str
    name: str
    place_mm: tuple[float, ...]
    split: str | None = None


@dataclass(frozen=True)
class Found:
    """What a source gives.

    scenes    of the run's tasks, each with what the source says it is for (None: it does not say)
    problems  sentences on what failed
    others    tasks that it has and the run does not
    """

    scenes: tuple[tuple[Scene, str | None], ...]
    problems: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()


def landmark_scenes(settings: LandmarkFiles, axes: int, tasks: Sequence[str], only: str | None = None) -> Found:
    """Make a scene of every landmark of the run's tasks; all of an image's share its pixels.

    axes  2 or 3; a volume in a run of two axes gives the slice that the landmark lies in
    only  the one image to read, by its id; None reads all
    Raises ImageError when the landmark file or a folder as a whole cannot be read.
    """
    images = images_by_name(settings.images)
    entries: dict[str, list[Landmark]] = defaultdict(list)
    sources: dict[str, ImageSource] = {}
    problems: list[str] = []
    others: set[str] = set()
    of_name = None if settings.tasks is None else {name: task for task, name in settings.tasks.items()}
    read = masks(settings.landmarks, settings) if settings.landmarks.is_dir() else read_file(settings.landmarks)
    for entry in read:
        if isinstance(entry, str):
            problems.append(entry)
            continue
        task = entry.name if of_name is None else of_name.get(entry.name)
        if task is None:
            continue  # the settings name the landmarks to take, and this is none of them
        if task not in tasks:
            others.add(task)
            continue
        try:
            source = image_named(entry.image, images)
        except ImageError as error:
            problems.append(str(error))
            continue
        if only is not None and source.id != only:
            continue
        sources[source.id] = source
        if any(task == other.name for other in entries[source.id]):
            problems.append(f"{source.name}: {entry.name} has two places; expected one, the first is taken")
            continue
        entries[source.id].append(Landmark(source.id, task, entry.place_mm, entry.split))
    scenes: list[tuple[Scene, str | None]] = []
    for name, landmarks in entries.items():
        made = scenes_of_image(settings, sources[name], landmarks, axes)
        scenes += [one for one in made if not isinstance(one, str)]
        problems += [one for one in made if isinstance(one, str)]
    return Found(tuple(scenes), tuple(dict.fromkeys(problems)), frozenset(others))


def scenes_of_image(
    settings: LandmarkFiles, source: ImageSource, landmarks: Sequence[Landmark], axes: int
) -> list[tuple[Scene, str | None] | str]:
    """Read one image and make its scenes, or sentences where that fails."""
    try:
        prepared = prepare(settings, source, axes)
    except CairnError as error:
        return [str(error)]
    made: list[tuple[Scene, str | None] | str] = []
    for landmark in landmarks:
        try:
            made.append((prepared.scene(landmark.name, landmark.place_mm), landmark.split))
        except CairnError as error:
            made.append(str(error))
    return made


@dataclass(frozen=True)
class Prepared:
    """An image ready to become scenes.

    values      uint8[(z,) y, x]
    spacing_mm  of its axes
    shift_mm    of the first pixel's centre from where the file has it
    """

    name: str
    values: Any
    spacing_mm: tuple[float, ...]
    shift_mm: tuple[float, ...]
    axes: int
    slices: int

    def scene(self, task: str, place_mm: tuple[float, ...] | None) -> Scene:
        """Make a scene; without a place one whose landmark nobody knows. Raises ImageError."""
        if place_mm is not None and len(place_mm) != self.values.ndim:
            raise ImageError(
                f"{self.name}: the landmark of {task} has {len(place_mm)} coordinates; expected {self.values.ndim}, "
                "x_mm and y_mm and, in a volume, z_mm"
            )
        at = None if place_mm is None else np.array(place_mm) - self.shift_mm
        if self.values.ndim == self.axes:
            channels = self.values[np.newaxis]
            if self.slices == 4:
                channels = np.repeat(channels, 4, axis=0)
            return Scene(self.name, task, channels, self.spacing_mm, at)
        depth = len(self.values)
        z = depth // 2 if at is None else int(np.rint(at[0] / self.spacing_mm[0])) if np.isfinite(at[0]) else -1
        if not 0 <= z < depth:
            raise ImageError(
                f"{self.name}: the landmark of {task} lies outside the image, in none of its {depth} slices"
            )
        chosen = four_slices(depth, z) if self.slices == 4 else [z]
        return Scene(self.name, task, self.values[chosen], self.spacing_mm[1:], None if at is None else at[1:])


def prepare(settings: LandmarkFiles, source: ImageSource, axes: int) -> Prepared:
    """Read an image, make it coarser and bring it to bytes. Raises ImageError."""
    picture = read_picture(source, settings.band)
    deep = picture.values.shape[0] > 1
    if axes == 3 and not deep:
        raise ImageError(f"{source.name}: found one slice; expected a volume, as the run searches in three axes")
    values = picture.values if deep else picture.values[0]
    spacing = known_spacing(source.name, picture, settings.spacing_mm, values.ndim)
    stack, spacing, shift = coarser(values[np.newaxis], spacing, settings.pixel_mm)
    return Prepared(source.id, as_bytes(stack[0], source.name), spacing, shift, axes, settings.slices)


def read_file(path: Path) -> Iterator[Landmark | str]:
    """Read a landmark file: entries, and sentences on rows that are none. Raises ImageError when there is no sense."""
    columns, rows = read_rows(path, "landmarks", '{"image": …, "task": …, "x_mm": …, "y_mm": …}')
    named = _columns(columns, path.name)
    for number, row in enumerate(rows, start=1):
        yield from _entries(row, named, f"{path.name}: row {number}")


def _columns(columns: Sequence[str], name: str) -> Mapping[str, tuple[str, ...]]:
    """Find each landmark's columns, by its name, in the order of the axes; "" is the landmark that a row names itself.

    Raises ImageError.
    """
    if "image" in columns and {"task", "x_mm", "y_mm"} <= set(columns):
        return {"": ("z_mm", "y_mm", "x_mm") if "z_mm" in columns else ("y_mm", "x_mm")}
    wide = {
        column[1:]: tuple(axis + column[1:] for axis in "zyx" if axis + column[1:] in columns)
        for column in columns
        if len(column) > 1 and column[0] == "x" and "y" + column[1:] in columns
    }
    if "image" not in columns or not wide:
        raise ImageError(
            f"{name}: found the columns {', '.join(columns) or '(none)'}; expected image, task, x_mm, y_mm (, z_mm), "
            "or image and x1, y1, x2, y2, …"
        )
    return wide


def _entries(row: Mapping[str, Any], named: Mapping[str, tuple[str, ...]], place: str) -> Iterator[Landmark | str]:
    image, split = row.get("image"), row.get("split")
    if not image:
        yield f"{place} names no image"
        return
    for name, columns in named.items():
        task = name or str(row.get("task") or "").strip()
        if not task:
            yield f"{place} names no task"
            continue
        cells = [row.get(column) for column in columns]
        if cells[0] in (None, "") and len(cells) == 3:  # no z: a plane among volumes
            cells, columns = cells[1:], columns[1:]
        if all(cell in (None, "") for cell in cells):
            continue  # this landmark was not set in this image
        try:
            at = tuple(float(str(cell)) for cell in cells)
        except ValueError:
            yield f"{place}: {' and '.join(reversed(columns))} are not all numbers; expected mm"
            continue
        yield Landmark(str(image).strip(), task, at, str(split).strip() if split else None)


def masks(folder: Path, settings: LandmarkFiles) -> Iterator[Landmark | str]:
    """Find the centre of each value in each mask of a folder; names are the values. Sentences for masks unread."""
    for source in {source.id: source for source in images_by_name(folder).values()}.values():
        if source.format == TOGETHER:
            continue  # its files are masks, each for an image of its own
        try:
            picture = read_picture(source)
            yield from centres(source.id, picture, settings)
        except ImageError as error:
            yield str(error)


def centres(name: str, picture: Picture, settings: LandmarkFiles) -> Iterator[Landmark]:
    """Return the centre of each value above 0. Raises ImageError for a mask that is not whole numbers."""
    values = picture.values if picture.values.shape[0] > 1 else picture.values[0]
    spacing = known_spacing(name, picture, settings.spacing_mm, values.ndim)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise ImageError(f"{name}: found values that are no whole numbers; expected a mask, 0 and a number a landmark")
    at = np.nonzero(values)
    number = values[at].astype(np.int64)
    for value in np.unique(number).tolist():
        mean = [float(where[number == value].mean()) for where in at]
        yield Landmark(name, str(value), tuple(m * mm for m, mm in zip(mean, spacing, strict=True)))
