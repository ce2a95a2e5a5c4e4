"""What goes into which image, and what watches the federation: checked without an engine."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from aggregator.settings import load_settings as load_aggregator
from aggregator.telemetry import make_metrics
from cairn.errors import ConfigError
from deploy.image_parts import PARTS, cut, lists
from edge_node.settings import load_settings

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "pyproject.toml"


def test_every_dependency_is_in_some_list_and_torch_in_none_of_the_sketch(tmp_path: Path) -> None:
    lists(PROJECT, tmp_path)
    found = {path.stem: path.read_text(encoding="utf-8").split("\n") for path in tmp_path.glob("*.txt")}
    wanted = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert set(wanted) <= {*found["edge-sketch"], *found["aggregator"]}
    assert not any(name.startswith(("torch", "flwr", "sqlalchemy")) for name in found["edge-sketch"])
    assert "torch==2.13.0" in found["train"]


def test_a_name_that_is_no_dependency_is_found(tmp_path: Path) -> None:
    text = PROJECT.read_text(encoding="utf-8").replace('"alembic", "fsspec"', '"alembik", "fsspec"')
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="alembik"):
        lists(tmp_path / "pyproject.toml", tmp_path)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_holds_the_commands_of_its_own_packages_alone(tmp_path: Path, part: str) -> None:
    cut(ROOT, part, tmp_path / "out")
    entries = tomllib.loads((tmp_path / "out/pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    packages = {value.split(".")[0] for value in entries["cairn.commands"].values()}
    assert packages <= set(PARTS[part])
    assert "edge" in entries["cairn.commands"]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set(PARTS[part])
    assert not list((tmp_path / "out").rglob("*.whl"))


def test_the_edges_do_not_import_what_their_images_lack() -> None:
    absent = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["cairn"]["images"]["not-at-the-edge"]
    modules = {"scikit-learn": "sklearn", "umap-learn": "umap", "prometheus-client": "prometheus_client"}
    names = "|".join(re.escape(modules.get(name, name)) for name in absent)
    written = re.compile(rf"^\s*(?:import|from) (?:{names})\b", re.MULTILINE)
    for package in ("cairn", "edge_node", "agent_trainer"):
        for path in (ROOT / package).rglob("*.py"):
            assert not written.search(path.read_text(encoding="utf-8")), path


def test_the_site_files_of_the_compose_files_are_settings(tmp_path: Path) -> None:
    for path in (ROOT / "deploy/compose/site.toml", ROOT / "deploy/edge/site.toml"):
        settings = load_settings(path)
        assert settings.local.page == "0.0.0.0:8080"
        assert settings.state_dir == Path("/var/lib/cairn")


def test_a_page_for_everybody_is_refused_outside_a_container(tmp_path: Path) -> None:
    text = (ROOT / "deploy/edge/site.toml").read_text(encoding="utf-8").replace("in_container = true", "")
    (tmp_path / "site.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="everybody on the network"):
        load_settings(tmp_path / "site.toml")


@pytest.mark.parametrize("page", ["10.1.2.3:8080", "0.0.0.0:99999", "0.0.0.0", "[::]:8080"])
def test_a_container_may_open_its_own_port_and_no_other_address(tmp_path: Path, page: str) -> None:
    text = (ROOT / "deploy/edge/site.toml").read_text(encoding="utf-8").replace("0.0.0.0:8080", page)
    (tmp_path / "site.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"local\.page"):
        load_settings(tmp_path / "site.toml")


AGGREGATOR = 'federation = "tissue"\naddresses = ["127.0.0.1"]\ndatabase_file = "database"\n'


def test_a_databases_url_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "aggregator.toml").write_text(AGGREGATOR, encoding="utf-8")
    (tmp_path / "database").write_text("postgresql+psycopg://cairn:word@db/cairn\n", encoding="utf-8")
    assert load_aggregator(tmp_path / "aggregator.toml").database_url == "postgresql+psycopg://cairn:word@db/cairn"


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_a_file_without_a_url_is_refused_and_never_repeated(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "aggregator.toml").write_text(AGGREGATOR, encoding="utf-8")
    if content is not None:
        (tmp_path / "database").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="database_file") as refused:
        _ = load_aggregator(tmp_path / "aggregator.toml").database_url
    assert "two words" not in str(refused.value)


def test_two_databases_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "aggregator.toml").write_text(f'{AGGREGATOR}database = "sqlite:///x.db"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="keep one"):
        load_aggregator(tmp_path / "aggregator.toml")


def test_the_dashboard_draws_metrics_that_there_are() -> None:
    known = {metric.name for metric in make_metrics().registry.collect()}
    drawn = json.loads((ROOT / "deploy/compose/grafana/dashboards/cairn.json").read_text(encoding="utf-8"))
    asked = {
        name for panel in drawn["panels"] for one in panel["targets"] for name in re.findall(r"cairn_\w+", one["expr"])
    }
    assert len(asked) >= 12
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= known
