"""Searches for a training strategy on real volumes: every method of `cairn search` with the same budget of jobs.

    python -m benchmarks.search run --out search.jsonl [--seeds 0 1 2 3 4] [--jobs 16]
    python -m benchmarks.search table search.jsonl [--picture search.png]

A job trains a small 3D U-Net on hippocampi for a few seconds of one core, in this process; four are "in flight", done
one after another, so that each proposal knows of as many results as it would beside three other machines. A job's seed
follows from the search's seed and the job's number: what two methods ask for alike (the routine strategy, the first
random ones) is trained once. Only a job that is the best so far in its search is measured on the test volumes. Seeds
come one after another, so that those that are there are whole; what is in the file already is not trained again.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from agent_trainer.search import training
from agent_trainer.search.comparison import Course, compared, course, spread
from agent_trainer.search.data import Data
from agent_trainer.search.jobs import Answer, Job, Search
from agent_trainer.search.journal import Journal, Record, read_journal
from agent_trainer.search.space import Space, standard_space
from agent_trainer.search.spec import SearchSpec, proposer
from agent_trainer.search.testing import measure
from agent_trainer.segmentation.config import read_config
from cairn.errors import CairnError

DATA: Final = Path(__file__).parents[2] / "shared" / "data" / "dev" / "hippocampus"
CLASSES: Final = {"anterior": 1, "posterior": 2}
LEARN: Final = 24  # volumes to learn from and to validate on; the hash of their names divides them
TEST: Final = 30
UPDATES: Final = 40
IN_FLIGHT: Final = 4
METHODS: Final = ("printed", "reinforce", "ppo", "discrete", "continuous", "random", "tpe")
SETTINGS: Final[Mapping[str, Any]] = {
    "classes": list(CLASSES),
    "modality": "mr",
    "network": "unet",
    "width": 8,
    "depth": 3,
    "blocks": 0,
    "patch": [32, 32, 32],
    "batch": 1,
    "foreground": 1.0,
    "validation_share": 0.35,
}
BARE: Final = "no augmentation, rate 1e-2"  # what a person might have tried first, for comparison


def spec(method: str, seed: int, jobs: int) -> SearchSpec:
    """Return a search of paper 2's space: a learning rate and nine augmentations."""
    space = Space(parameters=standard_space().parameters, settings=dict(SETTINGS))
    return SearchSpec.model_validate(
        {"space": space, "method": method, "seed": seed, "jobs": jobs, "in_flight": IN_FLIGHT, "updates": UPDATES}
    )


def tables(folder: Path) -> tuple[Data, Data]:
    """Lay links to the volumes into folders, in the order of their names' hashes: those of a search, those to test."""
    names = sorted(
        (path.name for path in (DATA / "images").iterdir()), key=lambda n: hashlib.sha256(n.encode()).hexdigest()
    )
    found = []
    for part, some in (("learn", names[:LEARN]), ("test", names[LEARN : LEARN + TEST])):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
            for name in some:
                (folder / part / kind / name).symlink_to((DATA / kind / name).resolve())
        table = {"kind": "files", "images": f"{part}/images", "labels": f"{part}/labels", "classes": CLASSES}
        found.append(Data({"volumes": [{**table, "modality": "mr"}]}, folder))
    return found[0], found[1]


class Trainings:
    """All jobs of all methods, each trained once, written to a file as soon as it is done."""

    def __init__(self, out: Path, folder: Path) -> None:
        self._out, self._folder = out, folder
        self._learn, self._test = tables(folder)
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        self._done: dict[str, dict[str, Any]] = {row["key"]: row for row in rows if row["kind"] == "training"}
        self._weights: dict[str, training.Trained] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row to the file."""
        with self._out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def reward(self, asked: SearchSpec, job: Job) -> dict[str, Any]:
        """Train a job, or find that it has been; its row."""
        key = _key(job)
        if key not in self._done:
            began = time.process_time()
            told: dict[str, Any] = {"kind": "training", "key": key, "settings": job.settings, "seed": job.seed}
            try:
                done = self._train(asked, job)
                told |= {"reward": done.reward, "figures": dict(done.figures)}
            except CairnError as error:
                told |= {"reward": None, "why": str(error)}
            self._done[key] = told | {"cpu_s": round(time.process_time() - began, 2), "test": None}
            self.write(self._done[key])
        return self._done[key]

    def tested(self, asked: SearchSpec, job: Job) -> float:
        """Measure a job on the test volumes, once."""
        row = self._done[_key(job)]
        if row["test"] is None:
            trained = self._weights.get(_key(job)) or self._train(asked, job)  # bit for bit the same, on one thread
            config = read_config(json.dumps(dict(job.settings)))
            row["test"] = measure("segmentation", config, trained.weights, self._test, "cpu")["test/dice"]
            self.write(row)
        return float(row["test"])

    def _train(self, asked: SearchSpec, job: Job) -> training.Trained:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            done = self._weights[_key(job)] = training.train(asked, job, self._learn, Path(folder))
        return done


def _key(job: Job) -> str:
    return hashlib.sha256(json.dumps([job.seed, job.settings], sort_keys=True).encode()).hexdigest()[:16]


class Here:
    """A runner that does the oldest job whenever it is asked for answers."""

    def __init__(self, asked: SearchSpec, trainings: Trainings) -> None:
        self._asked, self._trainings = asked, trainings
        self._waiting: list[Job] = []
        self._best: float | None = None

    def submit(self, job: Job) -> None:
        """Put a job into the queue."""
        self._waiting.append(job)

    def answers(self, timeout_s: float) -> Sequence[Answer]:  # noqa: ARG002 - a runner's signature
        """Do the oldest job."""
        job = self._waiting.pop(0)
        row = self._trainings.reward(self._asked, job)
        reward, figures = row["reward"], {}
        if reward is not None and (self._best is None or reward > self._best):
            self._best = reward
            figures["test/dice"] = self._trainings.tested(self._asked, job)
        return [Answer(job.number, reward, row.get("why", ""), figures=figures)]

    def withdraw(self, job: int) -> None:
        """Forget a job."""
        self._waiting = [one for one in self._waiting if one.number != job]


def search(out: Path, seeds: Sequence[int], jobs: int, methods: Sequence[str]) -> None:
    """Run all methods with each seed; a row of kind "search" is of one that has ended."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainings = Trainings(out, folder)
        for seed in seeds:
            for method in methods:
                asked = spec(method, seed, jobs)
                path = folder / f"{method}-{seed}.journal"
                with Journal(path, asked) as journal:
                    for _ in Search(asked, proposer(asked), journal, Here(asked, trainings)).run():
                        pass
                records = [_as_row(record) for record in read_journal(path)[1]]
                told = {"method": method, "seed": seed, "asked": jobs, "records": records}
                trainings.write({"kind": "search", **told})
            _reference(trainings, seed, jobs)


def _reference(trainings: Trainings, seed: int, jobs: int) -> None:
    """Train without any augmentation at a high rate: what the searches' gain is also to be seen against."""
    asked = spec("random", seed, jobs)
    strategy = dict.fromkeys(asked.space.names, 0.0) | {"learning_rate": 1e-2}
    job = Job(0, 1, 1000 + seed, asked.space.run_settings(strategy))
    row = trainings.reward(asked, job)
    trainings.write(
        {"kind": "reference", "name": BARE, "seed": seed, "reward": row["reward"], "test": trainings.tested(asked, job)}
    )


def _as_row(record: Record) -> dict[str, Any]:
    told = {"job": record.job, "units": record.units, "state": record.state, "reward": record.reward}
    return told | {"figures": dict(record.figures), "why": record.why}


def read(path: Path) -> tuple[list[Course], list[dict[str, Any]]]:
    """Read all searches that have ended of the seeds that every method has ended with, and the references."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    searches = {(row["method"], row["seed"]): row for row in rows if row["kind"] == "search"}
    methods = list(dict.fromkeys(method for method, _ in searches))
    whole = [seed for seed in sorted({seed for _, seed in searches}) if all((m, seed) in searches for m in methods)]
    courses = [_course(searches[method, seed]) for method in methods for seed in whole]
    return courses, [row for row in rows if row["kind"] == "reference" and row["seed"] in whole]


def _course(row: Mapping[str, Any]) -> Course:
    asked = spec(row["method"], row["seed"], row["asked"])
    records = [
        Record(
            one["job"],
            tuple(one["units"]),
            asked.space.strategy(one["units"]),
            one["state"],
            reward=one["reward"],
            figures=one["figures"],
        )
        for one in row["records"]
    ]
    return course(asked, records)


def run() -> Iterator[dict[str, Any]]:
    """Yield lines for `python -m benchmarks`: one seed, half the jobs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "search.jsonl"
        search(out, [0], 8, METHODS)
        for row in compared(read(out)[0]):
            for what in ("reward", "test"):
                value = row[what]["mean"]
                yield {
                    "name": f"search/{row['method']}/{what}",
                    "value": round(value, 4),
                    "unit": "Dice",
                    "ratio": None,
                    "against": None,
                }


def main() -> None:
    """Search, or tell what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    running.add_argument("--jobs", type=int, default=16)
    running.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    telling = parts.add_parser("table")
    telling.add_argument("rows", type=Path)
    telling.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    if asked.what == "run":
        search(asked.out, asked.seeds, asked.jobs, asked.methods)
        return
    courses, references = read(asked.rows)
    print(markdown(courses, references))
    if asked.picture is not None:
        from agent_trainer.search.pictures import draw_comparison  # noqa: PLC0415 - matplotlib

        draw_comparison(asked.picture, courses)


def markdown(courses: Sequence[Course], references: Sequence[Mapping[str, Any]]) -> str:
    """Say the table of docs/BENCHMARKS.md: mean ± standard deviation over seeds, and the least and most of the test."""
    lines = ["| method | seeds | jobs | best validation Dice | its test Dice | least to most | test over routine |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in compared(courses):
        test, (least, most) = row["test"], row["jobs"]
        cells = [row["method"], str(row["searches"]), str(most) if least == most else f"{least} to {most}"]
        cells += [
            _mean(row["reward"]),
            _mean(test),
            f"{test['min']:.3f} to {test['max']:.3f}",
            _mean(row["test_over_routine"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    routine = {one.seed: one.routine for one in courses}  # of all methods the same
    alone = {"routine": list(routine.values()), BARE: [(row["reward"], row["test"]) for row in references]}
    for name, pairs in alone.items():
        if pairs:
            both = [_mean(asdict(found)) for values in zip(*pairs, strict=True) if (found := spread(values))]
            lines.append(f"| {name} | {len(pairs)} | 1 | {both[0]} | {both[1]} | | |")
    return "\n".join(lines)


def _mean(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.3f}" if found["sd"] is None else f"{found['mean']:.3f} ± {found['sd']:.3f}"


if __name__ == "__main__":
    main()
