"""`cairn train dqn` as a researcher types it, against a real aggregator."""

from pathlib import Path

import pytest

from cairn.run import read_run
from tests.aggregator.runs.parties import Parties

RUN = """
name = "sella"
rounds = 50
min_sites = 3
strategy = "fedprox"
strategy_options = { proximal_mu = 0.02 }
round_deadline = 90

[settings]
tasks = ["sella", "nasion"]
batch = 64
"""


def test_a_run_is_what_the_file_says_but_for_what_the_options_say(cairn, parties: Parties, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    chosen = ("--rounds", 7, "--set", "batch=96", "--set", "replay=sketched", "--set", "scales=[4, 2, 1]")
    said = cairn("train", "dqn", "--config", tmp_path / "run.toml", *chosen, "--no-watch", "--json").json
    run = read_run(parties.researcher.show("sella").spec)
    assert said == run.model_dump(mode="json")
    assert (run.rounds, run.min_sites, run.round_deadline.total_seconds()) == (7, 3, 90)
    assert (run.strategy, run.options) == ("fedprox", {"proximal_mu": 0.02})
    wanted = {"tasks": ["sella", "nasion"], "batch": 96, "replay": "sketched", "scales": [4, 2, 1]}
    assert run.settings == wanted, "only what was chosen is part of the run"
    assert parties.researcher.state("sella") == "queued"


def test_a_name_and_tasks_on_the_command_line_are_enough(cairn, parties: Parties) -> None:
    said = cairn("train", "dqn", "ceph", "--task", "a", "--task", "b", "--rounds", 2, "--min-sites", 1, "--no-watch")
    assert (said.code, said.out) == (0, "ceph is in the queue; follow it with: cairn runs show ceph --watch\n")
    assert read_run(parties.researcher.show("ceph").spec).settings == {"tasks": ["a", "b"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rounds", 2), "min_sites: "),
        (("--rounds", 2, "--min-sites", 1, "--set", "gama=0.5"), "gama: "),
        (("--rounds", 2, "--min-sites", 1, "--set", "gamma"), "--set 'gamma' is not NAME=VALUE"),
        (("--rounds", 2, "--min-sites", 1, "--set", "box=4"), "box: "),
        (("--rounds", 2, "--min-sites", 1, "--deadline", 0), "round_deadline: "),
        (("--rounds", 2, "--min-sites", 1, "--strategy", "fedmagic"), "strategy: "),
        (("--rounds", 2, "--min-sites", 1, "--study", "nowhere"), "nowhere"),
        (("--config", "nowhere.toml"), "nowhere.toml cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_no_run(cairn, parties: Parties, arguments, sentence: str) -> None:
    said = cairn("train", "dqn", "sella", *arguments, "--no-watch")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("cairn: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert cairn("runs", "list", "--json").json["runs"] == []


@pytest.mark.parametrize(
    ("text", "sentence"), [("a = ", "is no TOML file"), ("settings = 5", "as a table, [settings]")]
)
def test_a_file_that_makes_no_sense_is_one_sentence(cairn, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    said = cairn("train", "dqn", "--config", tmp_path / "run.toml")
    assert (said.code, sentence in said.err, said.err.count("\n")) == (1, True, 1)


def test_a_name_that_is_taken_is_refused(cairn, parties: Parties) -> None:
    parties.researcher.create("sella")
    said = cairn("train", "dqn", "sella", "--rounds", 2, "--min-sites", 1, "--no-watch")
    assert (said.code, "sella" in said.err) == (1, True)
