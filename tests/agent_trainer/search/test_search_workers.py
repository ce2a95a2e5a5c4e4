"""Jobs in real processes: answers, workers that are killed or never answer, and a search that is killed and goes on."""

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

from agent_trainer.search.jobs import Search
from agent_trainer.search.journal import Journal, Record, read_journal
from agent_trainer.search.leaderboard import rewards
from agent_trainer.search.space import Parameter, Space
from agent_trainer.search.spec import SearchSpec, proposer
from agent_trainer.search.workers import Workers
from cairn.errors import ConfigError

ROOT = Path(__file__).parents[3]
SPACE = Space(parameters={"rate": Parameter(min=0, max=1)})
PATIENCE_S = 60.0

# A worker without Cairn starts at once: it reads its job, writes its process number where it can be found, and answers.
WORKER = """
import json, os, signal, sys, time
job = json.loads(sys.stdin.readline())
place = os.path.join(os.path.dirname(__file__), "worker-%d-%d" % (job["number"], job["attempt"]))
open(place, "w").write(str(os.getpid()))
reward = 0.9 - (job["settings"]["rate"] - 0.3) ** 2
{body}
print("epoch 1"); print(json.dumps({{"reward": reward, "figures": {{"test/dice": reward - 0.1}}}}))
"""
KILLED = 'if (job["number"], job["attempt"]) == (1, 1): os.kill(os.getpid(), signal.SIGKILL)'
HANGS = 'if (job["number"], job["attempt"]) == (1, 1): time.sleep(1000)'
DIVERGES = 'if job["number"] == 1: reward = float("nan")'
BREAKS = 'if job["number"] == 1: print("no memory", file=sys.stderr); sys.exit(3)'
MUMBLES = 'if job["number"] == 1: print("{\\"reward\\": \\"good\\"}"); sys.exit(0)'


def spec(**settings: object) -> SearchSpec:
    return SearchSpec(space=SPACE, method="random", **{"jobs": 4, "in_flight": 2, "deadline": 60, **settings})


def program(folder: Path, body: str) -> list[str]:
    (folder / "worker.py").write_text(WORKER.format(body=body))
    return [sys.executable, "-S", str(folder / "worker.py")]


def search(folder: Path, body: str, **settings: object) -> list[Record]:
    asked = spec(**settings)
    with Journal(folder / "journal", asked) as journal, Workers(program(folder, body), folder / "logs") as workers:
        list(Search(asked, proposer(asked), journal, workers).run())
    return read_journal(folder / "journal")[1]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_workers_answer_with_rewards_and_figures(tmp_path: Path) -> None:
    records = search(tmp_path, "")
    assert [record.reward for record in records] == [
        pytest.approx(0.9 - (record.strategy["rate"] - 0.3) ** 2) for record in records
    ]
    assert all(record.figures["test/dice"] == pytest.approx((record.reward or 0) - 0.1) for record in records)


def test_a_killed_worker_s_job_is_issued_again(tmp_path: Path) -> None:
    records = search(tmp_path, KILLED)
    assert [(record.state, record.attempts) for record in records] == [
        ("finished", 2 if record.job == 1 else 1) for record in records
    ]
    assert "the worker was killed by signal 9; what it said is in job-1.log" in (tmp_path / "journal").read_text()


def test_a_hung_worker_is_ended_at_its_deadline_and_its_job_issued_again(tmp_path: Path) -> None:
    records = search(tmp_path, HANGS, deadline=3, attempts=100)  # a busy machine may miss a deadline at any job
    assert records[1].attempts >= 2
    assert "no answer within 3 s" in (records[1].why or "")
    assert all(ended(int(place.read_text())) for place in tmp_path.glob("worker-1-*"))
    assert len(rewards(records)) == 4


def test_a_worker_whose_reward_is_not_a_number_has_failed(tmp_path: Path) -> None:
    records = search(tmp_path, DIVERGES)
    assert (records[1].state, records[1].why) == ("failed", "the reward is nan, which is no finite number")
    assert len(rewards(records)) == 3


@pytest.mark.parametrize(("body", "code"), [(BREAKS, 3), (MUMBLES, 0)])
def test_a_worker_that_ends_without_an_answer_is_given_up_after_its_attempts(
    tmp_path: Path, body: str, code: int
) -> None:
    records = search(tmp_path, body, attempts=2)
    assert records[1].state == "lost"
    assert f"ended with code {code} and no answer" in (records[1].why or "")
    assert ("no memory" in (tmp_path / "logs/job-1.log").read_text()) == (body == BREAKS)
    assert len(rewards(records)) == 3


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    asked = spec()
    with (
        Journal(tmp_path / "journal", asked) as journal,
        Workers([str(tmp_path / "nothing")], tmp_path / "logs") as workers,
        pytest.raises(ConfigError, match="cannot be started"),
    ):
        list(Search(asked, proposer(asked), journal, workers).run())


SERVED = """
from agent_trainer.search.workers import serve
from cairn.errors import TrainingError
def train(job):
    print("chatter that is no answer")
    if job.number == 1:
        raise TrainingError("there are no images")
    return job.settings["rate"], {"seed": job.seed}
serve(train)
"""


def test_a_worker_that_serves_a_function_answers_what_it_returns_or_raises(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    asked = spec(jobs=2)
    with (
        Journal(tmp_path / "journal", asked) as journal,
        Workers([sys.executable, str(tmp_path / "served.py")], tmp_path / "logs") as workers,
    ):
        list(Search(asked, proposer(asked), journal, workers).run())
    first, second = read_journal(tmp_path / "journal")[1]
    assert (first.reward, list(first.figures)) == (0.5, ["seed"])
    assert (second.state, second.why) == ("failed", "there are no images")
    assert "chatter" in (tmp_path / "logs/job-0.log").read_text()


def test_a_worker_with_a_fault_of_its_own_gives_no_answer_and_tells_its_log(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED.replace('TrainingError("there are no images")', 'ValueError("oh no")'))
    asked = spec(jobs=2, attempts=1)
    with (
        Journal(tmp_path / "journal", asked) as journal,
        Workers([sys.executable, str(tmp_path / "served.py")], tmp_path / "logs") as workers,
    ):
        list(Search(asked, proposer(asked), journal, workers).run())
    record = read_journal(tmp_path / "journal")[1][1]
    assert (record.state, "ended with code 1 and no answer" in (record.why or "")) == ("lost", True)
    log = (tmp_path / "logs/job-1.log").read_text()
    assert log.rstrip().endswith("ValueError: oh no")


# A search in a process of its own, one job at a time; the job that is in flight at the kill waits for a file.
SEARCH = """
import sys
from pathlib import Path
from agent_trainer.search.jobs import Search
from agent_trainer.search.journal import Journal
from agent_trainer.search.spec import SearchSpec, proposer
from agent_trainer.search.workers import Workers
folder = Path(sys.argv[1])
spec = SearchSpec.model_validate_json((folder / "spec.json").read_text())
with Journal(folder / "journal", spec) as journal, Workers(sys.argv[2:], folder / "logs") as workers:
    list(Search(spec, proposer(spec), journal, workers).run())
"""
WAITER = """
import json, os, sys, threading, time
from pathlib import Path
folder = Path(__file__).parent
job = json.loads(sys.stdin.readline())
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
if job["number"] == 3 and not (folder / "go").exists():
    (folder / "waiting.part").write_text(str(os.getpid()))
    (folder / "waiting.part").rename(folder / "waiting")
    while True:
        time.sleep(1)
print(json.dumps({"reward": 0.9 - (job["settings"]["rate"] - 0.3) ** 2}), flush=True)
os._exit(0)
"""


def test_a_killed_search_leaves_no_worker_and_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    asked = spec(jobs=6, in_flight=1)
    (tmp_path / "spec.json").write_text(asked.model_dump_json(by_alias=True))
    (tmp_path / "waiter.py").write_text(WAITER)
    command = [sys.executable, "-c", SEARCH, str(tmp_path), sys.executable, "-S", str(tmp_path / "waiter.py")]
    killed = subprocess.Popen(command, cwd=ROOT)
    wait_for((tmp_path / "waiting").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    worker = int((tmp_path / "waiting").read_text())
    wait_for(lambda: ended(worker))
    assert [record.state for record in read_journal(tmp_path / "journal")[1]] == ["finished"] * 3 + ["open"]

    (tmp_path / "go").touch()
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S)
    records = read_journal(tmp_path / "journal")[1]
    random = proposer(asked)
    assert [list(record.units) for record in records] == [random.propose(job).tolist() for job in range(6)]
    assert len(rewards(records)) == 6
    assert [json.loads(line).get("kind") for line in (tmp_path / "journal").read_text().splitlines()].count(
        "launched"
    ) == 6
