"""Replay samplers on equal updates, and the bytes that a round sends.

One agent learns from all training images of `ceph`, in rounds, by the run's own replay plans: after the first round the
quantiser is fitted, after each later one the keys are tallied in the plan's sketch and added to those before.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Learner
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.evaluation import evaluate
from agent_trainer.pictures import Curves, draw_curves
from agent_trainer.rounds.layout import flatten
from agent_trainer.rounds.replay_plans import ReplayPlans
from agent_trainer.scenes.sources import Scenes
from benchmarks.dqn_ceph import SELLA, SMALL, deal, read_ceph, train
from cairn import codec, kernels
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint
from cairn.tally import Tally, zeros
from cairn.transitions import cell_histogram

Line = dict[str, Any]

ROUND = 500  # updates between two tallies
EVERY = 2  # rounds between two measurements
STARTS = 3  # searches an image; fewer than where the last figure counts

# The forms of drawing compared. A state code has 3 x 3 cells with 8 values each, "coarse" 2 x 2 with 4, "fine"
# 5 x 5 with 2 (a key holds 63 bits); "all" keeps every tuple and only draws the frequent ones less often. Below 0 the
# frequent are drawn more often, and not weighed back.
COARSE: dict[str, Any] = {"pool": (2, 2), "radix": 4}
FINE: dict[str, Any] = {"pool": (5, 5), "radix": 2}
UNWEIGHED: dict[str, Any] = {"beta0": 0.0, "beta_updates": 10**9}
FORMS: dict[str, dict[str, Any]] = {
    "uniform": {"replay": "uniform"},
    "prioritised": {"replay": "prioritised"},
    "unique": {"replay": "sketched", "beta": 0.0},
    "sketched_0.5": {"replay": "sketched", "beta": 0.5},
    "sketched_1": {"replay": "sketched", "beta": 1.0},
    "sketched_td": {"replay": "sketched_td", "beta": 0.5},
    "coarse_0.5": {"replay": "sketched", "beta": 0.5, **COARSE},
    "coarse_td": {"replay": "sketched_td", "beta": 0.5, **COARSE},
    "fine_0.5": {"replay": "sketched", "beta": 0.5, **FINE},
    "all_0.5": {"replay": "sketched", "beta": 0.5, "unique": False},
    "unique_-0.5": {"replay": "sketched", "beta": -0.5, **UNWEIGHED},
    "unique_-1": {"replay": "sketched", "beta": -1.0, **UNWEIGHED},
    "all_td": {"replay": "sketched_td", "beta": 0.5, "unique": False},
}


def replay(forms: Sequence[str], seeds: Sequence[int], updates: int, settings: dict[str, Any]) -> Iterator[Line]:
    """Measure each form's errors after every second round on the test images of sella."""
    for seed in seeds:
        for form in forms:
            config = DqnConfig(tasks=(SELLA,), **{**SMALL, "beta_updates": updates, **settings, **FORMS[form]})
            yield from curve(form, config, seed, updates)


def curve(form: str, config: DqnConfig, seed: int, updates: int) -> Iterator[Line]:
    """Train one agent in rounds; a line a measurement."""
    scenes, test = read_ceph(config)
    plans = ReplayPlans("benchmark", config)
    with tempfile.TemporaryDirectory() as folder:
        practice = DqnPractice(Scenes(scenes, ()), config, seed, "cpu", Path(folder))
        spent = 0.0
        for number in range(1, updates // ROUND + 1):
            began = time.process_time()
            take_counts(practice, plans)
            train(practice, ROUND)
            tally_round(practice, plans, number)
            spent += time.process_time() - began
            if number % EVERY:
                continue
            (found,) = evaluate(test, config, practice.learner.q_values, STARTS).values()
            stats = practice.replay.stats()
            yield {
                "name": f"dqn/replay/{form}",
                "value": found.mean_mm,
                "unit": "mm",
                **found.numbers(),
                "seed": seed,
                "updates": number * ROUND,
                "kept": stats.kept,
                "unique_share": stats.unique_share,
                "effective": round(stats.effective),
                "cpu_s": round(spent, 1),
            }


def take_counts(practice: DqnPractice, plans: ReplayPlans) -> None:
    """Give the replay the coder and the counts that there are, as a site does at the beginning of a round."""
    if not plans.published:
        return
    stage = codec.decode_plan(plans.published).stage
    assert isinstance(stage, ReplayPlan)
    practice.replay.code_with(stage.coder)
    if plans.tables is not None:
        table, seeds, functions = plans.tables[stage.table], stage.sketch.seeds(), kernels.load("numba")
        practice.replay.count_with(lambda keys: functions.estimate(table, keys, seeds))


def tally_round(practice: DqnPractice, plans: ReplayPlans, number: int) -> Tally | None:
    """Tally what a round's plan counts and let the plans take it; None for a run that counts nothing."""
    published = plans.plan(number)
    if not published:
        return None
    stage = codec.decode_plan(published).stage
    tables = zeros(stage)
    if isinstance(stage, ReplayRangesPlan):
        cells = practice.replay.take_cells()
        tables["cells"] += cell_histogram(cells)
        tables["transitions"] += len(cells)
    else:
        assert isinstance(stage, ReplayPlan)
        keys = practice.replay.take_keys()
        kernels.load("numba").update(tables[stage.table], keys, np.ones(len(keys), np.int64), stage.sketch.seeds())
        tables["transitions"] += len(keys)
    merged = Tally(fingerprint(published), tables)
    plans.absorb(published, merged)
    return merged


def sent(updates: int) -> Iterator[Line]:
    """Count the bytes that one of three sites sends in a round: weights, ranges, and keys of so many updates' steps."""
    for name, of in (("paper", DqnConfig()), ("small", DqnConfig(**SMALL))):
        weights = Learner(of, len(of.tasks), of.actions, seed=0).weights()
        yield {"name": f"dqn/bytes/model/{name}", "value": flatten(weights).nbytes, "unit": "bytes"}
    config = DqnConfig(tasks=(SELLA,), **{**SMALL, "replay": "sketched"})
    scenes, _ = read_ceph(config)
    plans = ReplayPlans("benchmark", config)
    with tempfile.TemporaryDirectory() as folder:
        practice = DqnPractice(Scenes(deal(scenes, 3)[0], ()), config, 0, "cpu", Path(folder) / "site")
        for number, name in enumerate(("ranges", "keys"), 1):
            take_counts(practice, plans)
            train(practice, updates)
            made = tally_round(practice, plans, number)
            assert made is not None
            path = Path(folder) / "tally"
            codec.write_tally(path, made)
            transitions = int(made.tables["transitions"][0])
            raw = sum(table.nbytes for table in made.tables.values())
            also = {"transitions": transitions, "raw": raw}
            yield {"name": f"dqn/bytes/replay/{name}", "value": path.stat().st_size, "unit": "bytes", **also}


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw the curves of mean and median error over updates, the mean over seeds."""
    forms = list(dict.fromkeys(line["name"].rsplit("/", 1)[1] for line in lines))
    panels = []
    for title, field in (("mean radial error, mm", "mean_mm"), ("median radial error, mm", "median_mm")):
        curves = {}
        for form in forms:
            mine = [line for line in lines if line["name"].endswith(f"/{form}")]
            ticks = sorted({line["updates"] for line in mine})
            means = [float(np.mean([line[field] for line in mine if line["updates"] == tick])) for tick in ticks]
            curves[form] = (ticks, means)
        panels.append(Curves(title, curves))
    draw_curves(path, panels, x="updates")
