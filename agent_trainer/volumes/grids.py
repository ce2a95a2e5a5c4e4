"""How the voxels of a volume lie in the body, and the same volume on another grid. Pure."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Values: TypeAlias = npt.NDArray[Any]
Affine: TypeAlias = npt.NDArray[np.float64]
Spacing: TypeAlias = tuple[float, float, float]

SLACK: Final = 1e-3  # of a spacing: what is nearer needs no new grid
RAS: Final = np.array([[0, 1], [1, 1], [2, 1]], np.float64)


def to_ras(values: Values, affine: Affine) -> Values:
    """Turn axes round so that they point to the right, to the front and up, as nearly as they can.

    affine  float64[4, 4], from voxels to mm
    """
    turned: Values = nibabel.orientations.apply_orientation(values, nibabel.orientations.io_orientation(affine))
    return turned


def from_ras(values: Values, affine: Affine) -> Values:
    """Undo `to_ras`."""
    back = nibabel.orientations.ornt_transform(RAS, nibabel.orientations.io_orientation(affine))
    turned: Values = nibabel.orientations.apply_orientation(values, back)
    return turned


def size_at(shape: Sequence[int], spacing: Spacing, wanted: Spacing) -> tuple[int, ...]:
    """Return how many voxels of another spacing span as much: round(n · spacing / wanted), at least 1."""
    return tuple(max(1, round(n * step / other)) for n, step, other in zip(shape, spacing, wanted, strict=True))


def resampled(
    values: Values, spacing: Spacing, wanted: Spacing, *, nearest: bool, shape: Sequence[int] | None = None
) -> Values:
    """Return a volume on a grid of another spacing that begins at the same face of the body.

        i = (i' + ½) · wanted / spacing - ½        along each axis; behind the faces the outermost voxels go on

    values   float32[x, y, z], between whose voxels it is linear, or labels, of which the nearest is taken
    shape    of the new grid; None as `size_at` says
    """
    size = size_at(values.shape, spacing, wanted) if shape is None else tuple(shape)
    steps = np.array(wanted) / np.array(spacing)
    if size == values.shape and (np.abs(steps - 1) <= SLACK).all():
        return values
    made: Values = ndimage.affine_transform(
        values, steps, 0.5 * steps - 0.5, size, order=0 if nearest else 1, mode="nearest", prefilter=False
    )
    return made
