"""A NIfTI file as a volume that says how it lies, and back; what does not say it clearly is refused."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from agent_trainer.volumes.grids import Affine, Spacing, Values
from agent_trainer.volumes.settings import LEAST_MM, MOST_MM
from cairn.errors import ImageError

SUFFIXES: Final = (".nii.gz", ".nii")
UNREADABLE: Final = (
    OSError, EOFError, ValueError, zlib.error, struct.error, ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
HEADERS: Final = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}  # by the header's own size, its first field
MILLIMETRES: Final = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
AGREE: Final = 0.01  # of two spacings that a file gives, relative; and of the cosine between two axes
APART: Final = 0.1  # of a voxel, by how much the corners of a volume and of its labels may lie apart


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume as its file has it.

    values   [x, y, z], along the file's own axes
    spacing  mm along these axes
    affine   float64[4, 4], from voxels to mm to the right, to the front and up
    """

    values: Values
    spacing: Spacing
    affine: Affine


def stem(path: Path) -> str:
    """Return a file's name without .nii or .nii.gz."""
    return next((path.name.removesuffix(end) for end in SUFFIXES if path.name.endswith(end)), path.name)


def read_scan(path: Path, spacing_mm: Spacing | None = None, orientation: str | None = None) -> Scan:
    """Read a volume.

    spacing_mm, orientation  for files that do not say them; those that do must agree
    Raises ImageError: unreadable, of another shape than a volume, without a spacing or an orientation, at odd angles.
    """
    with _explained(path.name):
        header = _raw_header(path)
        image = nibabel.load(path)
        shape = image.shape[:3] if image.ndim == 4 and image.shape[3] == 1 else image.shape
        if len(shape) != 3 or min(shape, default=0) < 1:
            axes = " × ".join(map(str, image.shape))
            raise ImageError(f"{path.name}: found {axes} voxels; expected a volume of three axes and one channel")
        values = np.asanyarray(image.dataobj).reshape(shape)
    if values.dtype.kind not in "uif":
        raise ImageError(f"{path.name}: found values of type {values.dtype}; expected real numbers")
    unit = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    spacing = _spacing(path.name, header, unit, spacing_mm)
    header["pixdim"][1:4] = np.array(spacing) / unit  # which a qform's columns are as long as
    return Scan(values, spacing, _affine(path.name, header, unit, spacing, orientation, own=spacing_mm is None))


def write_labels(path: Path, labels: Values, like: Scan) -> None:
    """Write a volume of labels uint8 that lies as another one does. Raises OSError."""
    image = nibabel.Nifti1Image(labels.astype(np.uint8), like.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def check_alike(name: str, image: Scan, labels: Scan) -> None:
    """Refuse labels that do not lie where their volume does. Raises ImageError."""
    if image.values.shape != labels.values.shape:
        found, wanted = (" × ".join(map(str, scan.values.shape)) for scan in (labels, image))
        raise ImageError(f"{name}: its labels have {found} voxels, the volume {wanted}; expected as many")
    corners = np.array([[*where, 1.0] for where in np.ndindex(2, 2, 2)]) * [*image.values.shape, 1]
    apart = np.abs(corners @ (image.affine - labels.affine).T).max()
    if apart > APART * min(image.spacing):
        raise ImageError(
            f"{name}: its labels lie up to {apart:.3g} mm away from the volume, by what their headers say of spacing, "
            "orientation and place; export both from one grid"
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ImageError(
            f"{name}: cannot be read as NIfTI ({reason}); expected a whole .nii or .nii.gz file, copy or export it "
            "again"
        ) from error


def _raw_header(path: Path) -> Any:
    """Read a header as it is: nibabel mends one as it opens the file, a spacing of 0 to 1 for instance."""
    with ImageOpener(path) as file:
        first = file.read(4)
        size = next((n for order in "<>" if (n := struct.unpack(f"{order}i", first)[0]) in HEADERS), 348)
        file.seek(0)
        return HEADERS[size].from_fileobj(file, check=False)


def _spacing(name: str, header: Any, unit: float, given: Spacing | None) -> Spacing:
    told = np.asarray(header["pixdim"][1:4], np.float64) * unit
    wrong = [float(step) for step in told if not (np.isfinite(step) and step > 0)]
    if wrong:
        if given is not None:
            return given
        raise ImageError(
            f"{name}: its header says a spacing of {', '.join(f'{step:g}' for step in told)} mm; expected three "
            "numbers over 0: export it with its spacing, or set spacing_mm for this source"
        )
    if given is not None and not np.allclose(told, given, rtol=AGREE):
        raise ImageError(
            f"{name}: its header says a spacing of {', '.join(f'{step:g}' for step in told)} mm, the settings "
            f"{', '.join(f'{step:g}' for step in given)}; spacing_mm is for files without one, take it out"
        )
    if told.min() < LEAST_MM or told.max() > MOST_MM:
        raise ImageError(
            f"{name}: its header says a spacing of {', '.join(f'{step:g}' for step in told)} mm; expected "
            f"{LEAST_MM:g} to {MOST_MM:g} mm: check the unit, and export it again"
        )
    return float(told[0]), float(told[1]), float(told[2])


def _affine(name: str, header: Any, unit: float, spacing: Spacing, orientation: str | None, *, own: bool) -> Affine:
    """Return the affine in mm.

    own  whether the spacing is the file's
    """
    if header["sform_code"] > 0:
        found = np.array(header.get_sform(), np.float64)
    elif header["qform_code"] > 0:
        found = _qform(name, header)
    elif orientation is not None:
        return _straight(spacing, orientation)
    else:
        raise ImageError(
            f"{name}: its header does not say how it lies (neither sform nor qform is set); export it with its "
            'orientation, or set orientation for this source, such as "RAS"'
        )
    found[:3] *= unit
    steps = np.linalg.norm(found[:3, :3], axis=0)
    if not (np.isfinite(found).all() and (steps > 0).all()):
        raise ImageError(
            f"{name}: its header's orientation is no numbers or leaves an axis out; expected three axes, export it "
            "again"
        )
    if own and not np.allclose(steps, spacing, rtol=AGREE):
        raise ImageError(
            f"{name}: its header says two spacings, {', '.join(f'{step:g}' for step in spacing)} and "
            f"{', '.join(f'{step:g}' for step in steps)} mm (pixdim and affine); expected one, export it again"
        )
    directions = found[:3, :3] / steps
    cosines = directions.T @ directions - np.eye(3)
    if np.abs(cosines).max() > AGREE:
        degrees = np.degrees(np.arccos(np.clip(np.abs(cosines).max(), 0, 1)))
        raise ImageError(
            f"{name}: two of its axes are at {degrees:.0f} degrees (a sheared affine); expected right angles, resample "
            "it to a grid that has them"
        )
    if np.isnan(io_orientation(found)).any():
        raise ImageError(f"{name}: two of its axes point the same way; expected three axes, export it again")
    if orientation is not None and (told := "".join(aff2axcodes(found))) != orientation:
        raise ImageError(
            f"{name}: its header says the orientation {told}, the settings {orientation}; orientation is for files "
            "without one, take it out"
        )
    found[:3, :3] = directions * spacing
    return found


def _qform(name: str, header: Any) -> Affine:
    """Return the qform's rotation and place; its steps are those of pixdim, as they are there."""
    try:
        with np.errstate(all="ignore"):
            return np.array(header.get_qform(), np.float64)
    except (ValueError, HeaderDataError) as error:
        raise ImageError(f"{name}: its header's orientation (qform) is no rotation; export it again") from error


def _straight(spacing: Spacing, orientation: str) -> Affine:
    """Return the affine of axes that point where a code says."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (towards, sign) in enumerate(axcodes2ornt(orientation)):
        affine[int(towards), axis] = sign * spacing[axis]
    return affine
