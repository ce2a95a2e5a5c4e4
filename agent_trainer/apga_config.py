"""Every number of an APGA run in one typed config: paper 3's; where it is silent, a comment says so."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_trainer.craft.augmentation import Augmentation
from agent_trainer.craft.domains import Domain
from agent_trainer.craft.losses import Loss
from agent_trainer.craft.transfer import Transfer
from agent_trainer.settings import Classes, Compile, Precision, read_settings

VGG_SIDE, SMALL_SIDE = 32, 4  # by what a masker's strides divide an image's side
Method = Literal["apga", "none", "cutout", "gradcam", "end-to-end"]


class ApgaConfig(BaseModel):
    """What is classified, by what networks and with what masks; the same at all sites, part of the run's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: Classes  # names; a class's number is its place here. Two: binary
    method: Method = "apga"  # the paper's, or one of the baselines it is compared with

    # the images
    side: int = Field(224, ge=16, le=1024)  # pixels; paper 3 §3
    channels: Literal[1, 3] = 3
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, whose weights the paper begins with;
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # an image of one channel takes their means

    # of the whole images, before any mask; not in the paper. docs/craft/augmentation.md
    augmentation: Augmentation = Augmentation()

    # the networks
    classifier: Literal["densenet169", "densenet121", "small"] = "densenet169"  # paper 3 §3
    masker: Literal["vgg11-unet", "small"] = "vgg11-unet"  # paper 3 §3: TernausNet
    small_channels: tuple[int, ...] = Field((8, 16, 32, 64), min_length=1)  # of the small classifier's convolutions
    # and what stands behind them: batch norm's statistics take in the masked images too, group norm has none
    small_norm: Literal["batch", "group"] = "batch"
    # of batch norm's running statistics; "cumulative" is the mean over the batches of the round, nothing older
    norm_momentum: float | Literal["cumulative"] = 0.1  # torch's own; the paper is silent
    dropout: float = Field(0.0, ge=0, lt=1)  # before the small classifier's last layer, in each layer of a DenseNet
    classifier_weights: Path | None = None  # a local file at whoever begins the run; ImageNet's in the paper
    masker_weights: Path | None = None  # the same; of TernausNet on Carvana in the paper, or of a VGG11
    transfer: Transfer = Transfer()  # of the classifier, with a new last layer; docs/craft/transfer.md

    # learning
    batch: int = Field(25, ge=1)  # images; paper 3 §3
    learning_rate: float = Field(1e-4, gt=0)  # Adam, of both networks; paper 3 §3
    precision: Precision = "float32"  # mixed: bfloat16 where CUDA multiplies
    compile: Compile = False  # networks by torch.compile, where a machine can
    balance: Literal["none", "weights", "sampler"] = "none"  # against unbalanced classes; not in the paper
    loss: Loss = Loss()  # of the classifier; docs/craft/imbalance.md
    domain: Domain = Domain()  # against sites that look different; docs/craft/domains.md

    # pre-training "to convergence" (algorithm 1, line 2): no criterion in the paper. It ends when the mean loss of
    # `pretrain_patience` windows in a row was not lower, by a share of `pretrain_gain`, than the lowest before.
    pretrain_updates: int = Field(5000, ge=0)  # after which it ends in any case; 0 leaves it out
    pretrain_window: int = Field(50, ge=1)  # updates
    pretrain_patience: int = Field(3, ge=1)  # windows
    pretrain_gain: float = Field(0.01, ge=0, lt=1)

    # the policy: equation 7
    lambda_zeros: float = Field(0.1, ge=0)  # paper 3 §3
    lambda_ones: float = Field(0.1, ge=0)  # of the end-to-end masks only; tuned in the paper, no number
    baseline_decay: float = Field(0.5, ge=0, lt=1)  # paper 3 §3
    # What eq. 7 takes for the action: the pixels erased, in whose terms P is a probability and the update raises that
    # of masks which hurt; or those kept, as algorithm 1 prints it, which lowers it. docs/MATHS.md derives both.
    action: Literal["erased", "kept"] = "erased"
    mask_at_inference: bool = False  # answer with the mean of the original's and the masked image's probabilities
    # Masks are collapsed when fewer than `collapse_share` of an image's pixels lie on one side of 0.5, in half the
    # images of so many updates; ours.
    collapse_share: float = Field(0.01, ge=0, lt=0.5)
    collapse_window: int = Field(50, ge=1)

    cutout_share: float = Field(0.5, gt=0, le=1)  # of a side, the largest patch's; "randomly sized" in the paper

    # federation and data
    round_updates: int = Field(100, ge=1)  # batches of each site in a round; the paper is silent
    validation_share: float = Field(0.2, ge=0, lt=1)  # of a site's patients
    groups: tuple[str, ...] = ()  # only these, such as one body part; () takes all
    shots: int = Field(0, ge=0)  # at most so many images a class and site to learn from; 0 takes all

    @property
    def masks(self) -> bool:
        """Whether there is a masker."""
        return self.method in ("apga", "end-to-end")

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]."""
        if self.channels == 1:
            return (sum(self.mean) / 3,), (sum(self.std) / 3,)
        return self.mean, self.std

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {self.classes}; each may be named once")
        self.augmentation.check(2)
        if isinstance(self.norm_momentum, float) and not 0 < self.norm_momentum <= 1:
            raise ValueError(f'norm_momentum is {self.norm_momentum:g}; expected over 0 and at most 1, or "cumulative"')
        if min(self.small_channels) < 1 or min(self.std) <= 0:
            raise ValueError("small_channels must be at least 1 and std over 0")
        step = VGG_SIDE if self.masker == "vgg11-unet" else SMALL_SIDE
        if self.masks and self.side % step:
            raise ValueError(f"side is {self.side}; the masker {self.masker} needs a multiple of {step}")
        if self.classifier != "small" and self.side < VGG_SIDE:
            raise ValueError(f"side is {self.side}; {self.classifier} needs at least {VGG_SIDE}")
        if self.classifier == "small" and self.side < 2 ** len(self.small_channels):
            raise ValueError(f"a side of {self.side} is used up before the last of {len(self.small_channels)} layers")
        if self.mask_at_inference and not self.masks:
            raise ValueError(f"mask_at_inference needs a masker; the method {self.method} has none")
        if self.classifier_weights is not None and self.transfer.weights is not None:
            raise ValueError("classifier_weights and transfer.weights both name a file; the classifier begins with one")
        return self


def read_config(text: str) -> ApgaConfig:
    """Read a run's settings from JSON. Raises ConfigError with the first thing that is wrong."""
    return read_settings(ApgaConfig, text, "APGA")
