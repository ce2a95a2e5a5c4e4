"""Every number of a segmentation run in one typed config: paper 2's; where it is silent, a comment says so."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_trainer.craft.augmentation import Augmentation
from agent_trainer.craft.transfer import Transfer
from agent_trainer.settings import ClassName, Compile, read_settings
from agent_trainer.volumes.settings import LEAST_MM, MOST_MM, Modality

AHNET_STEP = 32  # by what AHNet divides each side of a patch
MOST_CLASSES = 50  # whose figures fit into a site's message
Side: TypeAlias = Annotated[int, Field(ge=8, le=512)]
Step: TypeAlias = Annotated[float, Field(ge=LEAST_MM, le=MOST_MM)]


class SegmentationConfig(BaseModel):
    """What is outlined, in volumes brought to which form, by what network; the same at all sites."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=MOST_CLASSES)  # what is no background
    modality: Modality  # of CT, -1000 to 1000 HU become 0 to 1; of MR, each volume's 5th to 95th percentile

    # the volumes
    spacing_mm: tuple[Step, Step, Step] = (1.0, 1.0, 1.0)  # paper 2 §4: isotropic, 1 mm
    patch: tuple[Side, Side, Side] = (96, 96, 96)  # voxels, cut at random; paper 2 §4
    foreground: float = Field(0.5, ge=0, le=1)  # share of patches about a voxel of a class; paper 2: at random
    overlap: float = Field(0.25, ge=0, lt=1)  # of windows, of a side; paper 2 §4: one quarter of a patch

    # the network
    network: Literal["ahnet", "unet", "segresnet"] = "ahnet"  # paper 2 §4: the 2D–3D hybrid of Liu 2018 without PSP
    width: int = Field(16, ge=1, le=512)  # channels of the first level of a unet or segresnet; doubled with each level
    depth: int = Field(4, ge=2, le=7)  # their levels; each halves the sides
    blocks: int = Field(1, ge=0, le=8)  # residual units of a level; 0: plain convolutions, of a unet only
    norm: Literal["instance", "batch", "group"] = "instance"  # theirs; AHNet has batch norm
    dropout: float = Field(0.0, ge=0, lt=1)  # theirs
    # A local file at whoever begins the run: another run's weights (fine-tuning, the paper's second setting), or for
    # AHNet those of a ResNet-50, of whose ImageNet weights the paper makes the encoder.
    weights: Path | None = None
    transfer: Transfer = Transfer()  # which layers train, and another way to name a file; docs/craft/transfer.md

    # learning
    batch: int = Field(2, ge=1)  # patches; the paper is silent
    learning_rate: float = Field(1e-4, gt=0)  # Adam; paper 2 §4, "routine". The search goes from 1e-4 to 1e-2
    loss: Literal["dice", "dice-ce"] = "dice"  # paper 2 §4; dice-ce adds the cross-entropy
    augmentation: Augmentation = Augmentation()  # paper 2 §3.1 searches its probabilities; 0.5 each is "routine"
    precision: Literal["float32", "mixed"] = "float32"  # mixed: bfloat16 or float16 where CUDA multiplies
    compile: Compile = False  # networks by torch.compile, where a machine can

    # federation and data
    round_updates: int = Field(100, ge=1)  # batches of each site in a round; the paper trains at one place
    validation_share: float = Field(0.2, ge=0, lt=1)  # of a site's patients; paper 2 §4: about a fifth of its volumes
    keep_local: tuple[str, ...] = ()  # weights that stay at a site; docs/craft/domains.md

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {self.classes}; each may be named once")
        if self.weights is not None and self.transfer.weights is not None:
            raise ValueError("weights and transfer.weights both name a file; the network begins with one")
        step = self.step
        if any(side % step for side in self.patch):
            raise ValueError(
                f"patch is {' × '.join(map(str, self.patch))}; {self.network} needs multiples of {step} for each side"
            )
        if self.network == "ahnet" and max(self.patch) < 2 * AHNET_STEP:
            raise ValueError(f"the largest side of patch is {max(self.patch)}; ahnet needs at least {2 * AHNET_STEP}")
        if self.network == "segresnet" and self.blocks < 1:
            raise ValueError("blocks is 0; a segresnet needs at least 1 a level")
        if self.network != "ahnet" and self.norm == "group" and self.width % self.groups:
            raise ValueError(f"width is {self.width}; group norm needs a multiple of {self.groups}")
        outputs = len(self.classes) + 1
        if self.network == "unet" and self.norm == "group" and self.blocks and outputs % self.groups:
            # MONAI normalises the last level's channels too, and these are the answers.
            raise ValueError(
                f"a unet with residual units has no group norm for {outputs} answers; set blocks to 0, or another norm"
            )
        return self

    @property
    def step(self) -> int:
        """By what each side of a patch is divided."""
        return AHNET_STEP if self.network == "ahnet" else 2 ** (self.depth - 1)

    @property
    def groups(self) -> int:
        """Groups of group norm."""
        return min(8, self.width)


def read_config(text: str) -> SegmentationConfig:
    """Read a run's settings from JSON. Raises ConfigError with the first thing that is wrong."""
    return read_settings(SegmentationConfig, text, "segmentation")
