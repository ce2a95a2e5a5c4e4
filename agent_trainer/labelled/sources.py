"""A site's labelled images: all its sources read, those of the run's classes kept, divided by patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_trainer.labelled.settings import LabelledSource, read_labelled

__all__ = ["Example", "Labelled", "LabelledSource", "load_labelled", "read_labelled"]


@dataclass(frozen=True)
class Example:
    """An image, not yet read, and what it shows.

    name     of the file, for the site's own eyes; never leaves it
    path     for `reading.read_whole` and `patches.open_big`; a folder for OME-Zarr and for TIFFs that are channels
    label    place in the run's classes
    patient  examples of one patient never lie on both sides of a split; the name where nobody knows
    group    body part, modality …
    """

    name: str
    path: Path
    label: int
    patient: str
    group: str = ""


@dataclass(frozen=True)
class Labelled:
    """What a site learns from and validates on.

    problems  sentences on what could not be used, with file names: for the site's own eyes
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    problems: tuple[str, ...] = ()


def load_labelled(
    sources: Sequence[LabelledSource],
    classes: Sequence[str],
    validation_share: float,
    *,
    groups: Sequence[str] = (),
    shots: int = 0,
    learning: bool = True,
) -> Labelled:
    """Read all sources; what cannot be used gives a problem, and the rest goes on. No image is opened.

    classes   the run's, the same at all sites
    groups    only these; () takes all
    shots     at most so many of each class to learn from, chosen by the hash of their names; 0 takes all
    learning  false when nobody will learn from them: then one image does

    A file's own split goes first; elsewhere `validation_share` of the patients, chosen by the hash of their names,
    validate, so that each class of two patients or more is on both sides.
    Raises ConfigError when the site has no image of the classes, ImageError when it has too few.
    """
    raise NotImplementedError
