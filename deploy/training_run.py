"""Train one agent over a running federation, on the label images that its study has just written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import tomli_w
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cairn.errors import TrainingError, Unreachable
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import RunSpec, run_message
from cairn.v1 import training_pb2, training_pb2_grpc
from deploy.federation import Federation
from deploy.processes import run, wait_for
from deploy.study_run import STUDY

RUN: Final = "tumour-search"
ROUNDS: Final = 4
STATE: Final = "tumour"  # whose largest region the agent searches
PIXEL_MM: Final = 0.004  # a box of 25 such pixels holds a few cells
PATIENCE_S: Final = 1800.0
# Small enough for a demo on two cores. The paper's own numbers are the defaults of agent_trainer/config.py.
SETTINGS: Final[Mapping[str, Any]] = {
    "tasks": ["tumour-centre"],
    "box": 25,
    "channels": [8, 16, 16],
    "kernels": [5, 3, 3],
    "hidden": [64, 64],
    "scales": [4, 2, 1],
    "reward_unit_mm": PIXEL_MM,
    "gamma": 0.5,  # a few steps ahead are enough where every step's reward points the way, and learnt much sooner
    "learning_rate": 1e-3,
    "target_every": 150,
    "epsilon_steps": 10_000,
    "steps_per_update": 8,
    "step_limit": 60,
    "warm_up": 1000,
    "capacity": 50_000,
    "replay": "sketched",
    "round_updates": 150,
    "validation_share": 0.34,
}


@dataclass(frozen=True)
class Trained:
    """What the run came to; part of the demo's summary.

    seconds          of the rounds together
    bytes_per_round  of model updates, each site, both ways
    error_mm         mean radial error on the sites' validation images, first and last validation
    pictures         the agent's way on one of the images
    """

    run: str
    rounds: int
    seconds: float
    bytes_per_round: Mapping[str, int]
    error_mm: Sequence[float]
    pictures: Sequence[str]


def site_training() -> dict[str, Any]:
    """Return the section of site.toml with which a site of the demo takes part."""
    return {"runs": ["*"], "threads": 1, "scenes": [{"kind": "labels", "study": STUDY, "pixel_mm": PIXEL_MM}]}


def train(running: Federation, *, min_sites: int, console: Console, pictures: Path) -> Trained:
    """Ask for the run, follow it to its end and let its agent search. Raises TrainingError when it fails."""
    spec = RunSpec(
        name=RUN,
        algorithm="dqn",
        rounds=ROUNDS,
        min_sites=min_sites,
        round_deadline=timedelta(minutes=10),
        settings=dict(SETTINGS),
    )
    found = training_pb2.ShowRunResponse()
    with operator_channel(running.profile) as channel:
        stub = training_pb2_grpc.RunsStub(channel)
        with errors_from_wire():
            begun = stub.ListRuns(training_pb2.ListRunsRequest(), timeout=30).runs
            if RUN not in {one.name for one in begun}:  # else this was cut off, and goes on
                stub.CreateRun(training_pb2.CreateRunRequest(spec=run_message(spec)), timeout=30)
        with Progress(
            TextColumn("{task.description:<44}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), console=console,
        ) as bar:  # fmt: skip
            task = bar.add_task("training: waiting for the sites", total=ROUNDS)

            def finished() -> bool:
                nonlocal found
                try:
                    with errors_from_wire():
                        found = stub.ShowRun(training_pb2.ShowRunRequest(name=RUN), timeout=10)
                except Unreachable:
                    return False
                about = found.summary
                bar.update(task, description=f"training: {about.round} of {ROUNDS} rounds", completed=about.round)
                if about.state == "failed":
                    raise TrainingError(f"the training failed: {about.message}")
                return about.state == "done"

            wait_for("the end of the training", finished, running.programs, PATIENCE_S)
    return Trained(
        run=RUN,
        rounds=found.summary.round,
        seconds=sum(one.seconds for one in found.rounds),
        bytes_per_round={site.site: int(site.bytes) for site in found.rounds[-1].sites},
        error_mm=errors(found),
        pictures=search(running, pictures),
    )


def errors(found: training_pb2.ShowRunResponse) -> list[float]:
    """Return the first and the last validation's error, over all sites."""
    known = [one.metrics["validation/mean_mm"] for one in found.rounds if "validation/mean_mm" in one.metrics]
    return [known[0], known[-1]] if known else []


def search(running: Federation, folder: Path) -> list[str]:
    """Let the trained agent search one site's label image, as a person there would; returns the pictures."""
    site = sorted(running.sites)[0]
    labels = running.site_folder(site) / "labels" / STUDY
    scenes = folder / "scenes.toml"
    source = {"kind": "labels", "folder": str(labels), "pixel_mm": PIXEL_MM}
    scenes.write_text(tomli_w.dumps({"scenes": [source]}), encoding="utf-8")
    said = run(
        ["evaluate", RUN, "--scenes", str(scenes), "--profile", str(running.profile), "--starts", "3",
         "--animate", str(folder), "--json"], PATIENCE_S
    )  # fmt: skip
    scenes.unlink()
    drawn: list[str] = json.loads(said)["pictures"]
    return drawn
