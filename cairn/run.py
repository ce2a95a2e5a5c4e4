"""What a researcher decides about a training run; the algorithm's own settings are checked by agent_trainer."""

import json
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cairn.errors import TrainingError
from cairn.study import Masking, MayCollude, MayDrop, Name, check_masking, is_masked
from cairn.v1 import training_pb2

AlgorithmName = Literal["dqn", "apga", "attention", "segmentation", "pretrain"]


class Goal(NamedTuple):
    """The figure of a federated validation by which a run's best round is chosen.

    words  what people call it
    """

    metric: str
    larger_is_better: bool
    words: str
    unit: str = ""

    @property
    def heading(self) -> str:
        """What stands over a column or an axis."""
        return f"{self.words}, {self.unit}" if self.unit else self.words

    def said(self, value: float) -> str:
        """Say a value with its unit."""
        return f"{value:.3g} {self.unit}".rstrip()

    def better(self, value: float, other: float) -> bool:
        """Tell whether a value is better than another."""
        return value > other if self.larger_is_better else value < other


GOALS: dict[AlgorithmName, Goal] = {
    "dqn": Goal("validation/mean_mm", larger_is_better=False, words="error", unit="mm"),
    "apga": Goal("validation/balanced_accuracy", larger_is_better=True, words="balanced accuracy"),
    "attention": Goal("validation/balanced_accuracy", larger_is_better=True, words="balanced accuracy"),
    "segmentation": Goal("validation/dice", larger_is_better=True, words="Dice"),
    "pretrain": Goal("validation/pretext", larger_is_better=False, words="pretext loss"),
}
Strategy = Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "trimmed-mean", "krum"]
# The numbers that a strategy takes beside its name, with their defaults: those of the strategies' own papers.
OPTIONS: dict[Strategy, dict[str, float]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.01},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadam": {"eta": 1e-2, "eta_l": 1e-2, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"eta": 1e-2, "eta_l": 1e-2, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "trimmed-mean": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1.0},
}


SINGLE: frozenset[Strategy] = frozenset({"trimmed-mean", "krum"})  # look at each site's update by itself
_SPANS: tuple[Literal["round_deadline", "masking_patience"], ...] = ("round_deadline", "masking_patience")
_SHARES: tuple[Literal["may_drop", "may_collude"], ...] = ("may_drop", "may_collude")


class RunSpec(BaseModel):
    """A run as asked for. Nothing that a person must decide has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    algorithm: AlgorithmName
    rounds: int = Field(ge=1, le=100_000)
    min_sites: int = Field(ge=1, description="sites that must have answered before a round counts")
    strategy: Strategy = "fedavg"
    strategy_options: dict[str, float] = Field(default_factory=dict)
    round_deadline: timedelta = Field(timedelta(hours=1), gt=timedelta(0))
    evaluate_every: int = Field(1, ge=0, description="rounds between federated validations; 0 only after the last")
    patience: int = Field(0, ge=0, description="validations without a better one that end the run; 0 never")
    seed: int = Field(0, ge=0, lt=2**63)
    settings: dict[str, Any] = Field(default_factory=dict, description="the algorithm's own")
    first_weights: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of the file it begins with")
    search: dict[str, Any] | None = Field(
        None, description="of a strategy, by agent_trainer.search: rounds are then its jobs, min_sites those of a job"
    )

    masking: Masking = Field(
        "auto", description="the aggregator learns sums of updates alone; auto: where min_sites is 3 or more"
    )
    site_figures: Literal["all", "none"] = Field(
        "all", description="what a site of a masked run tells of its round in plain: losses and validation, or nothing"
    )
    masking_patience: timedelta = Field(
        timedelta(minutes=2), gt=timedelta(0), description="for which a step of a masked sum waits for late sites"
    )
    norm_bound: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="length to which each site's update is shortened; 0: none",
    )
    noise: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="noise over a round's sum of updates, in norm_bounds (z); 0: none"
    )
    may_drop: MayDrop = 400
    may_collude: MayCollude = 100

    @model_validator(mode="after")
    def _options_known(self) -> "RunSpec":
        unknown = sorted(set(self.strategy_options) - set(OPTIONS[self.strategy]))
        if unknown:
            known = ", ".join(OPTIONS[self.strategy]) or "none"
            raise ValueError(f"{self.strategy} has no option {unknown[0]!r}; it takes {known}")
        return self

    @model_validator(mode="after")
    def _fits_a_search(self) -> "RunSpec":
        if self.search is not None and (self.strategy != "fedavg" or self.patience):
            raise ValueError(
                "a search joins the weights of a job's sites by fedavg, and has no patience; leave both out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_masked(self) -> "RunSpec":
        check_masking(self.masking, self.min_sites)
        if self.masking == "on" and self.search is not None:
            raise ValueError("a search's jobs are not masked; set masking to off")
        if self.masked and self.strategy in SINGLE:
            raise ValueError(
                f"{self.strategy} looks at the update of each site by itself, which a masked sum hides; choose another "
                "strategy, or turn masking off"
            )
        if self.masked and self.site_figures == "none" and self.patience:
            raise ValueError("sites that tell no figures validate nothing; leave patience out, or let them tell all")
        return self

    @model_validator(mode="after")
    def _can_be_private(self) -> "RunSpec":
        if self.noise and not self.norm_bound:
            raise ValueError("noise hides updates of a bounded length alone; give norm_bound too")
        if self.norm_bound and self.search is not None:
            raise ValueError(
                "the updates of a search's jobs are neither bounded nor noised; leave norm_bound and noise out"
            )
        if self.noise and self.strategy in SINGLE:
            raise ValueError(
                f"{self.strategy} needs each site's own update, which a run with noise has not; choose another"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether the aggregator learns sums of the sites' updates alone."""
        return is_masked(self.masking, self.min_sites) and self.search is None

    @property
    def goal(self) -> Goal:
        """The figure by which the best round is chosen."""
        return GOALS[self.algorithm]

    @property
    def options(self) -> dict[str, float]:
        """The strategy's numbers, with defaults where nothing else was asked for."""
        return {**OPTIONS[self.strategy], **self.strategy_options}


def parse_run(values: object) -> RunSpec:
    """Check a specification from outside. Raises TrainingError with the first thing that is wrong."""
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the run"
        raise TrainingError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def run_message(run: RunSpec) -> training_pb2.RunSpec:
    """Write a specification as its message."""
    message = training_pb2.RunSpec(
        **run.model_dump(exclude={*_SPANS, "settings", "search"}),
        settings_json=json.dumps(run.settings),
        search_json="" if run.search is None else json.dumps(run.search),
    )
    for name in _SPANS:
        getattr(message, name).FromTimedelta(getattr(run, name))
    return message


def read_run(message: training_pb2.RunSpec) -> RunSpec:
    """Read a specification from its message. Raises TrainingError with the first thing that is wrong."""
    try:
        settings, search = json.loads(message.settings_json or "{}"), json.loads(message.search_json or "null")
    except ValueError as error:
        raise TrainingError("settings, or a search: they are no JSON object") from error
    values: dict[str, Any] = {
        "name": message.name,
        "algorithm": message.algorithm,
        "rounds": message.rounds,
        "min_sites": message.min_sites,
        "strategy": message.strategy or "fedavg",
        "strategy_options": dict(message.strategy_options),
        "evaluate_every": message.evaluate_every,
        "patience": message.patience,
        "seed": message.seed,
        "settings": settings,
        "first_weights": message.first_weights,
        "search": search,
        "masking": message.masking or "auto",
        "site_figures": message.site_figures or "all",
        "norm_bound": message.norm_bound,
        "noise": message.noise,
    }
    values.update({name: getattr(message, name).ToTimedelta() for name in _SPANS if message.HasField(name)})
    values.update({name: getattr(message, name) for name in _SHARES if message.HasField(name)})
    return parse_run(values)
