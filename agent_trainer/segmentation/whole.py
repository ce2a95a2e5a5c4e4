"""A whole file segmented: its labels on its own grid, and how far they are from those of people."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.segmentation.learner import Learner
from agent_trainer.segmentation.measures import Table, measure
from agent_trainer.volumes.grids import from_ras, resampled, to_ras
from agent_trainer.volumes.nifti import Scan, check_alike, read_scan
from agent_trainer.volumes.reading import axes_of, class_numbers, made_scan, prepared
from agent_trainer.volumes.settings import MadeVolumes
from agent_trainer.volumes.sources import Case

Labels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Outline:
    """A file's segmentation, along the file's own axes.

    found     uint8[x, y, z]: 0, or the number of a class + 1
    true      the same by people; None where there is none
    measured  float64[K, 3] as `measures.measure` says; None where there is nothing to compare with
    """

    name: str
    scan: Scan
    found: Labels
    true: Labels | None = None
    measured: Table | None = None


def outline(learner: Learner, case: Case, *, labelled: bool) -> Outline:
    """Segment a case, and measure it against its labels if it has some. Raises ImageError."""
    config = learner.config
    if isinstance(case.source, MadeVolumes):
        scan, labels = made_scan(case)
    else:
        given = case.source.spacing_mm, case.source.orientation
        scan = read_scan(case.image, *given)
        labels = read_scan(case.labels, *given) if labelled else scan
    true = None
    if labelled:
        check_alike(case.name, scan, labels)
        true = class_numbers(case, labels.values, config.classes)
    found = segmented(learner, case.name, scan)
    measured = None if true is None else measure(found, true, scan.spacing, len(config.classes))
    return Outline(case.name, scan, found, true, measured)


def segmented(learner: Learner, name: str, scan: Scan) -> Labels:
    """Return the likeliest class of each voxel along the file's own axes: uint8[x, y, z]. Raises ImageError.

    Probabilities go back to the file's grid, linear between voxels, before the likeliest is taken.
    """
    config = learner.config
    probabilities = learner.probabilities(prepared(name, scan, config.modality, config.spacing_mm))
    shape = to_ras(scan.values, scan.affine).shape
    best = np.full(shape, -1.0, np.float32)
    found = np.zeros(shape, np.uint8)
    for number, one in enumerate(probabilities):  # one after another: all on a fine grid may be too much for memory
        back = resampled(one, config.spacing_mm, axes_of(scan), nearest=False, shape=shape)
        better = back > best
        found[better], best[better] = number, back[better]
    return np.ascontiguousarray(from_ras(found, scan.affine))
