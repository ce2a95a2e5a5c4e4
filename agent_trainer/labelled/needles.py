"""Made images of a needle in a haystack: what shows the class is under a thousandth of the pixels.

Each image has one needle, a violet disc, and a few green discs; all are striped along rows, along columns or chequered,
with the same mean. The violet one's pattern is the image's class, those of the green ones are drawn. So neither a mean
over the image tells the class, nor the patterns that it has, nor any copy of it so small that stripes run together;
where the needle lies can still be seen there by its colour.
"""

import csv
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tifffile import imwrite

from agent_trainer.labelled.settings import Needles
from agent_trainer.patches import open_big
from cairn.errors import ImageError
from cairn.images import ImageSource, find_images

Pixels: TypeAlias = npt.NDArray[np.uint8]
Place: TypeAlias = tuple[int, int]

WORDS: Final = ("rows", "columns", "checks")
COLUMNS: Final = ("image", "label", "row", "column")
TABLE: Final = "needles.csv"
GREEN: Final = 3  # discs that tell nothing
PERIOD: Final = 4  # pixels, of the stripes
DEPTH: Final = 45  # by which stripes are lighter and darker than their disc
VIOLET_COLOUR: Final = (120, 70, 160)
GREEN_COLOUR: Final = (90, 140, 90)
VERSION: Final = 1  # of all that decides how an image looks


@dataclass(frozen=True)
class Needle:
    """Where an image lies, what it shows, and the row and column of its needle's middle."""

    path: Path
    word: str
    middle: Place


def needle_files(settings: Needles) -> list[tuple[Path, str]]:
    """Make the images, or find those made before, and say what each shows. Raises ImageError."""
    return [(needle.path, needle.word) for needle in needle_examples(settings)]


def needle_examples(settings: Needles) -> list[Needle]:
    """Make the images, or find those made before; words come in turn, so that they are as many.

    The same settings, and the same folder of backgrounds, give the same files to the last bit.
    Raises ImageError when there are no backgrounds, or no folder can be written.
    """
    folder = _folder(settings)
    if not (folder / TABLE).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Made aside and named at the end: whoever finds the folder finds it complete.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".needles") as aside:
                _write(settings, Path(aside) / "made")
                (Path(aside) / "made").rename(folder)
        except OSError as error:
            if not (folder / TABLE).is_file():  # or another process was quicker
                reason = os.strerror(error.errno) if error.errno else "unknown cause"
                raise ImageError(
                    f"{folder.name}: the made images cannot be written ({reason}); name a folder"
                ) from error
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Needle(folder / row["image"], row["label"], (int(row["row"]), int(row["column"]))) for row in rows]


def needle_image(settings: Needles, number: int, backgrounds: Sequence[ImageSource] = ()) -> tuple[Pixels, str, Place]:
    """Make one image: uint8[3, size, size], its word, and row and column of the needle's middle. Raises ImageError."""
    rng = np.random.default_rng([settings.seed, number])
    size, side = settings.size, settings.needle
    image = real_background(backgrounds, size, rng) if backgrounds else made_background(size, rng)
    word = number % len(WORDS)
    middles = _apart(rng, GREEN + 1, size, side)
    for middle in middles[1:]:
        _draw(image, middle, side, GREEN_COLOUR, int(rng.integers(len(WORDS))), rng)
    _draw(image, middles[0], side, VIOLET_COLOUR, word, rng)
    return image, WORDS[word], middles[0]


def made_background(size: int, rng: np.random.Generator) -> Pixels:
    """Make something like stained tissue: clouds of several sizes in pink, and grain."""
    clouds = np.zeros((size, size), np.float32)
    for cells, height in ((4, 18.0), (16, 12.0), (64, 8.0)):
        coarse = rng.normal(0, height, (cells + 1, cells + 1)).astype(np.float32)
        clouds += ndimage.zoom(coarse, size / (cells + 1), order=1, grid_mode=True, mode="nearest")[:size, :size]
    grain = rng.normal(0, 6, (3, size, size)).astype(np.float32)
    colour = np.array([215, 165, 195], np.float32)[:, None, None]
    slopes = np.array([0.8, 1.0, 0.7], np.float32)[:, None, None]
    return np.asarray(np.rint(np.clip(colour + slopes * clouds + grain, 0, 255)), np.uint8)


def real_background(sources: Sequence[ImageSource], size: int, rng: np.random.Generator) -> Pixels:
    """Cut a square out of a real image and mirror it at its edges until the size is reached. Raises ImageError."""
    source = sources[int(rng.integers(len(sources)))]
    with open_big(source.paths[0], 3) as big:
        side = min(big.height, big.width, size)
        corner = [int(rng.integers(whole - side + 1)) for whole in (big.height, big.width)]
        (cut,) = big.patches(np.array([corner], np.int64), side)
    mirrored = np.pad(cut, [(0, 0), (0, size - side), (0, size - side)], mode="symmetric")
    if rng.integers(2):
        mirrored = mirrored.transpose(0, 2, 1)
    return np.ascontiguousarray(mirrored[:, :: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))])


def _apart(rng: np.random.Generator, count: int, size: int, side: int) -> list[Place]:
    """Draw middles of discs that lie inside and do not touch; where there is no room for all, of as many as fit."""
    found: list[Place] = []
    for y, x in rng.integers(side // 2, size - (side + 1) // 2 + 1, (100 * count, 2)).tolist():
        if len(found) < count and all(max(abs(y - b), abs(x - a)) > side + 1 for b, a in found):
            found.append((y, x))
    return found


def _draw(
    image: Pixels, middle: Place, side: int, colour: tuple[int, int, int], word: int, rng: np.random.Generator
) -> None:
    """Draw a disc with a pattern over side × side pixels; the pattern begins anywhere, so no pixel has a colour."""
    top, left = middle[0] - side // 2, middle[1] - side // 2
    y, x = np.mgrid[:side, :side]
    inside = (y - (side - 1) / 2) ** 2 + (x - (side - 1) / 2) ** 2 <= (side / 2) ** 2
    down, across = ((axis + rng.integers(PERIOD)) // (PERIOD // 2) % 2 for axis in (y, x))
    light = {"rows": down, "columns": across, "checks": down ^ across}[WORDS[word]]
    pattern = np.array(colour)[:, None, None] + np.where(light, DEPTH, -DEPTH) + rng.normal(0, 6, (3, side, side))
    part = image[:, top : top + side, left : left + side]
    part[:, inside] = np.rint(np.clip(pattern, 0, 255)).astype(np.uint8)[:, inside]


def _write(settings: Needles, folder: Path) -> None:
    folder.mkdir()
    backgrounds = find_images(settings.backgrounds) if settings.backgrounds else []
    if settings.backgrounds and not backgrounds:
        raise ImageError(f"{settings.backgrounds.name}: found no image to make backgrounds of; expected one or more")
    rows = []
    for number in range(settings.images):
        image, word, middle = needle_image(settings, number, backgrounds)
        name = f"needle{number:05d}.tif"
        tiles = {"photometric": "rgb", "planarconfig": "separate", "tile": (128, 128), "compression": "zstd"}
        imwrite(folder / name, image, metadata=None, software=False, **tiles)
        rows.append((name, word, *middle))
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def _folder(settings: Needles) -> Path:
    """Name the folder by all that decides what is in it, so that other settings do not find it."""
    said = settings.model_dump_json(exclude={"folder", "classes"})
    digest = hashlib.sha256(f"{VERSION} {said}".encode()).hexdigest()[:16]
    if settings.folder is not None:
        return settings.folder / f"needles-{digest}"
    # Of this user alone: others could put images of their own under a name that is known beforehand.
    own = Path(tempfile.gettempdir()) / f"cairn-needles-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        about = own.lstat()
    except OSError as error:
        raise ImageError(f"{own.name}: cannot be made in the folder for temporary files; name a folder") from error
    if own.is_symlink() or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise ImageError(f"{own.name}: is another user's, or open to others; name a folder for the made images")
    return own / f"needles-{digest}"
