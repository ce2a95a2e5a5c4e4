"""A federation that trains, under test: two sites with made images, and one with all that images can have wrong."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
import tomli_w
from PIL import Image as Pillow
from sqlalchemy import select

from aggregator import tables
from cairn.errors import Unreachable
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import RunSpec, run_message
from cairn.v1 import edge_pb2, training_pb2, training_pb2_grpc
from deploy.dealing import Hand
from deploy.federation import Federation, federation
from deploy.processes import wait_for
from edge_node.local_service import ask
from tests.invoking import invoke
from tests.system.observing import PATIENCE_S, Observed

SITES: Final = ("site-1", "site-2", "site-3")
SIDE: Final = 40
DEADLINE_S: Final = 60.0
SMALL: Final[dict[str, Any]] = {
    "box": 16,
    "channels": [4, 8],
    "kernels": [3, 3],
    "hidden": [16],
    "step_limit": 15,
    "envs": 8,
    "batch": 8,
    "warm_up": 40,
    "capacity": 4000,
    "steps_per_update": 8,
    "round_updates": 15,
    "replay": "sketched",
    "sketch_depth": 3,
    "sketch_width": 512,
}
# At the third site: task, and where it lies in which image. No image is searched for "spleen".
PLACES: Final = """image,task,x_mm,y_mm
good-1.png,liver,10,12
good-2.png,liver,22,25
good-3.png,liver,400,12
nan.tif,liver,20,20
good-1.png,heart,15,20
good-1.png,left-kidney,1e40,2e40
good-2.png,left-kidney,2e40,1e40
good-1.png,bladder,10,12
"""


def odd_scenes(folder: Path) -> list[dict[str, Any]]:
    """Write the third site's images and landmarks; returns its sources of scenes."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name in ("good-1", "good-2", "good-3"):
        Pillow.fromarray(rng.integers(0, 255, (SIDE, SIDE)).astype(np.uint8)).save(images / f"{name}.png")
    tifffile.imwrite(images / "nan.tif", np.full((SIDE, SIDE), np.nan, np.float32))
    (folder / "places.csv").write_text(PLACES)
    both = {"kind": "landmarks", "landmarks": str(folder / "places.csv"), "images": str(images)}
    return [
        {**both, "spacing_mm": [1.0, 1.0], "tasks": {"liver": "liver", "heart": "heart"}},
        # Distances that no float32 holds: whoever learns from them diverges.
        {**both, "spacing_mm": [1e39, 1e39], "tasks": {"left-kidney": "left-kidney"}},
        {**both, "tasks": {"bladder": "bladder"}},  # a PNG does not tell its spacing
    ]


def section(scenes: list[dict[str, Any]], *runs: str) -> dict[str, Any]:
    """Write a site's [training]."""
    return {"runs": list(runs), "threads": 1, "device": "cpu", "scenes": scenes}


@contextmanager
def training_federation(folder: Path) -> Iterator[Observed]:
    """Run an aggregator that trains and three sites; the third takes part in the runs `open-…` only."""
    odd = odd_scenes(folder.with_name("odd"))
    with federation(folder, [], training=section(odd, "open-*"), command=invoke) as running:
        for number, site in enumerate(SITES[:2]):
            made = {"kind": "generated", "images": 4, "size": SIDE, "seed": number}
            join(running, site, section([made], "*"))
        join(running, SITES[2], section(odd, "open-*"))
        yield Observed(running, [])


def join(running: Federation, site: str, training: dict[str, Any]) -> None:
    running.training = training
    running.join(Hand(site, ()))


def cairn(seen: Observed, *arguments: object) -> str:
    """Run a command as the operator; returns what it printed. Raises CairnError with its last sentence."""
    return invoke([*map(str, arguments), "--profile", str(seen.running.profile)])


def train(seen: Observed, name: str, *arguments: object, masking: str = "off", **settings: Any) -> str:
    """Ask for a run by `cairn train dqn` and watch it; returns what it printed."""
    config = seen.running.folder / f"{name}.toml"
    values = {"round_deadline": DEADLINE_S, "masking": masking, "masking_patience": DEADLINE_S}
    values["settings"] = {**SMALL, "tasks": ["liver"], **settings}
    config.write_text(tomli_w.dumps(values))
    return cairn(seen, "train", "dqn", name, "--config", config, *arguments)


def create(seen: Observed, name: str, *, rounds: int = 1, min_sites: int = 2, **settings: Any) -> None:
    """Ask for a run without waiting for it."""
    chosen = {**SMALL, "tasks": ["liver"], **settings}
    values = {"name": name, "algorithm": "dqn", "rounds": rounds, "min_sites": min_sites, "settings": chosen}
    # In plain: tests look at single sites' tallies and updates. Masked rounds: tests/agent_trainer/rounds.
    values |= {"round_deadline": DEADLINE_S, "evaluate_every": 0, "masking": "off"}
    spec = RunSpec.model_validate(values)
    with operator_channel(seen.running.profile) as channel, errors_from_wire():
        request = training_pb2.CreateRunRequest(spec=run_message(spec))
        training_pb2_grpc.RunsStub(channel).CreateRun(request, timeout=30)


def run_of(seen: Observed, name: str) -> tables.Run:
    """Read a run from the database, which is there while the aggregator is not."""
    with seen.session() as session:
        found = session.get(tables.Run, name)
        assert found is not None
        session.expunge(found)
        return found


def rounds_of(seen: Observed, name: str) -> dict[int, dict[str, dict[str, Any]]]:
    """Return what is known of each site by round."""
    with seen.session() as session:
        rows = session.scalars(select(tables.RunRound).filter_by(run=name).order_by(tables.RunRound.round)).all()
        return {row.round: {site["site"]: site for site in row.sites} for row in rows}


def states_of(seen: Observed, name: str) -> dict[int, dict[str, str]]:
    """Return the states of the sites by round."""
    return {
        number: {name: site["state"] for name, site in sites.items()} for number, sites in rounds_of(seen, name).items()
    }


def log_of(seen: Observed, name: str) -> list[str]:
    with seen.session() as session:
        return list(session.scalars(select(tables.RunLog.text).filter_by(run=name).order_by(tables.RunLog.line)))


def wait_until(seen: Observed, what: str, so: Callable[[], bool]) -> None:
    wait_for(what, so, seen.running.programs, PATIENCE_S)


def wait_in(seen: Observed, name: str, what: str, so: Callable[[], bool]) -> None:
    """Wait until something is so in a run, and no longer than the run goes on."""

    def found() -> bool:
        run = run_of(seen, name)
        assert run.state not in {"done", "failed", "stopped"}, f"{name} is {run.state} ({run.message}) before {what}"
        return so()

    wait_until(seen, what, found)


def ended(seen: Observed, name: str) -> tables.Run:
    """Wait for the end of a run."""
    wait_until(seen, f"the end of {name}", lambda: run_of(seen, name).state in {"done", "failed", "stopped"})
    return run_of(seen, name)


def status(seen: Observed, site: str) -> edge_pb2.StatusResponse:
    """Ask a site how it stands; nothing while it does not answer."""
    try:
        return ask(seen.running.site_folder(site) / "state")
    except Unreachable:
        return edge_pb2.StatusResponse()


def trains(seen: Observed, site: str, name: str, number: int) -> bool:
    """Tell whether a site is in the middle of a round."""
    now = status(seen, site).training
    return (now.run, now.round, now.busy) == (name, number, True)


def audit_lines(seen: Observed, site: str) -> list[dict[str, Any]]:
    path = seen.running.site_folder(site) / "state" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
