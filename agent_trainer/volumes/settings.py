"""Where a site's volumes come from: a list of sources, files with their labels or volumes that are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from agent_trainer.labelled.settings import Pattern
from agent_trainer.settings import read_list

Modality = Literal["ct", "mr"]
Shape = Literal["ball", "box"]
LEAST_MM, MOST_MM = 0.01, 50.0  # of a spacing; beyond it is a mistake, such as metres for millimetres
SIDES = ({"R", "L"}, {"A", "P"}, {"S", "I"})  # of which an orientation names one each


def _several(value: object) -> object:
    return (value,) if isinstance(value, int) else value


def _axes(code: str) -> str:
    if len(code) != 3 or any(sum(letter in side for letter in code) != 1 for side in SIDES):
        raise ValueError(
            f"{code!r} is no orientation; give to where the three axes point, one letter each of R or L, A or P and "
            'S or I, such as "RAS" or "LPS"'
        )
    return code


Spacing: TypeAlias = Annotated[float, Field(ge=LEAST_MM, le=MOST_MM)]
Values: TypeAlias = Annotated[tuple[int, ...], BeforeValidator(_several), Field(min_length=1)]
Orientation: TypeAlias = Annotated[str, AfterValidator(_axes)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VolumeFiles(_Section):
    """Volumes in NIfTI files, and as many files of labels.

    images        the folder of volumes
    labels        the folder of their labels; a volume and its labels have one file name, but for their endings
    image_ending  what stands at the end of a volume's name before .nii, such as "_0000"
    label_ending  … and of its labels', such as "_seg"
    classes       the run's class = the value in the labels that is of it, or several
    background    values that are of no class
    modality      ct: values are Hounsfield units; mr: they are in no unit
    patient       a regular expression, searched in the file name: its group 1 is the patient
    spacing_mm    between voxels along a file's axes, only for files that do not say it
    orientation   to where a file's axes point, only for files that do not say it
    """

    kind: Literal["files"] = "files"
    images: Path
    labels: Path
    image_ending: str = ""
    label_ending: str = ""
    classes: Mapping[str, Values] = Field(min_length=1)
    background: Values = (0,)
    modality: Modality
    patient: Pattern | None = None
    spacing_mm: tuple[Spacing, Spacing, Spacing] | None = None
    orientation: Orientation | None = None

    @model_validator(mode="after")
    def _apart(self) -> "VolumeFiles":
        named = [value for values in (*self.classes.values(), self.background) for value in values]
        if twice := sorted({value for value in named if named.count(value) > 1}):
            raise ValueError(
                f"the label value {twice[0]} is of two classes, or of one and the background; expected it once"
            )
        return self


class MadeVolumes(_Section):
    """Made volumes with a bright ball and a darker box in noise (`volumes.generated`).

    volumes   how many
    size      voxels a side
    seed      the same seed makes the same volumes
    classes   the run's class = ball or box
    modality  ct or mr, as whose they are told
    """

    kind: Literal["generated"] = "generated"
    volumes: int = Field(8, ge=2, le=10_000)
    size: int = Field(32, ge=16, le=256)
    spacing_mm: Spacing = 1.0
    seed: int = Field(0, ge=0)
    classes: Mapping[str, Shape] = Field(default={"ball": "ball", "box": "box"}, min_length=1)
    modality: Modality = "mr"


VolumeSource: TypeAlias = Annotated[VolumeFiles | MadeVolumes, Field(discriminator="kind")]
"""One source of volumes; `kind` says which."""

_SOURCES: TypeAdapter[tuple[VolumeSource, ...]] = TypeAdapter(tuple[VolumeSource, ...])


def read_volume_sources(text: str, folder: Path) -> tuple[VolumeSource, ...]:
    """Read a list of sources from JSON; paths are relative to the folder. Raises ConfigError."""
    return read_list(_SOURCES, text, folder, "volumes", "volumes")
