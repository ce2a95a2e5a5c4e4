"""Memory and processor time of an aggregator and of its sites at rest, before and after a study of the default size.

`python -m benchmarks.resident`: real processes on this machine, three sites with two images of 256² pixels. A program's
own children are counted with it; the second look comes after the time that a site's counting child waits for more work.
"""

import os
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from cairn.images import find_images
from deploy.dealing import common_bands, deal
from deploy.federation import Federation, federation
from deploy.study_run import run_study
from deploy.tissue import make_tissue
from edge_node.apart import IDLE_S

SITES, SIDE, REST_S = 3, 256, 30.0


def main() -> None:
    """Start a federation, look at it, run a study, look again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_tissue(folder / "data", folders=SITES, images_per_folder=2, size=SIDE, progress=lambda _n, _of: None)
        images = folder / "data" / "images"
        with federation(folder / "all", deal(find_images(images), SITES)) as running:
            _look(running, "enrolled, before a study")
            run_study(running, common_bands(images), {}, min_sites=SITES, top_k=20_000, console=Console(stderr=True))
            time.sleep(2 * IDLE_S)
            _look(running, "after a study")


def _look(running: Federation, when: str) -> None:
    before = [_ticks(program.process.pid) for program in running.programs]
    time.sleep(REST_S)
    for program, spent in zip(running.programs, before, strict=True):
        pid = program.process.pid
        share = (_ticks(pid) - spent) / os.sysconf("SC_CLK_TCK") / REST_S
        print(f"{when}: {program.log.stem} {_resident_mb(pid)} MB, {100 * share:.1f} % of a core")


def _resident_mb(pid: int) -> int:
    program = psutil.Process(pid)
    return sum(int(one.memory_info().rss) for one in (program, *program.children(recursive=True))) // 2**20


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
