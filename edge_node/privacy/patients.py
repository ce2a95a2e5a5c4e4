"""Whose an image is. The name is used to put images together and goes nowhere: not on the disk, not into a log."""

from collections.abc import Sequence

from cairn.images import ImageSource
from edge_node.privacy.settings import PrivacySettings

NOBODYS = "an image whose patient is not known"


def patient_of(source: ImageSource, settings: PrivacySettings) -> str | None:
    """Name an image's patient, None when that cannot be told: by a folder's name or by DICOM's PatientID."""
    if settings.patient_folder is not None:
        folders = source.id.split("/")[:-1]
        return folders[settings.patient_folder - 1] if len(folders) >= settings.patient_folder else None
    return _by_header(source.paths)


def _by_header(paths: Sequence[object]) -> str | None:
    import pydicom  # noqa: PLC0415 - sites whose unit is no patient start without it

    names = set()
    for path in paths:
        try:
            header = pydicom.dcmread(str(path), stop_before_pixels=True, specific_tags=["PatientID"])
            names.add(str(header.get("PatientID", "")).strip())
        except Exception:  # noqa: BLE001 - a damaged header raises anything at all
            return None
    return names.pop() if len(names) == 1 and "" not in names else None
