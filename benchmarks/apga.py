"""APGA against no masks, cutout and Grad-CAM on chest radiographs, and its speed beside a plain torch loop.

`python -m benchmarks apga` measures what takes a minute. The figures of docs/BENCHMARKS.md took longer:

    python -m benchmarks.apga cxr --seeds 0 1 2 3 4 > FILE.jsonl
    python -m benchmarks.apga table FILE.jsonl
    python -m benchmarks.apga speed

`--set '{"lambda_zeros": 0.1}'` changes settings, `--validate` measures on patients held out of those to learn from, to
choose settings by. One thread; a seed is that of the weights, the order and the choice of few shots.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import apga_cxr, apga_speed

SHORT = 25  # updates of the short runs, of pre-training and again of masks: they show that it works and not how well


def run() -> Iterator[dict[str, Any]]:
    """Measure what is short."""
    torch.set_num_threads(1)
    yield from apga_speed.speed("small", {})
    short = {"pretrain_updates": SHORT, "round_updates": SHORT}
    yield from apga_cxr.cxr((0,), SHORT, ("none", "apga"), (100,), apga_cxr.PLACES, short)


def main() -> None:
    """Run a long measurement, or lay one out as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.apga", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("cxr", "speed", "table"))
    parser.add_argument("paths", nargs="*", type=Path, help="of a table: the lines")
    parser.add_argument("--updates", type=int, default=apga_cxr.UPDATES, help="batches after pre-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=apga_cxr.METHODS, choices=(*apga_cxr.METHODS, "end-to-end"))
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 100], help="images a class; 0 is all")
    parser.add_argument("--places", nargs="+", default=apga_cxr.PLACES, choices=apga_cxr.PLACES)
    parser.add_argument("--validate", action="store_true", help="on patients held out of those to learn from")
    parser.add_argument("--set", type=json.loads, default={}, help="settings, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "table":
        lines = [json.loads(text) for path in given.paths for text in path.read_text(encoding="utf-8").splitlines()]
        print(apga_cxr.table(lines))
        return
    for line in measured(given):
        print(json.dumps(line), flush=True)


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure what is asked for."""
    if given.what == "speed":
        yield from (line for networks in apga_speed.SETTINGS for line in apga_speed.speed(networks, given.set))
    else:
        yield from apga_cxr.cxr(
            given.seeds, given.updates, given.methods, given.shots, given.places, given.set, validate=given.validate
        )


if __name__ == "__main__":
    main()
