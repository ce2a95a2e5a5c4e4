"""What a source says of its images: an entry each, and what is wrong in sentences of which none names a thousand files.

A label file never says where an image lies: its names are looked up among the images found in the source's folder, so
that no name leads out of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders, LabelledSource, Needles, PlainFolder
from agent_trainer.scenes.pixels import TOGETHER, images_by_name, taken_apart
from agent_trainer.tables import read_rows
from cairn.errors import ImageError
from cairn.images import ImageSource, find_images

NAMED = 3  # files that a sentence names


@dataclass(frozen=True)
class Entry:
    """An image and what its source says of it.

    name     its path within the source's folder
    word     the file's for what it shows
    patient  "" where nobody knows
    split    None where the source does not say
    """

    name: str
    path: Path
    word: str
    patient: str = ""
    group: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Said:
    """All that a source says, and sentences on what failed."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()


def read_source(source: LabelledSource) -> Said:
    """Read what a source says. Raises ImageError when it as a whole cannot be read."""
    match source:
        case LabelledFiles():
            return _files(source)
        case LabelledFolders():
            return _folders(source)
        case PlainFolder():
            return _plain(source)
        case Needles():
            from agent_trainer.labelled.needles import needle_files  # noqa: PLC0415  which imports the settings

            return Said(tuple(Entry(path.name, path, word) for path, word in needle_files(source)))


def named(names: Sequence[str]) -> str:
    """Write the first few of some names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def images(count: int, one: str, many: str) -> str:
    """Write "1 image is" or "2 images are"."""
    return f"{count} image {one}" if count == 1 else f"{count} images {many}"


def _files(source: LabelledFiles) -> Said:
    there = {name: image for name, image in images_by_name(source.images).items() if image.format != TOGETHER}
    columns, rows = read_rows(source.labels, "labels", '{"image": …, "label": …}')
    called = {column: source.columns.get(column, column) for column in ("image", "label", "split", "patient", "group")}
    file = source.labels.name
    missing = [name for column, name in called.items() if name not in columns]
    needed = [name for column, name in called.items() if column in ("image", "label", *source.columns)]
    if lost := [name for name in needed if name in missing]:
        raise ImageError(
            f"{file}: has no column {lost[0]}, but {', '.join(columns) or 'none'}; expected {' and '.join(needed)}, or "
            "say by columns what they are called"
        )
    if source.validation is not None and called["split"] in missing:
        raise ImageError(f"{file}: has no column {called['split']}, which is to say what is for validation")
    entries: list[Entry] = []
    unnamed, unlabelled, absent = 0, 0, []
    for row in rows:
        cells = {column: _cell(row, name) for column, name in called.items()}
        image = there.get(cells["image"])
        if not cells["image"]:
            unnamed += 1
        elif image is None:
            absent.append(cells["image"])
        elif not cells["label"]:
            unlabelled += 1
        else:
            entries.append(
                Entry(
                    image.id,
                    image.paths[0],
                    cells["label"],
                    cells["patient"] or _search(source.patient, image.name, image.id),
                    cells["group"] or _search(source.group, image.id),
                    cells["split"] or None,
                )
            )
    problems = [*_unmatched(source.patient, entries, file)]
    if unnamed:
        problems.append(f"{file}: {_rows(unnamed)} no image's name; expected one in the column {called['image']}")
    if unlabelled:
        problems.append(f"{file}: {_rows(unlabelled)} no label; expected one in the column {called['label']}")
    if absent:
        name = "names" if len(absent) == 1 else "name"
        problems.append(
            f"{file}: of {len(rows)} rows {len(absent)} {name} no image in the folder {source.images.name}, or one of "
            f"several of that name ({named(absent)}); expected a path within it"
        )
    return Said(tuple(entries), tuple(problems))


def _folders(source: LabelledFolders) -> Said:
    entries: list[Entry] = []
    problems: list[str] = []
    sides = [None] if source.validation is None else [source.train, source.validation]
    for side in sides:
        folder = source.images if side is None else source.images / side
        beside = []
        for image in _each(folder):
            word, within, _ = image.id.partition("/")
            if not within:
                beside.append(image.name)
                continue
            patient, group = _search(source.patient, image.name, image.id), _search(source.group, image.id)
            name = image.id if side is None else f"{side}/{image.id}"
            entries.append(Entry(name, image.paths[0], word, patient, group, side))
        if beside:
            where = "beside the folders of the classes"
            problems.append(
                f"{folder.name}: {images(len(beside), 'lies', 'lie')} {where} ({named(beside)}); expected each in one"
            )
        words = {entry.word for entry in entries if entry.split == side}
        bare = sorted(
            other.name for other in folder.iterdir() if other.is_dir() and other.name not in words | _hidden(other.name)
        )
        if bare:
            problems.append(f"{folder.name}: no image in {named(bare)}; expected some in the folder of each class")
    return Said(tuple(entries), (*_unmatched(source.patient, entries, source.images.name), *problems))


def _plain(source: PlainFolder) -> Said:
    entries = tuple(
        Entry(
            image.id,
            image.paths[0],
            "",
            _search(source.patient, image.name, image.id),
            _search(source.group, image.id),
        )
        for image in _each(source.images)
    )
    return Said(entries, tuple(_unmatched(source.patient, entries, source.images.name)))


def _each(folder: Path) -> Iterator[ImageSource]:
    for image in find_images(folder):
        yield from taken_apart(image, folder)


def _hidden(name: str) -> set[str]:
    return {name} if name.startswith(".") else set()


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _search(pattern: str | None, *texts: str) -> str:
    """Return group 1 of the first text that the pattern is found in; "" for none."""
    if pattern is None:
        return ""
    found = (re.search(pattern, text) for text in texts)
    return next((match[1] or "" for match in found if match), "")


def _unmatched(pattern: str | None, entries: Sequence[Entry], place: str) -> Iterator[str]:
    without = [entry.name for entry in entries if not entry.patient]
    if pattern is not None and without:
        yield (
            f"{place}: {pattern} is not found in {len(without)} of {len(entries)} names ({named(without)}); each of "
            "these is taken for a patient of its own"
        )


def _rows(count: int) -> str:
    return f"{count} {'row has' if count == 1 else 'rows have'}"
