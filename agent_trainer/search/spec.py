"""What a researcher decides about a search, and the proposers that it may have."""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent_trainer.search.space import Space, Units, first_wrong
from cairn.errors import ConfigError
from cairn.figures import VALIDATION
from cairn.run import GOALS, AlgorithmName, Goal

TEST: Final = "test/"  # before the names of figures of test images
Update: TypeAlias = Literal["printed", "reinforce", "ppo"]
Method: TypeAlias = Literal["ppo", "reinforce", "printed", "discrete", "continuous", "random", "tpe"]


class Proposer(Protocol):
    """What chooses the next strategy: with the same seed, the same after the same calls in the same order."""

    def propose(self, job: int) -> Units | None:
        """Return a job's strategy; None when nothing can be tried before another result, and then nothing changes."""

    def learn(self, job: int, reward: float) -> None:
        """Take a job's reward, a finite number; larger is better."""

    def drop(self, job: int) -> None:
        """Take note that a job will have no reward."""


# At the paper's rate the other two wander: each step would move every weight by about 0.1. docs/MATHS.md
RATES: Final[dict[Update, float]] = {"printed": 0.1, "reinforce": 0.01, "ppo": 0.005}


class ControllerConfig(BaseModel):
    """What the controller is and how it learns."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: int = Field(32, ge=1, le=1024)  # of the recurrent layer; the paper gives no number
    rate: float | None = Field(
        None, gt=0
    )  # of RMSprop; None: the paper's 0.1 for eq. 1 as printed, 0.01 for what learns
    decay: float = Field(0.9, ge=0, lt=1)  # of RMSprop's squares; TensorFlow's own
    # Standard deviation of the logits of what is proposed round the output; falls linearly over so many jobs. Not in
    # the paper, which proposes the output itself.
    exploration: float = Field(1.0, gt=0)
    exploration_end: float = Field(0.3, gt=0)
    exploration_jobs: int = Field(100, ge=1)
    baseline_decay: float = Field(0.9, ge=0, lt=1)  # of "reinforce"; no baseline in the paper
    # PPO
    clip: float = Field(0.2, gt=0, lt=1)  # Schulman et al. 2017
    epochs: int = Field(4, ge=1)  # over the window, at each result
    window: int = Field(16, ge=2)  # latest results that it learns from

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.exploration_end > self.exploration:
            raise ValueError(f"exploration falls from {self.exploration} to {self.exploration_end}; it must not rise")
        return self

    def rate_of(self, update: Update) -> float:
        """Return RMSprop's rate: that asked for, or the update's own."""
        return RATES[update] if self.rate is None else self.rate

    def spread(self, job: int) -> float:
        """Return the exploration's standard deviation at a job, in logits."""
        share = min(1.0, job / self.exploration_jobs)
        return self.exploration + share * (self.exploration_end - self.exploration)


class SearchSpec(BaseModel):
    """A search as asked for.

    algorithm      what a job trains; a run's, and the reward is its goal's figure: `training.reward_of`
    updates        optimiser steps of a job
    validations    of a job, evenly over its updates, the last at its end; the best one counts
    share_weights  a job begins with the weights of the best job before it wherever they fit by name and shape. For
                   searches over networks; which jobs had ended then matters to a reward. On this machine only
    sources        TOML file of the data to learn from, for jobs on this machine: `data.read_data`
    test           one of images that are told of and never chosen by
    method         "ppo", "reinforce" (eq. 1 with a density to explore by) and "printed" (eq. 1 as it stands) are the
                   controller; the others what it is measured against
    jobs           strategies tried; MAX_EPOCH of algorithm 1
    in_flight      n of algorithm 1
    deadline       of a job, from its start; then it is issued again
    attempts       at a job that nobody answers
    failed_as      reward by which the method learns of a training that failed or gave no number; None: it does not
                   learn
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: Space
    algorithm: AlgorithmName = "segmentation"
    updates: int = Field(500, ge=1)  # the paper has epochs: 800 from scratch, 200 for fine-tuning
    validations: int = Field(1, ge=1, le=1000)
    share_weights: bool = False
    sources: Path | None = None
    test: Path | None = None
    method: Method = "ppo"
    jobs: int = Field(100, ge=1, le=100_000)  # 100 from scratch, 400 for fine-tuning in paper 2, §4
    in_flight: int = Field(4, ge=1, le=1024)  # 32 and 50 GPUs there
    deadline: timedelta = Field(timedelta(hours=6), gt=timedelta(0))
    attempts: int = Field(3, ge=1)
    failed_as: float | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    controller: ControllerConfig = Field(default_factory=ControllerConfig)

    @model_validator(mode="after")
    def _points(self) -> Self:
        if self.validations > self.updates:
            raise ValueError(f"{self.validations} validations do not go into {self.updates} updates; ask for fewer")
        return self

    @property
    def goal(self) -> Goal:
        """The figure that is the reward; negated where smaller is better."""
        return GOALS[self.algorithm]

    @property
    def test_metric(self) -> str:
        """The goal's figure on test images, as jobs tell it."""
        return f"{TEST}{self.goal.metric.removeprefix(VALIDATION)}"

    @property
    def reward_words(self) -> str:
        """What people call the reward."""
        return f"{'' if self.goal.larger_is_better else '− '}validation {self.goal.heading}"


def read_search(path: Path, **given: Any) -> SearchSpec:
    """Read a search from its TOML file; the space is its table [space]. Raises ConfigError.

    given  settings that go before the file's
    Paths of data are relative to the file.
    """
    try:
        values = {**tomllib.loads(path.read_text(encoding="utf-8")), **given}
        for name in ("sources", "test"):
            if isinstance(values.get(name), str):
                values[name] = (path.resolve().parent / Path(values[name]).expanduser()).resolve()
        return SearchSpec.model_validate(values)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a search's TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path.name}: {first_wrong(error, SearchSpec)}") from error


def proposer(spec: SearchSpec) -> Proposer:
    """Make the method's proposer; every one begins with the routine strategy. torch and Optuna only when called for."""
    start = spec.space.units(spec.space.routine())
    match spec.method:
        case "printed" | "reinforce" | "ppo":
            from agent_trainer.strategy_search import Controller  # noqa: PLC0415

            return Controller(spec.controller, spec.method, start, spec.in_flight - 1, spec.seed)
        case "tpe":
            from agent_trainer.search.tpe import Tpe  # noqa: PLC0415

            return Tpe(start, spec.seed)
        case other:
            from agent_trainer.search import rivals  # noqa: PLC0415

            if other == "random":
                return rivals.Random(start, spec.seed)
            return rivals.DiscreteHillClimbing(start) if other == "discrete" else rivals.ContinuousHillClimbing(start)
