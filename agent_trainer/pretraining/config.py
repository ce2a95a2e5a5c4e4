"""Every number of a pre-training run in one typed config; names are those of the runs that the encoder is for."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.config import DqnConfig
from agent_trainer.settings import read_settings

Method = Literal["autoencoder", "rotation", "jigsaw", "masked"]
LARGE = 32  # by which a DenseNet divides an image's side


class AgentEncoder(BaseModel):
    """The part of a DQN that sees, and the images that it is shown; names and defaults are DqnConfig's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(("landmark",), min_length=1)  # images with any of these landmarks; of scenes only
    box: int = Field(45, ge=8, le=512)
    history: int = Field(4, ge=1, le=16)
    scales: tuple[int, ...] = Field((1,), min_length=1)
    channels: tuple[int, ...] = Field((32, 32, 64, 64), min_length=1)
    kernels: tuple[int, ...] = Field((5, 5, 3, 3), min_length=1)

    def run(self, validation_share: float = 0.2) -> DqnConfig:
        """Return the settings of a DQN that has this encoder. Raises ValueError for numbers that make none."""
        return DqnConfig(**self.model_dump(), validation_share=validation_share, envs=1)


class PretrainConfig(BaseModel):
    """What is learned from images without their labels, and by what encoder; the same at all sites."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "masked"
    encoder: Literal["small", "densenet121", "densenet169", "dqn"] = "small"
    images: Literal["labelled", "scenes"] | None = None  # the site's table; None: scenes for dqn, else labelled

    # a classifier's encoder and its images; as ApgaConfig has them, so that the weights fit
    side: int = Field(224, ge=16, le=1024)  # pixels; of a DQN's labelled images too
    channels: Literal[1, 3] = 3
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    small_channels: tuple[int, ...] = Field((8, 16, 32, 64), min_length=1)
    small_norm: Literal["batch", "group"] = "batch"
    agent: AgentEncoder = AgentEncoder()  # of the encoder dqn

    # the tasks
    patch: int = Field(8, ge=1)  # pixels a side of what is hidden; MAE has 16 at a side of 224
    hidden_share: float = Field(0.6, gt=0, lt=1)  # of the patches; SimMIM 0.6, MAE 0.75
    grid: Literal[2, 3] = 3  # tiles a side of a jigsaw; Noroozi & Favaro 2016
    permutations: int = Field(
        24, ge=2, le=1000
    )  # orders of the tiles told apart; theirs 100 to 1000, of large networks
    gap: float = Field(0.15, ge=0, lt=0.5)  # of a tile's side, by which it is smaller than its place; theirs 11 of 75
    width: int = Field(16, ge=1)  # channels of the decoder's last layers, and an eighth of the jigsaw's hidden layer

    # learning
    batch: int = Field(32, ge=1)  # images; a rotation's are four times as many, as theirs (Gidaris et al. 2018)
    learning_rate: float = Field(1e-3, gt=0)  # Adam
    flips: bool = True  # images are mirrored left to right, half of them; nothing else than more of them

    # federation and data
    round_updates: int = Field(100, ge=1)  # batches of each site in a round
    validation_share: float = Field(0.2, ge=0, lt=1)  # of a site's patients, as in the run that follows
    groups: tuple[str, ...] = ()  # only these; () takes all

    @property
    def table(self) -> str:
        """The site's table of data that images come from."""
        return self.images or ("scenes" if self.encoder == "dqn" else "labelled")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the encoder sees."""
        if self.encoder == "dqn":
            return self.agent.history, self.agent.box, self.agent.box
        return self.channels, self.side, self.side

    @property
    def classifies(self) -> bool:
        """Whether the task is one of choosing, so that answers are right or wrong."""
        return self.method in ("rotation", "jigsaw")

    def classifier(self) -> ApgaConfig:
        """Return the settings of a classifier that has this encoder. Raises ValueError for numbers that make none."""
        own = ("side", "channels", "mean", "std", "small_channels", "small_norm")
        return ApgaConfig(
            classes=("this", "that"),
            method="none",
            classifier=self.encoder,
            **{name: getattr(self, name) for name in own},
        )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            _ = self.agent.run() if self.encoder == "dqn" else self.classifier()
        except ValidationError as error:  # in their words
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        if self.images == "scenes" and self.encoder != "dqn":
            raise ValueError("images are scenes, which the encoder dqn alone learns from; leave images out")
        side = self.shape[1]
        if self.method == "masked" and self.patch * 2 > side:
            raise ValueError(f"patch is {self.patch}; expected at most half of the {side} pixels that the encoder sees")
        if self.method == "jigsaw" and self.permutations > (24 if self.grid == 2 else 1000):
            raise ValueError(f"permutations is {self.permutations}; four tiles have 24 orders")
        return self


def read_config(text: str) -> PretrainConfig:
    """Read a run's settings from JSON. Raises ConfigError with the first thing that is wrong."""
    return read_settings(PretrainConfig, text, "pre-training")
