"""The [privacy] part of site.toml."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cairn.privacy.terms import Unit


class PrivacySettings(BaseModel):
    """What this site gives away of its pixels, images or patients, at most, and which plans it takes for private.

    epsilon         over all plans of all studies, for ever; None sets no limit, and what is spent is noted all the same
    delta           at which epsilon is counted; given with it
    required        plans without noise are refused
    unit            what a private plan must protect at least: pixel, image or patient
    patient_folder  number of the folder below images.folder that is one patient's, from 1; None: DICOM's PatientID
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(None, gt=0)
    delta: float | None = Field(None, gt=0, lt=0.01)
    required: bool = False
    unit: Unit = "pixel"
    patient_folder: int | None = Field(None, ge=1, le=32)

    @model_validator(mode="after")
    def _both(self) -> "PrivacySettings":
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon is counted at a delta; give both, or neither for no limit")
        return self
