"""What a search has found so far: its jobs ranked, as a table for people and as JSON, and the best strategy."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from agent_trainer.search.journal import Record
from cairn.errors import TrainingError


def ranked(records: Iterable[Record]) -> list[Record]:
    """Return the finished jobs, best first; of equal rewards the earlier."""
    finished = [record for record in records if record.state == "finished"]
    return sorted(finished, key=lambda record: (-_reward(record), record.job))


def best(records: Iterable[Record]) -> Record:
    """Return the job of the best reward. Raises TrainingError when none has finished."""
    found = ranked(records)
    if not found:
        raise TrainingError("no job of this search has finished yet, so there is no best strategy; wait for one")
    return found[0]


def rewards(records: Iterable[Record]) -> list[tuple[int, float]]:
    """Return the jobs that finished and their rewards, by number."""
    return [(record.job, _reward(record)) for record in sorted(ranked(records), key=lambda record: record.job)]


def _reward(record: Record) -> float:
    assert record.reward is not None  # of every finished job
    return record.reward


def leaderboard(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the finished jobs as JSON can say them, best first.

    over_routine  the reward less that of job 0, the routine strategy; None when that has none
    """
    records = list(records)
    routine = next((record.reward for record in records if record.job == 0), None)
    return [
        {
            "rank": rank,
            "job": record.job,
            "reward": record.reward,
            "over_routine": None if routine is None else _reward(record) - routine,
            "strategy": record.strategy,
            "figures": dict(record.figures),
            "seconds": record.seconds,
        }
        for rank, record in enumerate(ranked(records), 1)
    ]


def leaderboard_table(records: Iterable[Record], most: int = 20, test: str = "") -> Table:
    """Return the first so many rows of the leaderboard, a column a parameter, and under it what became of all jobs.

    test  the name of the figure of test images, which has a column where jobs told it
    """
    records = list(records)
    rows = leaderboard(records)[:most]
    states = [record.state for record in records]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    table = Table(caption=f"{len(records)} jobs: {told}" if records else "no jobs yet", caption_justify="left")
    names = list(rows[0]["strategy"]) if rows else []
    tested = any(test in row["figures"] for row in rows)
    for name in ("rank", "job", "reward", "over routine", *(["on test images"] if tested else []), *names):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        over = row["over_routine"]
        shown = [f"{row['reward']:.4f}", "" if over is None else f"{over:+.4f}"]
        shown += [f"{row['figures'][test]:.4f}" if test in row["figures"] else ""] if tested else []
        table.add_row(str(row["rank"]), str(row["job"]), *shown, *(said(row["strategy"][name]) for name in names))
    return table


def said(value: Any) -> str:
    """Say a parameter's value."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
