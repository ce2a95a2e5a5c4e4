"""`cairn search start` as a researcher types it, against a real aggregator; its journal is the one a trainer wrote."""

import json
import tomllib
from pathlib import Path

import pytest
from safetensors.numpy import load, save_file

from agent_trainer.algorithms import algorithm
from agent_trainer.search.as_run import search_of
from agent_trainer.search.journal import Event, Journal
from agent_trainer.search.spec import read_search
from cairn.run import read_run
from cairn.v1 import training_pb2, training_pb2_grpc
from tests.aggregator.runs.parties import Parties

SEARCH = """
algorithm = "apga"
method = "random"
jobs = 5
updates = 20
deadline = 90
sources = "data.toml"

[space.settings]
classes = ["dark", "light"]
side = 16
channels = 1
classifier = "small"
masker = "small"
small_channels = [2]

[space.parameters.learning_rate]
min = 1e-4
max = 1e-2
scale = "log"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rates.toml"
    path.write_text(SEARCH)
    return path


def test_a_search_is_asked_for_as_the_run_that_it_is(cairn, parties: Parties, file: Path) -> None:
    said = cairn("search", "start", file, "--sites-per-job", 2, "--jobs", 7, "--no-watch")
    assert (said.code, said.out) == (0, "rates is in the queue; follow it with: cairn runs show rates --watch\n")
    run = read_run(parties.researcher.show("rates").spec)
    assert (run.algorithm, run.rounds, run.min_sites, run.round_deadline.total_seconds()) == ("apga", 7, 2, 90)
    found, asked = search_of(run), read_search(file, jobs=7)
    assert found == asked.model_copy(update={"sources": None})
    shown = cairn("runs", "show", "rates", "--json").json
    assert shown["spec"]["search"]["method"] == "random"
    assert "search_json" not in shown["spec"]
    assert "7 jobs" in cairn("runs", "show", "rates").out


def test_its_leaderboard_and_best_strategy_come_from_the_aggregator_by_its_name(
    cairn, parties: Parties, file: Path, tmp_path: Path
) -> None:
    cairn("search", "start", file, "--no-watch")
    early = cairn("search", "show", "rates")
    assert early.code == 1
    assert "rates has no journal of a search; that of a search is there from its first job on" in early.err
    spec = search_of(read_run(parties.researcher.show("rates").spec))
    place = parties.checkpoints / "rates"
    place.mkdir(parents=True)
    with Journal(place / "search.jsonl", spec) as journal:
        for job, reward in enumerate((0.5, 0.75, 0.625)):
            journal.append(Event(kind="launched", job=job, units=(job / 4,)))
            journal.append(Event(kind="finished", job=job, reward=reward, seconds=1.0))
    rows = cairn("search", "show", "rates", "--json").json["leaderboard"]
    assert [(row["job"], row["reward"]) for row in rows] == [(1, 0.75), (2, 0.625), (0, 0.5)]
    best = tmp_path / "best.toml"
    assert cairn("search", "best", "rates", "--out", best).code == 0
    written = tomllib.loads(best.read_text())
    assert written["settings"]["learning_rate"] == pytest.approx(1e-4 * 100**0.25)
    name = ("again", "--config", best, "--rounds", 1, "--min-sites", 1, "--no-watch")
    assert cairn("train", "apga", *name).code == 0
    assert cairn("search", "show", "again").err.startswith("cairn: again has no journal of a search")
    assert "there is no run 'nowhere'" in cairn("search", "show", "nowhere").err


def test_weights_that_its_settings_name_are_sent_and_every_job_may_begin_with_them(
    cairn, parties: Parties, file: Path, tmp_path: Path
) -> None:
    chosen = algorithm("apga")
    settings = read_search(file).space.run_settings({"learning_rate": 0.001})
    first = chosen.first_weights(chosen.read_config(json.dumps(settings)), 3)
    classifier = {name: array for name, array in first.items() if name.startswith("classifier.")}
    inner = {name.removeprefix("classifier."): array for name, array in classifier.items()}
    save_file(inner, tmp_path / "given.safetensors")
    given = f'classifier_weights = "{tmp_path}/given.safetensors"\n'
    file.write_text(SEARCH.replace('classifier = "small"\n', f'classifier = "small"\n{given}'))
    assert cairn("search", "start", file, "--no-watch").code == 0
    run = read_run(parties.researcher.show("rates").spec)
    assert run.settings["classifier_weights"].startswith("given.safetensors sha256:")
    parties.trainer.claim()
    with parties.trainer.stub(training_pb2_grpc.TrainingStub) as training:
        parts = training.FetchWeights(training_pb2.FetchWeightsRequest(name="rates"), timeout=10)
        sent = load(b"".join(part.data for part in parts))
    assert all((sent[name] == array).all() for name, array in classifier.items())


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (("jobs = 5", 'jobs = "many"'), (), "jobs: "),
        (("min = 1e-4", "min = 0.0"), (), "scale begins over 0"),
        (('scale = "log"', ""), ("--name", "No Name"), "name: "),
        (("max = 1e-2", "max = 1e9"), ("--jobs", 200_000), "jobs: "),
        (("updates = 20", "updates = 20\nshare_weights = true"), (), "share_weights = true is for jobs on one machine"),
        (("side = 16", "side = 1"), (), "side: "),
    ],
)
def test_a_search_that_cannot_be_meant_is_one_sentence_and_no_run(
    cairn, parties: Parties, file: Path, change: tuple[str, str], arguments: tuple[object, ...], sentence: str
) -> None:
    file.write_text(file.read_text().replace(*change))
    said = cairn("search", "start", file, *arguments, "--no-watch")
    assert (said.code, said.out) == (1, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert cairn("runs", "list", "--json").json["runs"] == []
