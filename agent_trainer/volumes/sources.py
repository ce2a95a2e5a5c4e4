"""A site's volumes: all its sources looked through, those of a run's modality and classes divided by patient."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_trainer.labelled.rows import named
from agent_trainer.labelled.splitting import divide
from agent_trainer.volumes.nifti import SUFFIXES, stem
from agent_trainer.volumes.settings import MadeVolumes, Modality, VolumeFiles, VolumeSource
from cairn.errors import ConfigError, ImageError

NOTHING = Path()


@dataclass(frozen=True)
class Case:
    """A volume and its labels, not yet read.

    name     for the site's own eyes; never leaves it
    image, labels
             files; of a made volume none
    patient  volumes of one patient never lie on both sides of a split; the name where nobody knows
    number   of a made volume
    label    for `splitting.divide`: all are of one kind
    """

    name: str
    source: VolumeSource
    patient: str
    image: Path = NOTHING
    labels: Path = NOTHING
    number: int = 0
    label: int = 0


@dataclass(frozen=True)
class Volumes:
    """What a site learns from and validates on.

    problems  sentences on what could not be used, with file names: for the site's own eyes
    """

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    problems: tuple[str, ...] = ()


def load_volumes(
    sources: Sequence[VolumeSource],
    classes: Sequence[str],
    modality: Modality,
    validation_share: float,
    *,
    learning: bool = True,
) -> Volumes:
    """Look through all sources; what cannot be used gives a problem, and the rest goes on. No volume is opened.

    classes   the run's, the same at all sites
    learning  false when nobody will learn from them: then one volume does

    `validation_share` of the patients, chosen by the hash of their names, validate.
    Raises ConfigError when the site has no volume of the modality and the classes, ImageError when it has too few.
    """
    problems: list[str] = []
    cases: list[Case] = []
    for number, source in enumerate(sources):
        if reason := _unfit(source, classes, modality):
            problems.append(f"source {number + 1} of volumes {reason}; it is left out")
            continue
        try:
            found, more = find_cases(source)
        except ImageError as error:
            problems.append(str(error))
            continue
        cases += found
        problems += more
    first = f"; the first problem: {problems[0]}" if problems else ""
    wanted = f"volumes of {modality.upper()} with labels of {', '.join(classes)}"
    if not cases:
        raise ConfigError(f"this site has no {wanted}{first}")
    if learning and len(cases) < 2:
        raise ImageError(
            f"this site has one of the {wanted}; expected at least two, one to learn from and one to validate on{first}"
        )
    train, validation, more = divide({"train": [], "validation": [], "free": cases}, validation_share)
    return Volumes(tuple(train), tuple(validation), (*problems, *more))


def _unfit(source: VolumeSource, classes: Sequence[str], modality: Modality) -> str:
    """Say why a source is not for a run; "" when it is."""
    if source.modality != modality:
        return f"is of {source.modality.upper()}, the run of {modality.upper()}"
    if lacking := [name for name in classes if name not in source.classes]:
        # Its voxels of that class would be told to be background.
        return f"has no labels of {named(lacking)}, which the run tells apart"
    return ""


def find_cases(source: VolumeSource) -> tuple[list[Case], list[str]]:
    """List a source's volumes that have labels, and sentences on the others. Raises ImageError for a missing folder."""
    if isinstance(source, MadeVolumes):
        names = [f"made-{source.seed}-{number}" for number in range(source.volumes)]
        return [Case(name, source, name, number=number) for number, name in enumerate(names)], []
    images, labels = (
        dict(_files(folder, ending))
        for folder, ending in ((source.images, source.image_ending), (source.labels, source.label_ending))
    )
    patients = {name: _patient(source, name) for name in sorted(images.keys() & labels.keys())}
    cases = [Case(name, source, who or name, images[name], labels[name]) for name, who in patients.items()]
    problems = []
    if unknown := [name for name, who in patients.items() if source.patient and not who]:
        problems.append(f"volumes in whose names `patient` finds nobody: {named(unknown)}; each is taken for a patient")
    if alone := sorted(images.keys() - labels.keys()):
        problems.append(f"volumes without labels of their name in {source.labels.name}: {named(alone)}; left out")
    if alone := sorted(labels.keys() - images.keys()):
        problems.append(f"labels without a volume of their name in {source.images.name}: {named(alone)}; left out")
    return cases, problems


def volume_files(folder: Path) -> list[Path]:
    """List the NIfTI files of a folder in the order of their names. Raises ImageError when there is no such folder."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(f"{folder.name}: no such folder, or it may not be read; expected volumes in it") from error
    return [path for path in paths if path.name.endswith(SUFFIXES) and not path.name.startswith(".")]


def _files(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    for path in volume_files(folder):
        if (name := stem(path)).endswith(ending):
            yield name.removesuffix(ending), path


def _patient(source: VolumeFiles, name: str) -> str:
    """Find whose a volume is; "" where nobody knows."""
    found = re.search(source.patient, name) if source.patient else None
    return (found[1] or "") if found else ""
