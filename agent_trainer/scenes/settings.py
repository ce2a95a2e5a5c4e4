"""Where a site's scenes come from: a list of sources, each of one of three kinds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from agent_trainer.settings import read_list

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LandmarkFiles(_Section):
    """Images, and a file that says where their landmarks lie.

    landmarks   a CSV or JSON file, or a folder of masks named like their images (see `scenes.landmarks`)
    images      the folder of images
    tasks       the run's task = the landmark's name in the file (in a mask: its value); None takes the file's names
    spacing_mm  between pixels, (y, x) or (z, y, x); None takes the files', which PNG and JPEG do not tell
    pixel_mm    make images coarser to about this; None leaves them
    band        of images with several; None averages
    slices      4: four sequential slices as the channels, of a volume in a run of two axes; a plane is repeated
    train       of a file with a column `split`: its value in the rows to learn from
    validation  … and in those to validate on; None takes some of the rows to learn from
    """

    kind: Literal["landmarks"] = "landmarks"
    landmarks: Path
    images: Path
    tasks: Mapping[str, str] | None = None
    spacing_mm: tuple[Millimetres, ...] | None = Field(None, min_length=2, max_length=3)
    pixel_mm: Millimetres | None = None
    band: str | None = None
    slices: Literal[1, 4] = 1
    train: str = "train"
    validation: str | None = None


class LabelImages(_Section):
    """Label images that Cairn wrote with a codebook: the binary map of one state as four sequential slices.

    folder      of the label images
    pattern     of their names; the states' by default
    state       the name of the label that is 1; all others are 0
    task        the run's task: the centre of the state's largest region
    centre      what that is: "mass", the mean of its pixels, or "inmost", its pixel farthest from its border, which
                unlike the former always lies inside and shows in what is near it
    sequence    where the four slices come from: a stack's own ("image", a single slice is repeated), or consecutive
                images of one size in one folder ("folder", for a block cut into slices, each a file)
    spacing_mm  None takes the label images'
    pixel_mm    make maps coarser to about this, so that a box sees more than a few cells; None leaves them
    """

    kind: Literal["labels"] = "labels"
    folder: Path
    pattern: str = "*.states.ome.*"
    state: str = "tumour"
    task: str = "tumour-centre"
    centre: Literal["mass", "inmost"] = "mass"
    sequence: Literal["image", "folder"] = "image"
    spacing_mm: tuple[Millimetres, ...] | None = Field(None, min_length=2, max_length=3)
    pixel_mm: Millimetres | None = None


class Look(_Section):
    """How a made site's scanner shows things: v ↦ gain · (1 - v if inverted)^gamma + offset + noise, v in [0, 1]."""

    gain: float = Field(1.0, gt=0)
    offset: float = 0.0
    gamma: float = Field(1.0, gt=0)
    invert: bool = False
    noise: float = Field(0.02, ge=0)  # standard deviation, of the same scale as v


class Generated(_Section):
    """Made images of a trunk with organs, to try things on.

    tasks       organs, see `scenes.generated.ORGANS`; None takes all
    images      how many
    size        pixels a side
    seed        the same seed makes the same images
    """

    kind: Literal["generated"] = "generated"
    tasks: tuple[str, ...] | None = None
    images: int = Field(20, ge=1)
    size: int = Field(128, ge=32, le=4096)
    spacing_mm: Millimetres = 1.0
    seed: int = Field(0, ge=0)
    look: Look = Look()

    @model_validator(mode="after")
    def _known(self) -> "Generated":
        from agent_trainer.scenes.generated import ORGANS  # noqa: PLC0415  which imports this

        if strange := set(self.tasks or ()) - set(ORGANS):
            raise ValueError(f"there is no organ {min(strange)}; there are {', '.join(ORGANS)}")
        return self


SceneSource = Annotated[LandmarkFiles | LabelImages | Generated, Field(discriminator="kind")]
"""One source of scenes; `kind` says which."""

_SOURCES: TypeAdapter[tuple[SceneSource, ...]] = TypeAdapter(tuple[SceneSource, ...])


def read_sources(text: str, folder: Path) -> tuple[SceneSource, ...]:
    """Read a list of sources from JSON; paths are relative to the folder. Raises ConfigError."""
    return read_list(_SOURCES, text, folder, "scenes", "scenes")
