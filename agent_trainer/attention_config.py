"""Every number of an attention-sampling run in one typed config. Paper 4 gives the defaults; comments say where not."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_trainer.craft.augmentation import Augmentation
from agent_trainer.craft.losses import Loss
from agent_trainer.settings import Classes, Compile, Precision, read_settings


class AttentionConfig(BaseModel):
    """What looks where and how it learns; the same at all sites, part of the run's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: Classes  # a class's number is its place here
    channels: Literal[1, 3] = 3

    # where to look
    reduction: int = Field(5, ge=1)  # pixels a side averaged into one cell; paper 4 §VI.B: "no more than 5"
    map_side: int = Field(512, ge=4)  # cells a side at most; ours, so that a slide's map stays small
    patch: int = Field(50, ge=4, le=512)  # pixels a side; paper 4 §VIII, the best model
    patches: int = Field(20, ge=1)  # an image; paper 4 §VIII, the best model
    sampling: Literal["replacement", "without", "conditional"] = "replacement"  # paper 4 §VI.B; §XI.B for the last
    estimate: Literal["printed", "unbiased"] = "printed"  # paper 4 eq. (1), or Σ a·f without bias
    temperature: float = Field(1.0, gt=0)  # divides the map's logits; not in the paper
    inference: Literal["sampled", "highest"] = "sampled"  # "highest": the patches of most attention; not in the paper

    # the networks; paper 4 §VI.A and C
    attention_filters: int = Field(8, ge=1)
    attention_layers: int = Field(3, ge=1)  # before the linear one
    filters: int = Field(16, ge=1)
    layers: int = Field(4, ge=1)
    leak: float = Field(0.01, ge=0, lt=1)  # slope of the leaky ReLU below 0; the paper gives none, torch's own default
    pooling: Literal["max", "mean"] = "max"  # "Global Max Pooling: average over …" in the paper
    normalise: bool = True  # ‖f(patch)‖₂ = 1
    classifier: str = "paper"  # or a two-dimensional classification network of MONAI by name; paper 4 §XI.A
    hidden: int = Field(16, ge=1)  # numbers that the conditional policy remembers; not in the paper

    # learning; paper 4 §VII
    batch: int = Field(8, ge=1)  # images an update
    replicas: int = Field(4, ge=1)  # sets of patches of each image
    learning_rate: float = Field(1e-3, gt=0)  # Adam
    attention_rate: float | None = Field(None, gt=0)  # another for the attention; None: the same
    clip_norm: float = Field(10.0, gt=0)  # of the gradient; ours
    precision: Precision = "float32"  # mixed: bfloat16 where CUDA multiplies
    compile: Compile = False  # networks by torch.compile, where a machine can
    train_attention: bool = True  # False: the attention stays as it is, a sampler for another classifier
    attention_weights: Path | None = None  # safetensors of an attention run to begin with; paper 4 §XI.A

    # the reward, and exploration; paper 4 §IV and §V, which give no numbers
    baseline: Literal["batch", "image", "moving"] = "batch"  # over what rewards are averaged
    baseline_decay: float = Field(0.9, ge=0, lt=1)  # of the moving one
    standardise: bool = True  # also divide by the rewards' standard deviation
    deviation_floor: float = Field(0.0, ge=0)  # added to that; ours, see docs/MATHS.md
    entropy: float = Field(0.01, ge=0)  # λ at the start …
    entropy_end: float | None = Field(None, ge=0)  # … and at the end; None: it stays
    entropy_updates: int = Field(1000, ge=1)  # over which it falls linearly
    explore: float = Field(0.0, ge=0, lt=1)  # share of the draws that are uniform over the map

    # a prior of where to look; ours. "mixed": a share of the draws; "initial": where the attention begins
    prior: Literal["none", "mixed", "initial"] = "none"
    prior_of: Literal["tissue", "rarity"] = "tissue"  # a state of the federation's pixel map, or rare colours
    prior_state: str = "tumour"  # name of the tissue state whose density it is
    prior_share: float = Field(0.3, ge=0, lt=1)  # of the draws, when mixed

    # augmentation; paper 4 §III.A, which gives no numbers
    flips: bool = True
    contrast: float = Field(0.2, ge=0, lt=1)  # factor between 1 - contrast and 1 + contrast
    zoom: float = Field(1.2, ge=1, le=4)  # at most
    # more than that: of each patch for itself as it is cut, not of what the attention sees. docs/craft/augmentation.md
    augmentation: Augmentation = Augmentation()

    # federation and data
    round_updates: int = Field(100, ge=1)  # of each site in a round
    balance: Literal["none", "weights", "sampler"] = "none"
    loss: Loss = Loss()  # docs/craft/imbalance.md
    keep_local: tuple[str, ...] = ()  # weights that stay at a site; docs/craft/domains.md
    validation_share: float = Field(0.2, ge=0, lt=1)  # of a site's patients
    shots: int = Field(0, ge=0)  # at most so many images a class to learn from; 0: all
    groups: tuple[str, ...] = ()  # only these body parts, modalities …

    def entropy_weight(self, updates: int) -> float:
        """Return λ after so many updates: linear from entropy to entropy_end, then constant."""
        if self.entropy_end is None:
            return self.entropy
        share = min(1.0, updates / self.entropy_updates)
        return self.entropy + share * (self.entropy_end - self.entropy)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {self.classes}; each may be named once")
        self.augmentation.check(2)
        mixture = self.explore + (self.prior_share if self.prior == "mixed" else 0.0)
        if mixture >= 1:
            raise ValueError(f"explore and prior_share are {mixture:g} together; the attention needs a share as well")
        return self


def read_attention_config(text: str) -> AttentionConfig:
    """Read a run's settings from JSON. Raises ConfigError with the first thing that is wrong."""
    return read_settings(AttentionConfig, text, "attention")
