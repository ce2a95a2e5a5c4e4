"""Every number of a DQN run in one typed config. Paper 1 gives the defaults; where it is silent, a comment says so."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_trainer.craft.augmentation import TONES, Augmentation
from agent_trainer.craft.transfer import Transfer
from agent_trainer.settings import Compile, Precision, read_settings

PADDING = 1  # pixels on each side of every convolution, as in rl-medical


class DqnConfig(BaseModel):
    """What a DQN is and how it learns; the same at all sites, part of the run's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(("landmark",), min_length=1)  # names; a task's number is its place here

    # what the agent sees and does
    axes: Literal[2, 3] = 2
    box: int = Field(45, ge=8, le=512)  # pixels; paper 1 §II: H = W = 45
    history: int = Field(4, ge=1, le=16)  # frames, or sequential slices; paper 1 §II: C = 4
    scales: tuple[int, ...] = Field((1,), min_length=1)  # pixels a step, coarse to fine; one scale is the paper
    step_limit: int = Field(200, ge=1)  # steps an episode; the paper gives none, rl-medical has 200
    start_margin: float = Field(
        0.2, ge=0, lt=0.5
    )  # of each side, where no search starts; rl-medical's inner three fifths
    # A reward in mm is divided by this; 1 is the paper. Images with pixels of micrometres need about a pixel's size,
    # or every reward would lie in one bin and on the flat side of Huber's loss.
    reward_unit_mm: float = Field(1.0, gt=0)
    envs: int = Field(32, ge=1)  # searches that step at once; ours, for speed

    # the network: paper 1 §III and its figure 5 give four and four layers, not their sizes
    channels: tuple[int, ...] = Field((32, 32, 64, 64), min_length=1)  # of the convolutions; rl-medical
    kernels: tuple[int, ...] = Field((5, 5, 3, 3), min_length=1)  # pixels; rl-medical has 5, 5, 4, 3
    hidden: tuple[int, ...] = (512, 256, 128)  # of the fully connected layers before the last; rl-medical
    leak: float = Field(0.01, ge=0, lt=1)  # slope of the leaky ReLU below 0; torch's own default
    duelling: bool = False  # Wang et al. 2016; not in the paper
    transfer: Transfer = Transfer()  # of the convolutions, under new connected layers; docs/craft/transfer.md

    # learning
    gamma: float = Field(0.9, ge=0, lt=1)  # paper 1 §III
    batch: int = Field(48, ge=1)  # transitions an update; paper 1 §III
    learning_rate: float = Field(1e-4, gt=0)  # Adam; paper 1 §III
    lr_step: int = Field(100_000, ge=1)  # updates after which the rate falls; "scheduler" in the paper, no numbers
    lr_factor: float = Field(0.5, gt=0, le=1)  # by which it falls
    clip_norm: float = Field(
        10.0, gt=0
    )  # of the gradient; "clipping" in the paper, no number; Nature DQN's follow-ups have 10
    huber_delta: float = Field(1.0, gt=0)  # mm; Huber in paper 1 §III, without its delta
    double: bool = False  # van Hasselt et al. 2016; not in the paper
    target_every: int = Field(2500, ge=1)  # updates between copies to the target network; paper 1 §III
    target_at_round_start: bool = False  # the target network also takes each round's weights; ours
    precision: Precision = "float32"  # mixed: bfloat16 where CUDA multiplies
    compile: Compile = False  # networks by torch.compile, where a machine can

    # of what the agent sees as it learns, alike before and after a step; not in the paper. docs/craft/augmentation.md
    augmentation: Augmentation = Augmentation()

    # exploration: "decreasing epsilon" in paper 1 §III, no numbers; ends as rl-medical's
    epsilon_start: float = Field(1.0, ge=0, le=1)
    epsilon_end: float = Field(0.1, ge=0, le=1)
    epsilon_steps: int = Field(100_000, ge=1)  # environment steps over which it falls linearly
    steps_per_update: float = Field(1.0, gt=0)  # environment steps an update; paper 1 §III: "on each step"
    warm_up: int = Field(10_000, ge=1)  # environment steps before the first update; the paper gives none

    # replay
    replay: Literal["uniform", "prioritised", "sketched", "sketched_td"] = "uniform"
    capacity: int = Field(1_000_000, ge=1)  # transitions; paper 1 §III: 10^6
    unique: bool = (
        True  # the sketched samplers keep one tuple a key, as in paper 1 §III; False keeps all and only weighs
    )
    # A tuple is drawn ∝ 1/f̂(key)^beta; DESIGN §5, the paper gives no exponent. Below 0 the frequent are drawn more
    # often, as they would be if all were kept.
    beta: float = Field(0.5, ge=-1)
    alpha: float = Field(0.6, ge=0)  # priority = |TD error|^alpha; Schaul et al. 2016
    beta0: float = Field(0.4, ge=0, le=1)  # importance exponent at the start, rising to 1; Schaul et al. 2016
    beta_updates: int = Field(100_000, ge=1)  # updates over which it rises
    pool: tuple[int, ...] = (3, 3)  # cells a frame is averaged into, an axis; paper 1 figure 9 quantises, no numbers
    radix: int = Field(8, ge=2, le=256)  # values a cell is cut into
    reward_edges: tuple[float, ...] = (-0.75, -0.25, 0.25, 0.75)  # reward units, rising; between the bins
    sketch_depth: int = Field(8, ge=1, le=64)
    sketch_width: int = Field(2**16, ge=2, le=2**26)

    # federation
    round_updates: int = Field(1000, ge=1)  # of each site in a round; the paper is silent

    # evaluation
    validation_share: float = Field(0.2, ge=0, lt=1)  # of a site's scenes

    @property
    def actions(self) -> int:
        """Number of actions: x+, x-, y+, y- and in 3D z+, z-."""
        return 2 * self.axes

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state, uint8[history, *box]."""
        return (self.history, *(self.box,) * self.axes)

    def epsilon(self, steps: int) -> float:
        """Return ε after so many environment steps: linear from epsilon_start to epsilon_end, then constant."""
        share = min(1.0, steps / self.epsilon_steps)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)

    def rate(self, updates: int) -> float:
        """Return the learning rate after so many updates: learning_rate·lr_factor^⌊updates/lr_step⌋."""
        return self.learning_rate * self.lr_factor ** (updates // self.lr_step)

    def feature_side(self) -> int:
        """Return the side in pixels of what the last convolution leaves of a box; each is followed by a pool of 2."""
        side = self.box
        for kernel in self.kernels:
            side = max(0, side + 2 * PADDING - kernel + 1) // 2
        return side

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.kernels) != len(self.channels):
            raise ValueError(f"{len(self.channels)} channels and {len(self.kernels)} kernels; give one kernel a layer")
        if min(*self.channels, *self.kernels, *self.hidden, *self.scales, *self.pool) < 1:
            raise ValueError("channels, kernels, hidden, scales and pool must all be at least 1")
        if self.feature_side() < 1:
            raise ValueError(
                f"a box of {self.box} pixels is used up before the last convolution; use a larger box or fewer layers"
            )
        if len(self.pool) != self.axes or max(self.pool) > self.box:
            raise ValueError(f"pool is {self.pool}; it needs {self.axes} numbers, none over the box of {self.box}")
        if any(low <= high for low, high in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales are {self.scales}; they must fall, coarse to fine")
        if any(low >= high for low, high in zip(self.reward_edges, self.reward_edges[1:], strict=False)):
            raise ValueError(f"reward_edges are {self.reward_edges}; they must rise")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks are {self.tasks}; each may be named once")
        if moving := self.augmentation.moving():
            raise ValueError(
                f"augmentation.{moving[0]} would move what the agent sees, so that a step is no longer what it was; "
                f"only {', '.join(TONES)} may be over 0"
            )
        return self


def read_config(text: str) -> DqnConfig:
    """Read a run's settings from JSON. Raises ConfigError with the first thing that is wrong."""
    return read_settings(DqnConfig, text, "DQN")
