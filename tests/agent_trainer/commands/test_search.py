"""`cairn search …` as a researcher types it: with worker processes, and stopped in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from agent_trainer.search.journal import read_journal
from cairn.run import read_run
from tests.agent_trainer.search.sources import SPACE, asked
from tests.aggregator.runs.parties import Parties

ROOT = Path(__file__).parents[3]
PATIENCE_S = 240.0
PRETRAINING = {"parameters": {"learning_rate": {"min": 1e-4, "max": 1e-2}}, "settings": {}}
CAIRN = [sys.executable, "-m", "cairn"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def in_flight(journal: Path, job: int) -> bool:
    """Tell whether a job has been launched and has not ended."""
    if not journal.exists() or not journal.read_bytes().count(b"\n"):
        return False
    return any(record.job == job and record.state == "open" for record in read_journal(journal)[1])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Path]:
    """Stop a search by Ctrl-C while its second job is under way, and let the same command go on."""
    file = asked(tmp_path_factory.mktemp("searched"))
    journal = file.with_suffix(".journal")
    command = [*CAIRN, "search", "run", str(file), "--jobs", "2", "--device", "cpu"]
    heeding = ["env", "--default-signal=INT", *command]  # where tests run in the background, it is ignored
    process = subprocess.Popen(heeding, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: in_flight(journal, 1))
    workers = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1], "no worker outlives its search"
    stopped = subprocess.CompletedProcess(command, process.returncode, *said)
    (file.parent / "stopped.journal").write_bytes(journal.read_bytes())
    more = [*command, "--json"]
    again = subprocess.run(more, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert again.returncode == 0, again.stderr
    (file.parent / "said.json").write_text(again.stdout)
    return journal, stopped, file


@pytest.mark.slow
def test_ctrl_c_leaves_a_search_so_that_the_same_command_goes_on(searched) -> None:
    journal, stopped, _ = searched
    assert stopped.returncode == 130
    assert "job 0: " in stopped.stdout
    assert stopped.stderr == "stopped; the same command goes on where search.journal ends\n"
    before, after = (read_journal(path)[1] for path in (journal.with_name("stopped.journal"), journal))
    assert [record.state for record in before] == ["finished", "open"]
    assert before[0] == after[0]
    assert (after[1].state, after[1].units, after[1].attempts) == ("finished", before[1].units, 1)


@pytest.mark.slow
def test_what_a_search_found_is_told_as_json_and_as_a_table(searched, command) -> None:
    journal, _, file = searched
    told = json.loads((file.parent / "said.json").read_text())
    assert told == command("search", "show", journal, "--json").json
    board = told["leaderboard"]
    assert [row["rank"] for row in board] == [1, 2]
    assert all(row["reward"] == row["figures"]["validation/balanced_accuracy"] for row in board)
    assert all(row["figures"]["test/n"] == 20 for row in board)
    said = command("search", "show", journal, "--top", 1)
    assert "random searches 2 settings of apga by validation balanced accuracy" in said.out
    assert "2 jobs: 2 finished" in said.out


@pytest.mark.slow
def test_the_best_strategy_is_what_cairn_train_takes(searched, command, cairn, parties: Parties) -> None:
    journal, _, file = searched
    best = file.parent / "best.toml"
    row = command("search", "show", journal, "--json").json["leaderboard"][0]
    said = command("search", "best", journal, "--out", best)
    assert said.out == (
        f"{best}: job {row['job']}, validation balanced accuracy {row['reward']:.4f}; "
        f"train with: cairn train apga --config {best}\n"
    )
    cairn("train", "apga", "found", "--config", best, "--rounds", 2, "--min-sites", 1, "--no-watch")
    settings = read_run(parties.researcher.show("found").spec).settings
    assert {name: settings[name] for name in row["strategy"]} == row["strategy"]
    assert settings["classes"] == ["dark", "bright"]
    refused = cairn("train", "attention", "--config", best, "--rounds", 2, "--min-sites", 1)
    assert (refused.code, "the file is of a run of apga" in refused.err) == (1, True)


@pytest.mark.slow
def test_a_search_is_drawn_and_compared(searched, command) -> None:
    journal, _, file = searched
    out, methods = file.parent / "course.png", file.parent / "methods.png"
    assert command("search", "picture", journal, out).out == f"{out}\n"
    said = command("search", "compare", journal, "--out", methods, "--json").json
    assert (said["methods"][0]["method"], said["methods"][0]["jobs"]) == ("random", [2, 2])
    assert said["pictures"] == [str(methods)]
    for path in (out, methods):
        with Image.open(path) as drawn:
            assert drawn.width > 800


@pytest.mark.slow
def test_a_job_of_no_search_and_files_that_cannot_be_written_are_one_sentence(searched, command) -> None:
    journal, _, file = searched
    for arguments, sentence in (
        (("best", journal, "--out", "b.toml", "--job", 7), "the search has no job 7; it has jobs 0 to 1"),
        (("best", journal, "--out", file / "b.toml"), "cannot be written (Not a directory); name another file"),
        (("run", file, "--journal", file / "j"), "cannot be written (Not a directory); name another file"),
        (("run", file, "--seed", 5), "is of a search with another seed; give the settings it was begun with"),
    ):
        said = command("search", *arguments)
        assert (said.code, said.err.count("\n"), sentence in said.err) == (1, 1, True), said.err


@pytest.mark.slow
def test_jobs_that_diverge_and_jobs_that_never_answer_are_told_and_the_search_ends(command, tmp_path: Path) -> None:
    rate = {"choices": [0.01, 1e30], "routine": 1e30}
    space = {**SPACE, "parameters": {"learning_rate": rate}, "settings": dict(SPACE["settings"])}
    del space["settings"]["learning_rate"]
    file = asked(tmp_path, jobs=1, updates=50, space=space)
    said = command("search", "run", file, "--device", "cpu")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "none of 1 jobs gave a reward; the last: " in said.err
    assert "finite" in said.err

    late = asked(tmp_path, jobs=1, attempts=2, deadline=0.2)
    said = command("search", "run", late, "--journal", tmp_path / "late.journal", "--device", "cpu")
    assert said.code == 1
    assert said.out.startswith("job 0 is issued again: no answer within 0.2 s\njob 0 lost: no answer within 0.2 s")
    assert "none of 1 jobs gave a reward; the last: no answer within 0.2 s, at 2 attempts" in said.err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sources": None}, 'search.toml names no data; set sources = "data.toml"'),
        ({"sources": "nowhere.toml"}, "nowhere.toml cannot be read (No such file or directory)"),
        ({"test": "search.toml"}, "search.toml has no list of tables [[volumes]], [[labelled]], [[scenes]]"),
        ({"algorithm": "segmentation"}, "the run's segmentation settings: "),
        ({"algorithm": "forest"}, "algorithm: Input should be "),
        (
            {"algorithm": "pretrain", "space": PRETRAINING},
            "search.toml names test images, and pre-training has no measure on them; leave out test",
        ),
        ({"updates": 0}, "updates: Input should be greater than or equal to 1"),
        ({"validations": 9}, "9 validations do not go into 4 updates"),
        (
            {"space": {**SPACE, "parameters": {"learning_rat": {"min": 0.0, "max": 1.0}}}},
            "learning_rat: Extra inputs are not permitted; known are action",
        ),
        (
            {"space": {**SPACE, "parameters": {"lambda_zeros": {"min": -1.0, "max": 1.0}}}},
            "the parameter lambda_zeros cannot be -1.0: ",
        ),
        (
            {"space": {**SPACE, "parameters": {"lambda_zeros": {"min": 0.0, "max": 1.0, "routine": 2.0}}}},
            "2 is outside 0 to 1",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_sentence_and_no_journal(command, tmp_path: Path, change, sentence: str) -> None:
    said = command("search", "run", asked(tmp_path, **change))
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1), said.err
    assert sentence in said.err
    assert not (tmp_path / "search.journal").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence_and_mended_the_search_goes_on(command, tmp_path: Path) -> None:
    (tmp_path / "search.journal.jobs").touch()
    said = command("search", "run", asked(tmp_path))
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "the search cannot write beside" in said.err
    assert "(File exists); mend that, and the same command goes on" in said.err
    assert read_journal(tmp_path / "search.journal")[1] == []


def test_journals_that_are_none_are_one_sentence(command, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("hello\n")
    for name, sentence in (("nowhere", "cannot be read (No such file"), ("other", "is no journal of a search")):
        for arguments in (("show",), ("picture",), ("best",), ("compare",)):
            more = {"picture": [tmp_path / "a.png"], "best": ["--out", tmp_path / "a.toml"]}.get(arguments[0], [])
            said = command("search", *arguments, tmp_path / name, *more)
            assert (said.code, said.err.count("\n"), sentence in said.err) == (1, 1, True), said.err
