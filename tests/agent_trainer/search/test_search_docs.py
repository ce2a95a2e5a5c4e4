"""docs/SEARCH.md is true: every setting with its default, every method, and examples that are searches."""

import ast
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from agent_trainer.search.data import read_data
from agent_trainer.search.spec import ControllerConfig, Method, SearchSpec, read_search
from agent_trainer.search.training import check, check_data

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "SEARCH.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model"), [("## Settings of a search", SearchSpec), ("Under `[controller]`", ControllerConfig)]
)
def test_every_setting_of_a_search_is_documented(heading: str, model: type[BaseModel]) -> None:
    table = PAGE.split(heading)[1].split("\n|---")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \| .+ \|$", table, re.MULTILINE))
    fields = {name: field for name, field in model.model_fields.items() if name != "controller"}
    assert list(rows) == list(fields), "in the order of the config"
    for name, field in fields.items():
        said = rows[name]
        if field.is_required():
            assert said == "required"
        elif isinstance(field.default, timedelta):
            assert said == f"timedelta(hours={field.default.total_seconds() / 3600:g})"
        else:
            assert ast.literal_eval(said) == field.default, name


def test_every_method_is_told() -> None:
    table = PAGE.split("## The methods")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table.split("\n\n**")[0], re.MULTILINE)) - {"method"} == set(
        get_args(Method)
    )


def test_the_page_s_own_files_are_a_search_and_its_data(tmp_path: Path) -> None:
    data, search = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    for name, text in (("data.toml", data), ("test.toml", data), ("search.toml", search)):
        (tmp_path / name).write_text(text)
    spec = read_search(tmp_path / "search.toml")
    check(spec)
    assert spec.sources is not None
    check_data(spec.algorithm, read_data(spec.sources))


def test_the_example_is_a_search_over_networks_and_its_data_are_tables() -> None:
    spec = read_search(DOCS / "examples/nas.toml")
    check(spec)
    assert {"depth", "width", "blocks", "norm"} == set(spec.space.names)
    for path in (spec.sources, spec.test):
        assert path is not None
        check_data(spec.algorithm, read_data(path))
    assert tomllib.loads((DOCS / "examples/nas.toml").read_text())["share_weights"]
