"""The space of training strategies: named settings, each with a range that is mapped to [0, 1]. Pure.

    λ in [λ_min, λ_max]  ->  λ* in [0, 1]       paper 2, §3.1; linear or logarithmic, the paper says not which

A strategy is one value a parameter. In [0, 1] it is a row of units, which is all that a search sees; as settings it is
what a run takes.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cairn.errors import ConfigError
from cairn.files import write_atomically

Units: TypeAlias = npt.NDArray[np.float64]
"""float64[d] in [0, 1], one number a parameter in the space's order."""
Strategy: TypeAlias = dict[str, Any]
"""Values by the parameters' names."""

Path_ = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$")]
RATES: Final = (1e-4, 1e-2)  # of learning; paper 2, §4
ROUTINE_RATE: Final = 1e-4  # paper 2, §4: "Routine"
AUGMENTATIONS: Final = (
    "sharpen",
    "smooth",
    "noise",
    "contrast",
    "intensity_shift",
    "flip",
    "rotate",
    "elastic",
    "zoom",
)  # the first five are paper 2's, §3.1, which goes on with "etc."


class Parameter(BaseModel):
    """What values a setting may take: a range, or a list of choices.

    whole    whole numbers only; all are equally wide in [0, 1], or in its logarithm
    choices  of anything that TOML can say, such as the blocks of a network; takes the range's place
    routine  the value that people take without a search; the middle of [0, 1] when left out
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float | None = Field(None, alias="min")
    high: float | None = Field(None, alias="max")
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False
    choices: tuple[Any, ...] = ()
    routine: Any = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.whole or self.scale == "log":
                raise ValueError("choices have no min, max, scale or whole; give one or the other")
            if len(self.choices) < 2 or any(one in self.choices[:at] for at, one in enumerate(self.choices)):
                raise ValueError("choices need two or more, each once")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"min is {self.low} and max {self.high}; min must be under max, or give choices")
        elif self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"min is {self.low:g} and max {self.high:g}; a whole parameter needs whole ends")
        elif self.scale == "log" and self.low <= 0:
            raise ValueError(f"min is {self.low:g}; a logarithmic scale begins over 0")
        if self.routine is not None:
            self.unit(self.routine)
        return self

    def unit(self, value: Any) -> float:
        """Map a value to [0, 1]; a choice or whole number to the middle of its part. Raises ValueError outside."""
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{value!r} is none of {', '.join(map(repr, self.choices))}")
            return (self.choices.index(value) + 0.5) / len(self.choices)
        assert self.low is not None  # checked when it was made
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is no number")  # noqa: TRY004 - one error for all that is wrong with a value
        if not self.low <= value <= self.high:  # NaN as well
            raise ValueError(f"{value:g} is outside {self.low:g} to {self.high:g}")
        if self.whole and not float(value).is_integer():
            raise ValueError(f"{value:g} is no whole number")
        low, high = self._ends()
        return min(1.0, max(0.0, (self._scaled(value) - low) / (high - low)))

    def value(self, unit: float) -> Any:
        """Map a place in [0, 1] to the value there. Raises ValueError outside [0, 1]."""
        if not 0 <= unit <= 1:
            raise ValueError(f"{unit} is outside 0 to 1")
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        assert self.low is not None
        assert self.high is not None
        if unit in (0, 1) and not self.whole:
            return self.high if unit else self.low  # as they were written; a logarithm and back may change a digit
        low, high = self._ends()
        place = low + unit * (high - low)
        value = math.exp(place) if self.scale == "log" else place
        value = min(self.high, max(self.low, round(value) if self.whole else value))
        return int(value) if self.whole else value

    def usual(self) -> Any:
        """Return the routine value."""
        return self.value(0.5) if self.routine is None else self.routine

    def ends(self) -> tuple[Any, ...]:
        """Return the values between which, or among which, a search may go."""
        return self.choices or (self.value(0.0), self.value(1.0))

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.scale == "log" else float(value)

    def _ends(self) -> tuple[float, float]:
        """Return the scaled ends; those of whole numbers half a number out, so that the outer ones are as wide."""
        assert self.low is not None
        assert self.high is not None
        margin = 0.5 if self.whole else 0.0
        return self._scaled(self.low - margin), self._scaled(self.high + margin)


class Space(BaseModel):
    """All strategies of a search.

    parameters  by the setting's name; a dot leads into a table, as in augmentation.flip
    settings    of the run that the search leaves as they are
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: dict[Path_, Parameter] = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names in order."""
        return tuple(self.parameters)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in self.names:
            if inside := next((other for other in self.names if other.startswith(f"{name}.")), None):
                raise ValueError(f"{name} is a value, so that {inside} cannot lie in it; name one of the two")
            if _find(self.settings, name) is not None:
                raise ValueError(f"{name} is searched and also fixed under settings; leave out one of the two")
            if blocked := _blocked(self.settings, name):
                raise ValueError(f"settings fix {blocked} to a value, so that {name} cannot lie in it")
        return self

    def units(self, strategy: Mapping[str, Any]) -> Units:
        """Map a strategy to [0, 1]. Raises ConfigError with the first value that is missing, unknown or outside."""
        if unknown := sorted(set(strategy) - set(self.parameters)):
            raise ConfigError(
                f"the strategy has {unknown[0]}, which is not searched; known are {', '.join(self.names)}"
            )
        if missing := [name for name in self.names if name not in strategy]:
            raise ConfigError(f"the strategy has no {missing[0]}; give a value for every parameter of the space")
        return np.array([self._said(name, strategy[name], self.parameters[name].unit) for name in self.names])

    def strategy(self, units: Sequence[float] | Units) -> Strategy:
        """Map units to a strategy. Raises ConfigError when there are too few or many, or one lies outside [0, 1]."""
        if len(units) != len(self.parameters):
            raise ConfigError(f"the strategy has {len(units)} numbers where {len(self.parameters)} are searched")
        return {
            name: self._said(name, float(unit), self.parameters[name].value)
            for name, unit in zip(self.names, units, strict=True)
        }

    def routine(self) -> Strategy:
        """Return what people take without a search; paper 2, §4: all 0.5, and a learning rate of 1e-4."""
        return {name: parameter.usual() for name, parameter in self.parameters.items()}

    def run_settings(self, strategy: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings of a run with this strategy, tables in tables. Raises ConfigError as `units`."""
        self.units(strategy)
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))  # tables of its own
        for name, value in strategy.items():
            *tables, last = name.split(".")
            table = settings
            for one in tables:
                table = table.setdefault(one, {})
            table[last] = list(value) if isinstance(value, tuple) else value
        return settings

    def strategy_of(self, settings: Mapping[str, Any]) -> Strategy:
        """Find the strategy in a run's settings. Raises ConfigError for what is missing or outside its range."""
        found = {name: _find(settings, name) for name in self.names}
        strategy = {name: value for name, value in found.items() if value is not None}
        self.units(strategy)
        return strategy

    def check(self, read_config: Callable[[str], Any]) -> None:
        """Let an algorithm's own settings refuse the ends of every range, before anything is trained.

        Raises ConfigError: which parameter cannot be what, and the algorithm's reason.
        """
        read_config(json.dumps(self.run_settings(self.routine())))
        for name, parameter in self.parameters.items():
            for value in parameter.ends():
                try:
                    read_config(json.dumps(self.run_settings(self.routine() | {name: value})))
                except ConfigError as error:
                    raise ConfigError(f"the parameter {name} cannot be {value!r}: {error}") from error

    @staticmethod
    def _said(name: str, value: Any, mapped: Callable[[Any], Any]) -> Any:
        try:
            return mapped(value)
        except ValueError as error:
            raise ConfigError(f"the strategy's {name}: {error}") from error


def _find(settings: Mapping[str, Any], name: str) -> Any:
    """Return the setting of a dotted name; None when it is not there."""
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _blocked(settings: Mapping[str, Any], name: str) -> str | None:
    """Return what stands in the way of a dotted name: a value where a table would have to be."""
    parts = name.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((one for one in above if not isinstance(_find(settings, one) or {}, Mapping)), None)


def standard_space(augmentations: Sequence[str] = AUGMENTATIONS, table: str = "augmentation") -> Space:
    """Return paper 2's space: a learning rate, and a probability of each augmentation."""
    low, high = RATES
    rate = Parameter(min=low, max=high, scale="log", routine=ROUTINE_RATE)
    chance = Parameter(min=0.0, max=1.0)
    return Space(parameters={"learning_rate": rate, **{f"{table}.{name}": chance for name in augmentations}})


def read_space(text: str) -> Space:
    """Read a space from TOML: tables [parameters.NAME], with quotes round a NAME with dots, and [settings].

    Raises ConfigError with the first thing that is wrong.
    """
    try:
        return Space.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the search space is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"the search space: {first_wrong(error, Space)}") from error


def first_wrong(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first thing that is wrong, and for an unknown key what is known in its place."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"] if part != "[key]"]
    message = first["msg"].removeprefix("Value error, ")
    hint = ""
    if first["type"] == "extra_forbidden":
        holder = Parameter if "parameters" in loc[:-1] else _inner(model, loc[:-1])
        known = ", ".join(field.alias or name for name, field in holder.model_fields.items())
        hint = f"; known are {known}"
    return f"{'.'.join(loc)}: {message}{hint}" if loc else f"{message}{hint}"


def _inner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for name in path:
        inner = model.model_fields[name].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return model


def run_toml(space: Space, strategy: Mapping[str, Any], algorithm: str | None = None) -> str:
    """Write a strategy as the TOML that `cairn train … --config` takes: all the run's settings under [settings].

    algorithm  that they are of, so that no other is trained with them
    """
    named = {} if algorithm is None else {"algorithm": algorithm}
    return tomli_w.dumps({**named, "settings": space.run_settings(strategy)})


def export(path: Path, space: Space, strategy: Mapping[str, Any], algorithm: str | None = None) -> None:
    """Write a strategy's TOML to a file. Raises ConfigError when the strategy does not fit, or the file cannot be."""
    text = run_toml(space, strategy, algorithm)
    try:
        with write_atomically(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file") from error
