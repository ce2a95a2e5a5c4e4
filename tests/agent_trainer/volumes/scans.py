"""NIfTI files for tests, sound and broken."""

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

ARROW = np.arange(24, dtype=np.float32).reshape(2, 3, 4)  # no axis of it looks like another


def straight(*spacing: float) -> npt.NDArray[np.float64]:
    """Return an affine whose axes point to the right, front and top."""
    return np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0])


def write(path: Path, values: Any = ARROW, affine: Any = None, **header: Any) -> Path:
    """Write a volume; fields of the header are put in as they are, whatever they are."""
    image = nibabel.Nifti1Image(np.asarray(values), straight() if affine is None else affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    if header:
        content = path.read_bytes()
        found = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content), check=False)
        for name, value in header.items():
            found[name] = value
        path.write_bytes(found.binaryblock + content[len(found.binaryblock) :])
    return path


def pixdim(*spacing: float) -> list[float]:
    """Return the header's field of spacings."""
    return [1.0, *spacing, 0.0, 0.0, 0.0, 0.0]
