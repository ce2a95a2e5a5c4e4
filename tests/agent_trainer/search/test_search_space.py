"""The space of strategies: mappings there and back, what is refused, and the TOML that a run takes."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_trainer.algorithms import algorithm
from agent_trainer.search.space import (
    Parameter,
    Space,
    export,
    read_space,
    run_toml,
    standard_space,
)
from cairn.errors import ConfigError

TOML = """
[parameters.learning_rate]
min = 1e-4
max = 1e-2
scale = "log"
routine = 1e-4

[parameters."augmentation.flip"]
min = 0
max = 1

[parameters.depth]
min = 2
max = 5
whole = true

[parameters.block]
choices = ["plain", "residual"]

[settings]
batch = 4
augmentation.angle = 15.0
"""

ranges = st.tuples(st.floats(1e-6, 1e6), st.floats(1.01, 1e4), st.sampled_from(["linear", "log"])).map(
    lambda given: Parameter(min=given[0], max=given[0] * given[1], scale=given[2])
)
wholes = st.tuples(st.integers(1, 100), st.integers(1, 50), st.sampled_from(["linear", "log"])).map(
    lambda given: Parameter(min=given[0], max=given[0] + given[1], scale=given[2], whole=True)
)
units = st.floats(0, 1)


@given(ranges, units)
def test_a_range_maps_to_values_within_it_and_back(parameter: Parameter, unit: float) -> None:
    value = parameter.value(unit)
    assert parameter.low <= value <= parameter.high
    assert parameter.unit(value) == pytest.approx(unit, abs=1e-9)


@given(wholes)
def test_every_whole_number_maps_to_a_unit_and_back_to_itself(parameter: Parameter) -> None:
    for value in range(int(parameter.low), int(parameter.high) + 1):
        assert parameter.value(parameter.unit(value)) == value


@given(wholes, units)
def test_a_whole_parameter_has_whole_values_only(parameter: Parameter, unit: float) -> None:
    value = parameter.value(unit)
    assert isinstance(value, int)
    assert parameter.low <= value <= parameter.high


def test_whole_numbers_are_equally_wide() -> None:
    depth = Parameter(min=2, max=5, whole=True)
    found = [depth.value(unit) for unit in np.linspace(0.0001, 0.9999, 400)]
    assert [found.count(value) for value in (2, 3, 4, 5)] == [100] * 4


def test_the_middle_of_a_logarithmic_range_is_the_geometric_mean() -> None:
    assert Parameter(min=1e-4, max=1e-2, scale="log").value(0.5) == pytest.approx(1e-3)
    assert Parameter(min=1e-4, max=1e-2).value(0.5) == pytest.approx(0.00505)


def test_the_ends_of_a_logarithmic_range_are_as_they_were_written() -> None:
    rate = Parameter(min=1e-4, max=1e-2, scale="log")
    assert rate.ends() == (1e-4, 1e-2)


def test_choices_are_equally_wide_and_map_back() -> None:
    block = Parameter(choices=("plain", "residual", [16, 32]))
    found = [block.value(unit) for unit in np.linspace(0, 1, 301)]
    assert [found.count(choice) for choice in block.choices] == [100, 100, 101]
    assert [block.value(block.unit(choice)) for choice in block.choices] == list(block.choices)


def test_the_routine_strategy_is_one_half_of_everything_and_a_rate_of_1e_4() -> None:
    space = standard_space()
    assert space.routine() == {
        name: 1e-4 if name == "learning_rate" else 0.5 for name in ("learning_rate", *space.names[1:])
    }
    assert space.units(space.routine())[0] == 0
    assert {"augmentation.sharpen", "augmentation.elastic", "augmentation.zoom"} <= set(space.names)


def test_a_strategy_is_exported_as_the_toml_of_a_run(tmp_path: Path) -> None:
    space = read_space(TOML)
    strategy = space.strategy([0.5, 0.25, 0.9, 0.1])
    export(tmp_path / "best.toml", space, strategy)
    written = tomllib.loads((tmp_path / "best.toml").read_text())
    assert list(written) == ["settings"]
    assert written["settings"] == {
        "learning_rate": pytest.approx(1e-3),
        "augmentation": {"flip": 0.25, "angle": 15.0},
        "depth": 5,
        "block": "plain",
        "batch": 4,
    }
    assert space.strategy_of(written["settings"]) == strategy


def test_an_algorithm_takes_the_exported_settings() -> None:
    space = Space(parameters={"learning_rate": Parameter(min=1e-5, max=1e-2, scale="log"), "double": TRUTH})
    settings = tomllib.loads(run_toml(space, space.strategy([1.0, 0.9])))["settings"]
    config = algorithm("dqn").read_config(json.dumps(settings))
    assert (config.learning_rate, config.double) == (1e-2, True)


TRUTH = Parameter(choices=(False, True))


def test_a_range_that_the_algorithm_refuses_is_told_before_anything_is_trained() -> None:
    read_config = algorithm("dqn").read_config
    Space(parameters={"gamma": Parameter(min=0, max=0.99)}).check(read_config)
    with pytest.raises(ConfigError, match=r"the parameter gamma cannot be 1\.0: .*gamma"):
        Space(parameters={"gamma": Parameter(min=0, max=1)}).check(read_config)
    with pytest.raises(ConfigError, match="learning_rat"):
        Space(parameters={"learning_rat": Parameter(min=0.1, max=1)}).check(read_config)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"depth": 6}, "depth: 6 is outside 2 to 5"),
        ({"depth": 2.5}, "depth: 2.5 is no whole number"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is outside"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is no number"),
        ({"block": "dense"}, "block: 'dense' is none of 'plain', 'residual'"),
        ({"momentum": 0.9}, "momentum, which is not searched; known are learning_rate"),
    ],
)
def test_a_strategy_outside_its_range_is_refused(changed: dict[str, Any], words: str) -> None:
    space = read_space(TOML)
    with pytest.raises(ConfigError, match=words):
        space.run_settings(space.routine() | changed)


@pytest.mark.parametrize("given_units", [[0.5, 0.5, 0.5, 1.1], [0.5, 0.5, float("nan"), 0.5], [0.5, 0.5]])
def test_units_outside_0_to_1_or_too_few_are_refused(given_units: list[float]) -> None:
    with pytest.raises(ConfigError, match="the strategy"):
        read_space(TOML).strategy(given_units)


def test_settings_without_a_searched_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no depth"):
        read_space(TOML).strategy_of({"learning_rate": 1e-3, "augmentation": {"flip": 0.5}, "block": "plain"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[parameters.rate]\nmin = 1\nmax = 1", "parameters.rate: min is 1.0 and max 1.0"),
        ("[parameters.rate]\nmin = 0\nmax = 1\nscale = 'log'", "a logarithmic scale begins over 0"),
        ("[parameters.rate]\nmin = 0\nmax = inf", "parameters.rate.max"),
        ("[parameters.rate]\nmin = 0\nmax = 1\nstep = 1", "parameters.rate.step: .*known are min, max, scale"),
        ("[parameters.rate]\nmin = 0\nmax = 1\nroutine = 2", "parameters.rate: 2 is outside 0 to 1"),
        ("[parameters.depth]\nmin = 0.5\nmax = 2\nwhole = true", "whole ends"),
        ("[parameters.block]\nchoices = ['a']", "two or more"),
        ("[parameters.block]\nchoices = ['a', 'b']\nmin = 1", "choices have no min"),
        ("[parameters.Rate]\nmin = 0\nmax = 1", "Rate: String should match"),
        ("[parameters]", "parameters: Dictionary should have at least 1"),
        ("[parameters.a]\nmin = 0\nmax = 1\n[parameters.'a.b']\nmin = 0\nmax = 1", "a is a value"),
        ("[parameters.a]\nmin = 0\nmax = 1\n[settings]\na = 1", "searched and also fixed"),
        ("[parameters.'a.b']\nmin = 0\nmax = 1\n[settings]\na = 1", "settings fix a to a value"),
        ("[parameter.a]\nmin = 0", "parameter: .*known are parameters, settings|parameters: Field required"),
        ("[parameters", "not TOML"),
    ],
)
def test_a_wrong_space_is_told_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_space(text)
    assert "\n" not in str(caught.value).split("TOML: ")[0]


def test_a_space_survives_being_written_as_json() -> None:
    space = read_space(TOML)
    assert Space.model_validate_json(space.model_dump_json(by_alias=True)) == space


def test_a_parameter_is_not_changed() -> None:
    with pytest.raises(ValidationError):
        standard_space().parameters["learning_rate"].low = 1  # type: ignore[misc]
