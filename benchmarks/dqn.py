"""The landmark agent: errors on `ceph`, replay samplers, bytes a round, and speed beside Stable-Baselines3.

`python -m benchmarks dqn` measures what takes a minute or two. The figures of docs/BENCHMARKS.md took longer:

    python -m benchmarks.dqn ceph --updates 6000 --seeds 0 --learners local centralised federated
    python -m benchmarks.dqn tasks --updates 4000 --seeds 0 --tasks 1 2 3
    python -m benchmarks.dqn replay --updates 3000 --seeds 0 1 2
    python -m benchmarks.dqn picture FILE.jsonl docs/pictures/dqn-replay.png

`--set '{"gamma": 0.9}'` changes settings. One thread; a seed is that of the weights, exploration and draws.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import dqn_ceph, dqn_replay, dqn_speed

SHORT = 300  # updates of the short runs, which show that it works and not how well
LEARNERS = ("local", "centralised", "federated")


def run() -> Iterator[dict[str, Any]]:
    """Measure what is short."""
    torch.set_num_threads(1)
    yield from dqn_speed.speed("small")
    yield from dqn_replay.sent(SHORT)
    yield from dqn_ceph.ceph((dqn_ceph.SELLA,), (0,), SHORT, LEARNERS[1:], {"warm_up": 640, "round_updates": 100})


def main() -> None:
    """Run a long measurement, or draw one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dqn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("ceph", "tasks", "replay", "bytes", "speed", "picture"))
    parser.add_argument("paths", nargs="*", type=Path, help="of a picture: the lines, and the PNG")
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", nargs="+", default=[dqn_ceph.SELLA], help="numbers of landmarks; 1 is sella")
    parser.add_argument("--learners", nargs="+", default=LEARNERS, choices=LEARNERS)
    parser.add_argument("--forms", nargs="+", default=list(dqn_replay.FORMS), choices=dqn_replay.FORMS)
    parser.add_argument("--validate", action="store_true", help="ceph: on images held out of those to learn from")
    parser.add_argument("--set", type=json.loads, default={}, help="settings, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for line in measured(given):
        print(json.dumps(line), flush=True)


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure what is asked for."""
    match given.what:
        case "ceph":
            yield from dqn_ceph.ceph(
                given.tasks, given.seeds, given.updates, given.learners, given.set, validate=given.validate
            )
        case "tasks":
            yield from dqn_ceph.agents(given.tasks, given.seeds, given.updates, given.set)
        case "replay":
            yield from dqn_replay.replay(given.forms, given.seeds, given.updates, given.set)
        case "bytes":
            yield from dqn_replay.sent(given.updates)
        case "speed":
            yield from (line for network in dqn_speed.SETTINGS for line in dqn_speed.speed(network))
        case "picture":
            lines = [json.loads(text) for text in given.paths[0].read_text(encoding="utf-8").splitlines()]
            dqn_replay.draw(lines, given.paths[1])


if __name__ == "__main__":
    main()
