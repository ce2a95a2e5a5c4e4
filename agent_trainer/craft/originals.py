"""Which images copies may be made of: those that a run would learn from, by the same split, each with its patient."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_trainer.craft.offline import Original, refuse_unmatched
from agent_trainer.labelled.reading import Channels, Pixels, read_all
from agent_trainer.labelled.rows import named, read_source
from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders
from agent_trainer.labelled.sources import Example, load_labelled
from agent_trainer.labelled.splitting import divide
from agent_trainer.volumes.settings import VolumeFiles
from agent_trainer.volumes.sources import find_cases
from cairn.errors import ConfigError, ImageError
from cairn.images import find_images


def of_labelled(
    source: LabelledFiles | LabelledFolders, classes: Sequence[str], validation_share: float, masks: Path | None
) -> tuple[tuple[Original, ...], tuple[str, ...]]:
    """List the images of a labelled folder that a run learns from, and sentences on what was left out.

    classes  only these; () takes all words
    masks    a folder in which each image has one of its path, but for the ending
    Raises ConfigError for names without a patient where a pattern is to find one, ImageError for images without a mask.
    """
    entries = read_source(source).entries
    refuse_unmatched(source.patient, [entry.name for entry in entries if not entry.patient])
    words = tuple(classes) or tuple(sorted({entry.word for entry in entries}))
    found = load_labelled((source,), words, validation_share)
    mask_of = {} if masks is None else _by_name(masks)
    originals = tuple(
        Original(one.name, one.path, one.patient, mask_of.get(_bare(one.name)), words[one.label], one.group)
        for one in found.train
    )
    bare = [one.name for one in originals if one.mask is None]
    if masks is not None and bare:
        raise ImageError(
            f"{len(bare)} of {len(originals)} images have no mask of their name in {masks.name} ({named(bare)}); an "
            "image is not moved without its mask"
        )
    return originals, found.problems


def of_volumes(
    images: Path, labels: Path, patient: str | None, validation_share: float
) -> tuple[tuple[Original, ...], tuple[str, ...]]:
    """List the volumes of a folder that a run learns from, with their labels. Raises ConfigError, ImageError."""
    source = VolumeFiles(images=images, labels=labels, classes={"any": (1,)}, modality="mr", patient=patient)
    cases, problems = find_cases(source)
    if patient is not None:
        refuse_unmatched(patient, [case.name for case in cases if not re.search(patient, case.name)])
    if not cases:
        raise ImageError(f"{images.name} has no volume with labels of its name in {labels.name}; expected NIfTI files")
    train, _, more = divide({"train": [], "validation": [], "free": cases}, validation_share)
    return tuple(Original(case.image.name, case.image, case.patient, case.labels) for case in train), (*problems, *more)


def read_pictures(
    originals: Sequence[Original], classes: Sequence[str], side: int, channels: Channels
) -> tuple[Pixels, npt.NDArray[np.int64], tuple[str, ...]]:
    """Read pictures for a network: uint8[n, channels, side, side], places of their classes, and sentences on others."""
    examples = [Example(one.name, one.image, classes.index(one.word), one.patient) for one in originals]
    pixels, kept, problems = read_all(examples, side, channels)
    return pixels, np.array([example.label for example in kept], np.int64), problems


def _by_name(folder: Path) -> dict[str, Path]:
    try:
        return {_bare(image.id): image.paths[0] for image in find_images(folder)}
    except OSError as error:
        raise ConfigError(f"{folder.name}: no such folder, or it may not be read; expected masks in it") from error


def _bare(name: str) -> str:
    return Path(name).with_suffix("").as_posix()
