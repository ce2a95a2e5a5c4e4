"""Augmented copies of a folder, written once: each names the image that it is of, and that image's patient.

    OUT/augmentation.json   what was asked; another order may not go on in this folder
    OUT/images, OUT/masks   the copies: PNG of pictures, NIfTI of volumes
    OUT/manifest.jsonl      a line a copy: source, patient, seed, and what happened with its numbers
    OUT/labels.csv          for training (image, label, patient, group); only for labelled images

A file that is there is never written again, so that what was cut short goes on. The last two are written when all
copies are there. A copy depends on the seed, its source's name and its number, and on no other.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from agent_trainer.craft.augmentation import Augmentation, Drawn, apply, draw
from agent_trainer.labelled.reading import read_whole
from agent_trainer.labelled.rows import named
from agent_trainer.patches import Channels, open_big
from agent_trainer.tables import unit_hash
from agent_trainer.volumes.nifti import Scan, check_alike, read_scan, stem
from cairn.errors import ConfigError, ImageError
from cairn.files import write_atomically
from cairn.images import find_image, open_image

ORDER, MANIFEST, LABELS = "augmentation.json", "manifest.jsonl", "labels.csv"
MOST_PIXELS: Final = 1 << 26  # of a picture without a side
MASK_MODES: Final = ("1", "L", "P", "I", "I;16")
Told: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Original:
    """An image that copies are made of.

    name  its path within its folder, by which copies are told apart and drawn
    mask  or the labels of a volume; None without
    word  what it shows; "" for a volume
    """

    name: str
    image: Path
    patient: str
    mask: Path | None = None
    word: str = ""
    group: str = ""

    @property
    def volume(self) -> bool:
        """Whether it is a NIfTI file."""
        return stem(self.image) != self.image.name


@dataclass(frozen=True)
class Order:
    """How the copies are made; `side` brings pictures to so many pixels, 0 leaves them at their own size."""

    settings: Augmentation
    copies: int
    seed: int
    side: int = 0


@dataclass(frozen=True)
class Copied:
    """How far it is: `written` new copies, others being there; problems are sentences on what was left out."""

    originals: int
    written: int
    there: int
    problems: tuple[str, ...] = ()


def write_copies(originals: Sequence[Original], out: Path, order: Order) -> Iterator[Copied]:
    """Write what is not there yet; yields after each original, and after the tables at last.

    An image that cannot be read is left out with a problem. Raises ConfigError when the folder holds something else,
    ImageError when nothing can be read, OSError.
    """
    _claim(out, order)
    lines: list[Told] = []
    problems: list[str] = []
    written = there = 0
    for place, original in enumerate(originals, 1):
        try:
            made = list(_copies(original, out, order))
        except ImageError as error:
            problems.append(str(error))
        else:
            lines += [line for line, _ in made]
            written += sum(new for _, new in made)
            there += sum(not new for _, new in made)
        yield Copied(place, written, there, tuple(problems))
    if not lines:
        raise ImageError(f"none of the {len(originals)} images can be read; the first: {problems[0]}")
    with write_atomically(out / MANIFEST) as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
    if any(line["label"] for line in lines):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, ("image", "label", "patient", "group"), extrasaction="ignore")
        table.writeheader()
        table.writerows(lines)
        with write_atomically(out / LABELS) as file:
            file.write(text.getvalue().encode())


def check_apart(out: Path, *folders: Path) -> None:
    """Refuse folders that lie in one another, or hold copies themselves: copies would pass for other patients' images.

    Raises ConfigError.
    """
    for folder in folders:
        inner, outer = out.resolve(), folder.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise ConfigError(
                f"the copies' folder {out.name} and {folder.name} lie in one another, so that copies would be taken "
                "for images of their own; choose a folder beside it"
            )
        if any((above / ORDER).exists() for above in (outer, *outer.parents)):
            raise ConfigError(f"{folder.name} holds augmented copies already; take the images that they were made of")


def told(drawn: Drawn, at: int = 0) -> Told:
    """Say what happened to an image, with the numbers drawn."""
    values: Told = {
        "flip": np.flatnonzero(drawn.flips[at]).tolist(),
        "crop": drawn.crop[at].tolist(),
        "zoom": float(drawn.zoom[at]),
        "rotate": np.degrees(drawn.angles[at]).tolist(),
        "shift": drawn.shift[at].tolist(),
        "elastic": True,
        "smooth": float(drawn.smooth[at]),
        "sharpen": float(drawn.sharpen[at]),
        "contrast": float(drawn.contrast[at]),
        "intensity_shift": float(drawn.intensity[at]),
        "noise": float(drawn.noise[at]),
    }
    return {name: values[name] for name in drawn.names(at)}


def _claim(out: Path, order: Order) -> None:
    """Write down what is asked, or see that it is what was asked before."""
    asked = {"settings": order.settings.model_dump(mode="json"), "seed": order.seed, "side": order.side}
    path = out / ORDER
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{out.name}: its {ORDER} cannot be read; take another folder") from error
        if before != asked:
            raise ConfigError(f"{out.name} holds copies made with other settings, seed or side; take another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out.name} is there and not empty; nothing is overwritten, take a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(json.dumps(asked, indent=1).encode())


def _copies(original: Original, out: Path, order: Order) -> Iterator[tuple[Told, bool]]:
    """Make an original's copies: a line of the manifest, and whether the file is new."""
    axes, ending = (3, ".nii.gz") if original.volume else (2, ".png")
    read: tuple[Tensor, Tensor | None, Scan | None] | None = None
    for number in range(1, order.copies + 1):
        name = f"{stem(Path(original.name)) if original.volume else Path(original.name).stem}.{number}{ending}"
        within = Path(original.name).with_name(name)
        targets = [out / "images" / within, *([out / "masks" / within] if original.mask is not None else [])]
        seed = [order.seed, int(unit_hash(original.name) * 2**56), number]
        rng = np.random.default_rng(seed)
        drawn = draw(1, axes, order.settings, rng)
        new = not all(target.exists() for target in targets)
        if new:
            read = read or _read(original, order.side)
            image, mask, like = read
            changed, moved = apply(image, mask, drawn, order.settings, rng)
            for target, values in zip(targets, (changed[0], None if moved is None else moved[0]), strict=False):
                if not target.exists():
                    assert values is not None
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write(target, values, like)
        line: Told = {"image": within.as_posix(), "source": original.name, "label": original.word}
        line |= {"patient": original.patient, "group": original.group, "mask": original.mask is not None}
        yield {**line, "seed": seed, "changes": told(drawn)}, new


def _read(original: Original, side: int) -> tuple[Tensor, Tensor | None, Scan | None]:
    """Return float32[1, C, *S] in [0, 1], int64[1, *S] or None, and for a volume how it lies."""
    if original.volume:
        scan = read_scan(original.image)
        labels = None if original.mask is None else read_scan(original.mask)
        if labels is not None:
            check_alike(original.name, scan, labels)
        low, width = _range(original.name, scan.values)
        values = torch.from_numpy((scan.values.astype(np.float32) - low) / width)
        mask = None if labels is None else torch.from_numpy(labels.values.astype(np.int64))[None]
        return values[None, None], mask, scan
    with open_image(find_image(original.image)) as image:
        channels: Channels = 3 if sum(band != "A" for band in image.bands) == 3 else 1
        height, width_ = image.height, image.width
    if not side and height * width_ > MOST_PIXELS:
        raise ImageError(f"{original.name}: found {width_} × {height} pixels; too many for whole copies, set a side")
    if side:
        pixels = read_whole(original.image, side, channels)
    else:
        with open_big(original.image, channels) as big:
            pixels = big.reduced(height, width_)
    x = torch.from_numpy(pixels).to(torch.float32).div_(255)[None]
    return x, None if original.mask is None else _mask(original, (height, width_), side), None


def _mask(original: Original, size: tuple[int, int], side: int) -> Tensor:
    assert original.mask is not None
    try:
        with Pillow.open(original.mask) as opened:
            mask = opened.copy()
    except OSError as error:
        raise ImageError(f"{original.mask.name}: cannot be read as a mask; expected a PNG or TIFF of labels") from error
    if mask.mode not in MASK_MODES:
        raise ImageError(f"{original.mask.name}: found pixels of kind {mask.mode}; expected one whole number each")
    if (mask.height, mask.width) != size:
        raise ImageError(
            f"{original.name}: its mask has {mask.width} × {mask.height} pixels, the image {size[1]} × {size[0]}; "
            "expected as many"
        )
    mask = mask.resize((side, side), Pillow.Resampling.NEAREST) if side else mask
    return torch.from_numpy(np.array(mask).astype(np.int64))[None]


def _range(name: str, values: npt.NDArray[Any]) -> tuple[np.float32, np.float32]:
    low, high = np.float32(values.min()), np.float32(values.max())
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        raise ImageError(f"{name}: voxels are from {low:g} to {high:g}; expected finite numbers that differ")
    return low, high - low


def _write(path: Path, values: Tensor, like: Scan | None) -> None:
    """Write float32[C, *S] in [0, 1], or a mask int64[*S], whole or not at all."""
    array = values.numpy()
    if like is not None:
        if array.dtype == np.float32:
            low, width = _range(path.name, like.values)
            array = array[0] * width + low
            array = np.rint(array).astype(like.values.dtype) if like.values.dtype.kind in "ui" else array
        else:
            array = array.astype(np.int16)
        image = nibabel.Nifti1Image(array, like.affine)
        image.header.set_xyzt_units("mm")
        part = path.with_name(f".part.{path.name}")  # nibabel goes by the ending
        nibabel.save(image, part)
        part.replace(path)
        return
    if array.dtype == np.float32:
        pixels = np.rint(array * 255).astype(np.uint8)
        picture = Pillow.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    else:
        picture = Pillow.fromarray(array.astype(np.uint8 if array.max() < 256 else np.uint16))
    with write_atomically(path) as file:
        picture.save(file, "PNG")


def summary(copied: Copied) -> Told:
    """Say it as a JSON object."""
    return asdict(copied)


def refuse_unmatched(pattern: str | None, without: Sequence[str]) -> None:
    """Refuse names that the pattern of patients is not found in. Raises ConfigError."""
    if pattern is not None and without:
        raise ConfigError(
            f"{pattern} is not found in {len(without)} names ({named(without)}), whose copies could come to other "
            "patients; give a pattern that all names have"
        )
