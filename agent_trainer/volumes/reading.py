"""From a case's files to the volume that a network takes: axes to the right, front and top, one spacing, [0, 1]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from agent_trainer.volumes.generated import SHAPES, made_volume
from agent_trainer.volumes.grids import Spacing, Values, resampled, to_ras
from agent_trainer.volumes.nifti import Scan, check_alike, read_scan
from agent_trainer.volumes.settings import MadeVolumes, Modality
from agent_trainer.volumes.sources import Case
from cairn.errors import ImageError

Image: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.uint8]

CT_HU: Final = (-1000.0, 1000.0)  # what becomes 0 and 1; paper 2, §4
MR_PERCENT: Final = (5.0, 95.0)  # of a volume's voxels, what becomes 0 and 1; paper 2, §4
NAMED = 6  # values that a message names


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as networks take it.

    image   float32[x, y, z] in [0, 1]
    labels  uint8[x, y, z]: 0, or the number of a class + 1
    """

    name: str
    image: Image
    labels: Labels


def read_volume(case: Case, classes: Sequence[str], modality: Modality, spacing_mm: Spacing) -> Volume:
    """Read a case. Raises ImageError with one sentence on the first thing that is wrong."""
    if isinstance(case.source, MadeVolumes):
        scan, labels = made_scan(case)
    else:
        scan = read_scan(case.image, case.source.spacing_mm, case.source.orientation)
        labels = read_scan(case.labels, case.source.spacing_mm, case.source.orientation)
        check_alike(case.name, scan, labels)
    numbers = class_numbers(case, labels.values, classes)
    image = prepared(case.name, scan, modality, spacing_mm)
    turned = to_ras(numbers, scan.affine)
    return Volume(case.name, image, resampled(turned, axes_of(scan), spacing_mm, nearest=True))


def prepared(name: str, scan: Scan, modality: Modality, spacing_mm: Spacing) -> Image:
    """Bring a volume's values to [0, 1], turn its axes and resample it. Raises ImageError."""
    values = to_ras(scaled(name, scan.values, modality), scan.affine)
    return np.ascontiguousarray(resampled(values, axes_of(scan), spacing_mm, nearest=False))


def axes_of(scan: Scan) -> Spacing:
    """Return the spacing in mm to the right, to the front and up."""
    towards = io_orientation(scan.affine)[:, 0].astype(np.int64)  # of each of the file's axes
    order = np.argsort(towards)
    steps = [scan.spacing[axis] for axis in order]
    return steps[0], steps[1], steps[2]


def scaled(name: str, values: Values, modality: Modality) -> Image:
    """Bring values to [0, 1]; what lies beyond is cut.

        x' = (x - low) / (high - low)      of CT -1000 and 1000 HU, of MR the 5th and 95th percentile of this volume

    Raises ImageError for values that are no numbers, and where all are alike.
    """
    found = values.astype(np.float32)
    if broken := int(found.size - np.isfinite(found).sum()):
        raise ImageError(f"{name}: {broken} voxels are NaN or infinite; expected numbers, export the volume again")
    if found.min() == found.max():
        raise ImageError(f"{name}: all voxels are {found.flat[0]:g}; expected a volume that shows something")
    low, high = CT_HU if modality == "ct" else (float(q) for q in np.percentile(found, MR_PERCENT))
    if not high > low:
        raise ImageError(
            f"{name}: its values from the 5th to the 95th percentile are all {low:g}; expected a volume less empty, "
            "crop it to the body"
        )
    return np.asarray(np.clip((found - np.float32(low)) / np.float32(high - low), 0, 1), np.float32)


def class_numbers(case: Case, values: Values, classes: Sequence[str]) -> Labels:
    """Return the run's number of each voxel: uint8, 0 for the background and k + 1 for class k.

    Classes of the source that the run does not have are background. Raises ImageError for values that nobody named,
    and for those that are no whole numbers.
    """
    found = np.unique(values)
    if not np.isfinite(found).all() or (found != np.rint(found)).any():
        odd = next(value for value in found.tolist() if not float(value).is_integer())
        raise ImageError(
            f"{case.name}: a label is {odd:g}; expected whole numbers, export the labels without averaging"
        )
    numbers = _table(case, classes)
    if strange := [int(value) for value in found if int(value) not in numbers]:
        shown = ", ".join(map(str, strange[:NAMED])) + (" …" if len(strange) > NAMED else "")
        raise ImageError(
            f"{case.name}: its labels have the values {shown}, which the settings do not know; name each in classes or "
            "in background of this source"
        )
    numbers_of = np.array([numbers[int(value)] for value in found], np.uint8)
    return np.asarray(numbers_of[np.searchsorted(found, values)], np.uint8)


def _table(case: Case, classes: Sequence[str]) -> Mapping[int, int]:
    """Give the run's number of each label value of a source."""
    place = {name: number for number, name in enumerate(classes, 1)}
    source = case.source
    if isinstance(source, MadeVolumes):
        table = dict.fromkeys(range(len(SHAPES) + 1), 0)
        return table | {SHAPES.index(shape) + 1: place.get(name, 0) for name, shape in source.classes.items()}
    table = dict.fromkeys(source.background, 0)
    return table | {value: place.get(name, 0) for name, values in source.classes.items() for value in values}


def made_scan(case: Case) -> tuple[Scan, Scan]:
    """Make a case of a generated source: its volume and its labels."""
    source = case.source
    assert isinstance(source, MadeVolumes)
    image, labels = made_volume(source, case.number)
    spacing = (source.spacing_mm,) * 3
    affine = np.diag([*spacing, 1.0])
    return Scan(image, spacing, affine), Scan(labels, spacing, affine)


def on_disk(volume: Volume, folder: Path) -> Volume:
    """Put a volume's arrays into files and leave them there, for those that memory does not hold. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    held = []
    for what, array in (("image", volume.image), ("labels", volume.labels)):
        np.save(folder / f"{number}-{what}.npy", array)
        held.append(np.load(folder / f"{number}-{what}.npy", mmap_mode="r"))
    return Volume(volume.name, held[0], held[1])
