"""The documentation is true: names that it gives exist, commands and settings that exist are in it."""

import ast
import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from click import Command, Group
from pydantic import BaseModel
from typer.main import get_command

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.config import DqnConfig
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.segmentation.config import SegmentationConfig
from cairn.cli import GROUP, make_app
from cairn.run import OPTIONS

ROOT = Path(__file__).parents[1]
DOCS = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]


def commands(command: Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(command, Group):
        return [leaf for name, child in command.commands.items() for leaf in commands(child, (*path, name))] or [path]
    return [path]


def all_commands() -> list[str]:
    app: typer.Typer = make_app([])
    return [" ".join(("cairn", *path)) for path in commands(get_command(app))]


@pytest.mark.parametrize("way", ["The way of a pixel", "The way of a replay tuple", "The way of a train message"])
def test_every_step_of_a_way_in_the_architecture_exists(way: str) -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split(f"## {way}")[1].split("\n## ")[0]
    steps = re.findall(r"`([\w/]+\.py)` · `([\w.]+)`", section)
    assert 5 <= len(steps) < 15, f"{way} has {len(steps)} steps; it must be readable in under fifteen"
    for file, name in steps:
        assert (ROOT / file).is_file(), file
        found = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_documented(command: str) -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in DOCS)
    assert command in everything, f"no page under docs/ mentions `{command}`"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


def test_the_readme_captions_every_top_level_entry() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    shown -= {"demo-out", "build", "dist"} | {name for name in shown if name.endswith(".egg-info")}
    missing = sorted(name for name in shown if name not in readme)
    assert not missing, f"the README's file tree lacks {missing}"


def test_every_program_is_found_by_its_entry_point() -> None:
    programs = {
        "aggregator",
        "craft",
        "demo",
        "deploy",
        "edge",
        "evaluate",
        "explain",
        "export",
        "runs",
        "search",
        "study",
        "train",
    }
    assert {point.name for point in entry_points(group=GROUP)} == programs


@pytest.mark.parametrize(
    ("title", "config"),
    [
        ("a DQN", DqnConfig),
        ("APGA", ApgaConfig),
        ("attention sampling", AttentionConfig),
        ("pre-training", PretrainConfig),
        ("segmentation", SegmentationConfig),
    ],
)
def test_every_setting_of_an_algorithm_is_documented(title: str, config: type[BaseModel]) -> None:
    page = (ROOT / "docs/TRAINING.md").read_text(encoding="utf-8")
    section = page.split(f"## Settings of {title}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \| .+ \|$", section, re.MULTILINE))
    assert list(rows) == list(config.model_fields), "in the order of the config"
    for name, field in config.model_fields.items():
        default = {} if isinstance(field.default, BaseModel) else field.default  # a table's own are on a page of craft
        assert rows[name] == "required" if field.is_required() else ast.literal_eval(rows[name]) == default, name


@pytest.mark.parametrize("config", [ApgaConfig, DqnConfig, PretrainConfig, AttentionConfig, SegmentationConfig])
def test_every_setting_in_a_table_of_settings_is_on_a_page_of_the_craft(config: type[BaseModel]) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/craft/*.md"))
    for table, field in config.model_fields.items():
        if isinstance(field.default, BaseModel):
            for name in type(field.default).model_fields:
                assert f"`{table}.{name}`" in pages, f"no page under docs/craft mentions `{table}.{name}`"


def test_every_strategy_and_its_numbers_are_documented() -> None:
    page = (ROOT / "docs/TRAINING.md").read_text(encoding="utf-8")
    for strategy, options in OPTIONS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{strategy}` |"))
        for name, value in options.items():
            assert f"`{name}` {value:g}" in row
