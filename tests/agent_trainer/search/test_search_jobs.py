"""Algorithm 1 over a runner in this process: budget, order, failures, deadlines, and going on after an end."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from agent_trainer.search.jobs import Answer, Job, Search
from agent_trainer.search.journal import Event, Journal, Record, read_journal
from agent_trainer.search.leaderboard import best, leaderboard, leaderboard_table, ranked, rewards
from agent_trainer.search.space import Parameter, Space
from agent_trainer.search.spec import ControllerConfig, Method, SearchSpec, proposer, read_search
from cairn.errors import ConfigError, TrainingError

SPACE = Space(parameters={"rate": Parameter(min=0, max=1), "flip": Parameter(min=0, max=1)}, settings={"batch": 2})
Respond = Callable[[Job], Answer | None]


def bowl(job: Job) -> Answer:
    reward = 0.9 - (job.settings["rate"] - 0.3) ** 2 - (job.settings["flip"] - 0.6) ** 2
    return Answer(job.number, reward, figures={"test/dice": reward - 0.1})


class Here:
    """A runner that does the oldest job when it is asked for answers; one that has none lets the time-out pass."""

    def __init__(self, respond: Respond = bowl) -> None:
        self.respond, self.now = respond, 0.0
        self.submitted: list[Job] = []
        self.waiting: list[Job] = []
        self.withdrawn: list[int] = []
        self.most = 0

    def submit(self, job: Job) -> None:
        self.submitted.append(job)
        self.waiting.append(job)
        self.most = max(self.most, len(self.waiting))

    def answers(self, timeout_s: float) -> list[Answer]:
        for job in list(self.waiting):
            if (answer := self.respond(job)) is not None:
                self.waiting.remove(job)
                self.now += 1
                return [answer]
        self.now += timeout_s
        return []

    def withdraw(self, job: int) -> None:
        self.withdrawn.append(job)
        self.waiting = [one for one in self.waiting if one.number != job]


def spec(method: Method = "random", **settings: object) -> SearchSpec:
    return SearchSpec(space=SPACE, method=method, **{"jobs": 12, "in_flight": 3, "deadline": 60, **settings})


def run(path: Path, asked: SearchSpec, runner: Here, events: int | None = None) -> list[Event]:
    with Journal(path, asked) as journal:
        search = Search(asked, proposer(asked), journal, runner, lambda: runner.now).run()
        return [event for _, event in zip(range(events), search, strict=False)] if events else list(search)


def jobs_of(path: Path) -> list[Record]:
    return read_journal(path)[1]


def test_jobs_are_launched_up_to_n_and_one_with_each_result(tmp_path: Path) -> None:
    runner = Here()
    events = run(tmp_path / "journal", spec(), runner)
    kinds = [event.kind for event in events]
    assert kinds == ["launched"] * 3 + ["finished", "launched"] * 9 + ["finished"] * 3
    assert runner.most == 3
    assert [job.number for job in runner.submitted] == list(range(12))


def test_a_job_has_all_settings_of_a_run_and_a_seed_of_its_own(tmp_path: Path) -> None:
    runner = Here()
    run(tmp_path / "journal", spec(), runner)
    assert runner.submitted[0].settings == {"rate": 0.5, "flip": 0.5, "batch": 2}, "the routine strategy comes first"
    assert len({job.seed for job in runner.submitted}) == 12
    other = Here()
    run(tmp_path / "other", spec(), other)
    assert other.submitted == runner.submitted


def test_the_leaderboard_is_best_first_and_measures_against_the_routine(tmp_path: Path) -> None:
    run(tmp_path / "journal", spec(), Here())
    records = jobs_of(tmp_path / "journal")
    board = leaderboard(records)
    assert [row["reward"] for row in board] == sorted((value for _, value in rewards(records)), reverse=True)
    assert [row["rank"] for row in board] == list(range(1, 13))
    assert next(row for row in board if row["job"] == 0)["over_routine"] == 0
    assert board[0]["strategy"] == best(records).strategy
    assert board[0]["figures"]["test/dice"] == pytest.approx(board[0]["reward"] - 0.1)
    assert json.loads(json.dumps(board)) == board


def test_the_table_for_people_has_a_column_a_parameter_and_tells_of_jobs_without_a_reward(tmp_path: Path) -> None:
    run(tmp_path / "journal", spec(), Here(lambda job: Answer(job.number) if job.number == 5 else bowl(job)))
    table = leaderboard_table(jobs_of(tmp_path / "journal"), most=3, test="test/dice")
    console = Console(record=True, width=120, file=StringIO())
    console.print(table)
    text = console.export_text()
    top = best(jobs_of(tmp_path / "journal"))
    assert "on test images" in text
    assert f"{top.figures['test/dice']:.4f}" in text
    assert [word for word in ("rank", "over routine", "rate", "flip") if word not in text] == []
    assert "12 jobs: 11 finished, 1 failed" in text
    assert table.row_count == 3


def test_equal_rewards_rank_by_number() -> None:
    records = [Record(job, (0.5,), {}, "finished", reward=0.5) for job in (2, 0, 1)]
    assert [record.job for record in ranked(records)] == [0, 1, 2]


def test_there_is_no_best_strategy_before_a_job_has_finished() -> None:
    with pytest.raises(TrainingError, match="no job of this search has finished"):
        best([])


@pytest.mark.parametrize("reward", [math.nan, math.inf, None])
def test_a_reward_that_is_no_number_is_noted_and_the_search_goes_on(tmp_path: Path, reward: float | None) -> None:
    def respond(job: Job) -> Answer:
        return Answer(job.number, reward) if job.number == 4 else bowl(job)

    run(tmp_path / "journal", spec("ppo"), Here(respond))
    records = jobs_of(tmp_path / "journal")
    assert [record.job for record in records if record.state == "failed"] == [4]
    assert records[4].why == f"the reward is {reward}, which is no finite number"
    assert len(rewards(records)) == 11


def test_a_training_that_fails_says_why_and_is_not_tried_again(tmp_path: Path) -> None:
    def respond(job: Job) -> Answer:
        return Answer(job.number, why="the loss is no number") if job.number == 1 else bowl(job)

    runner = Here(respond)
    run(tmp_path / "journal", spec(), runner)
    assert jobs_of(tmp_path / "journal")[1].why == "the loss is no number"
    assert len(runner.submitted) == 12


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run(tmp_path / "journal", spec(jobs=1), Here(lambda job: Answer(job.number, 0.5, figures={"a": math.nan, "b": 2})))
    assert jobs_of(tmp_path / "journal")[0].figures == {"b": 2}


class Ear:
    """A proposer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float | None]] = []
        self._random = proposer(spec())

    def propose(self, job: int) -> object:
        return self._random.propose(job)

    def learn(self, job: int, reward: float) -> None:
        self.told.append((job, reward))

    def drop(self, job: int) -> None:
        self.told.append((job, None))


@pytest.mark.parametrize("failed_as", [None, 0.0])
def test_a_failed_training_is_learned_from_only_when_it_has_been_given_a_reward(
    tmp_path: Path, failed_as: float | None
) -> None:
    def respond(job: Job) -> Answer:
        return Answer(job.number, math.nan) if job.number == 1 else Answer(job.number, 0.5)

    asked, runner, ear = spec(jobs=3, failed_as=failed_as), Here(respond), Ear()
    with Journal(tmp_path / "journal", asked) as journal:
        list(Search(asked, ear, journal, runner, lambda: runner.now).run())
    assert ear.told == [(0, 0.5), (1, failed_as), (2, 0.5)]


def test_a_job_that_never_answers_is_issued_again_and_given_up_at_last(tmp_path: Path) -> None:
    runner = Here(lambda job: None if job.number == 2 else bowl(job))
    events = run(tmp_path / "journal", spec(attempts=3), runner)
    of_it = [event for event in events if event.job == 2]
    assert [event.kind for event in of_it] == ["launched", "reissued", "reissued", "lost"]
    assert of_it[-1].why == "no answer within 60 s, at 3 attempts"
    assert [job.attempt for job in runner.submitted if job.number == 2] == [1, 2, 3]
    assert runner.withdrawn.count(2) == 3
    assert len(rewards(jobs_of(tmp_path / "journal"))) == 11


def test_a_job_whose_worker_was_lost_finishes_at_another_attempt(tmp_path: Path) -> None:
    def respond(job: Job) -> Answer:
        lost = Answer(job.number, why="the worker was killed by signal 9", lost=True)
        return lost if (job.number, job.attempt) == (5, 1) else bowl(job)

    run(tmp_path / "journal", spec(), Here(respond))
    record = jobs_of(tmp_path / "journal")[5]
    assert (record.state, record.attempts) == ("finished", 2)


def test_a_late_answer_counts_once(tmp_path: Path) -> None:
    class Late(Here):
        """Answers job 0 twice: both attempts come in."""

        def answers(self, timeout_s: float) -> list[Answer]:
            found = super().answers(timeout_s)
            return [*found, *(Answer(0, 0.1) for answer in found if answer.job == 0)]

    runner = Late()
    run(tmp_path / "journal", spec(), runner)
    assert jobs_of(tmp_path / "journal")[0].reward == pytest.approx(0.85)


def test_a_search_whose_jobs_all_fail_ends_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of 10 jobs gave a reward; the last: there is no image"):
        run(tmp_path / "journal", spec(jobs=100), Here(lambda job: Answer(job.number, why="there is no image")))


def test_a_search_ends_when_the_proposer_has_nothing_left_to_try(tmp_path: Path) -> None:
    events = run(tmp_path / "journal", spec("discrete", jobs=1000), Here())
    assert len(events) < 500
    found = best(jobs_of(tmp_path / "journal")).strategy
    assert found == {"rate": pytest.approx(0.3), "flip": pytest.approx(0.6)}


@pytest.mark.parametrize("method", ["ppo", "reinforce", "tpe", "continuous", "discrete"])
@pytest.mark.parametrize("events", [1, 3, 4, 9])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, method: Method, events: int) -> None:
    asked = spec(method, controller=ControllerConfig(hidden=8))
    run(tmp_path / "whole", asked, Here())
    run(tmp_path / "stopped", asked, Here(), events)
    runner = Here()
    run(tmp_path / "stopped", asked, runner)
    assert [r.units for r in jobs_of(tmp_path / "stopped")] == [r.units for r in jobs_of(tmp_path / "whole")]
    assert rewards(jobs_of(tmp_path / "stopped")) == rewards(jobs_of(tmp_path / "whole"))
    assert {job.attempt for job in runner.submitted} == {1}, "a stop is not a job's failure"


def test_a_finished_search_goes_on_when_it_is_given_more_jobs(tmp_path: Path) -> None:
    run(tmp_path / "journal", spec(jobs=4), Here())
    assert run(tmp_path / "journal", spec(jobs=4), Here()) == []
    run(tmp_path / "journal", spec(jobs=6), Here())
    assert len(jobs_of(tmp_path / "journal")) == 6


def test_a_journal_of_other_proposals_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    run(path, spec(jobs=3), Here())
    lines = path.read_text().splitlines()
    event = json.loads(lines[2]) | {"units": [0.123, 0.456]}
    path.write_text("\n".join([*lines[:2], json.dumps(event), *lines[3:]]) + "\n")
    with pytest.raises(TrainingError, match="job 1 of the journal is not what this version proposes"):
        run(path, spec(jobs=4), Here())
    assert best(jobs_of(path)).job == 0, "its results can still be read"


# The journal


def test_a_line_that_a_crash_has_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    run(path, spec(jobs=4), Here())
    whole = jobs_of(path)
    path.write_bytes(path.read_bytes()[:-20])
    with Journal(path, spec(jobs=4)) as journal:
        assert [record.state for record in journal.records.values()] == ["finished"] * 3 + ["open"]
    run(path, spec(jobs=4), Here())
    assert [(r.units, r.reward, r.attempts) for r in jobs_of(path)] == [(r.units, r.reward, 1) for r in whole]


def test_a_crash_before_the_first_line_was_whole_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"format": 2, "sea')
    assert len(run(path, spec(jobs=2), Here())) == 4
    assert len(jobs_of(path)) == 2


def test_every_event_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    asked, runner = spec(jobs=3), Here()
    with Journal(tmp_path / "journal", asked) as journal:
        for told, _ in enumerate(Search(asked, proposer(asked), journal, runner, lambda: runner.now).run(), 1):
            assert len((tmp_path / "journal").read_bytes().splitlines()) == told + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:2], "{}", *lines[2:]], "line 3 of journal is no event"),
        (lambda lines: [*lines[:2], "nonsense", *lines[2:]], "line 3 of journal is no event"),
        (lambda lines: [lines[0], *lines[2:]], "job 0 finished where that cannot be"),
        (lambda lines: [*lines, lines[-1]], "finished where that cannot be"),
        (lambda lines: ["{}", *lines[1:]], "is no journal of a search"),
        (lambda lines: [lines[0].replace('"format": 2', '"format": 1'), *lines[1:]], "of format 2"),
        (lambda lines: [lines[0].replace('"random"', '"genetic"'), *lines[1:]], "this version cannot read"),
    ],
)
def test_a_journal_that_is_not_whole_is_told(
    tmp_path: Path, change: Callable[[list[str]], list[str]], words: str
) -> None:
    path = tmp_path / "journal"
    run(path, spec(jobs=1), Here())
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(ConfigError, match=words):
        read_journal(path)
    with pytest.raises(ConfigError, match=words):
        Journal(path, spec(jobs=1))


def test_a_journal_of_another_search_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path / "journal", spec(), Here())
    with pytest.raises(ConfigError, match="of a search with another seed; give the settings"):
        Journal(tmp_path / "journal", spec(seed=1))
    with Journal(tmp_path / "journal", spec(deadline=5, attempts=1)) as journal:
        assert len(journal.records) == 12


def test_two_searches_do_not_write_to_one_journal(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "journal", spec()),
        pytest.raises(TrainingError, match="another search is writing to journal"),
    ):
        Journal(tmp_path / "journal", spec())
    with Journal(tmp_path / "journal", spec()):
        pass


def test_a_journal_that_is_missing_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_journal(tmp_path / "journal")
    (tmp_path / "journal").touch()
    with pytest.raises(ConfigError, match="journal is empty"):
        read_journal(tmp_path / "journal")


# What was asked for


def test_a_search_is_read_from_its_toml(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(
        'method = "reinforce"\njobs = 40\ndeadline = 90\n[controller]\nhidden = 8\n'
        "[space.parameters.rate]\nmin = 0\nmax = 1\n[space.settings]\nbatch = 2\n"
    )
    found = read_search(path)
    assert (found.method, found.jobs, found.deadline, found.controller.hidden) == (
        "reinforce",
        40,
        timedelta(seconds=90),
        8,
    )
    assert found.space.settings == {"batch": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "space: Field required"),
        ("[space.parameters.a]\nmin = 0\nmax = 1\nstep = 1", "space.parameters.a.step: .*known are min"),
        ("[space.parameters.a]\nmin = 0\nmax = 1\n[controller]\nclips = 1", "controller.clips: .*known are hidden"),
        ("job = 3\n[space.parameters.a]\nmin = 0\nmax = 1", "job: .*known are space, algorithm, updates"),
        ("[space.parameters.a]\nmin = 0\nmax = 1\n[space.sets]", "space.sets: .*known are parameters, settings"),
        ("method = 'genetic'\n[space.parameters.a]\nmin = 0\nmax = 1", "method: Input should be 'ppo'"),
        ("jobs =", "no TOML file"),
    ],
)
def test_a_wrong_search_is_told_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "search.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_search(tmp_path / "search.toml")


def test_a_search_whose_file_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_search(tmp_path / "search.toml")
