"""What one prediction costs, in a process of its own so that its peak memory is its own.

    python -m benchmarks.attention_cost LEARNER CONFIG IMAGE [--threads N]      prints one JSON object

The image is opened and read as the learner needs it, each time anew and not from the page cache; libraries are loaded
and the networks made before. `seconds` are on the clock, `cpu_seconds` of all threads together. `peak_mb` is of
the whole process, `above_mb` what is above that before the image was opened; `update_above_mb` the same of an update.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agent_trainer.attention_config import AttentionConfig, read_attention_config
from agent_trainer.patches import open_big
from benchmarks.attention_learners import learner
from benchmarks.attention_tasks import Sample
from benchmarks.patches import forget

TURNS = 3
STATUS = Path("/proc/self/status")


def cost(name: str, config: AttentionConfig, image: Path, *, threads: int = 1, update: bool = True) -> dict[str, Any]:
    """Measure a learner on an image file, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.attention_cost", name, config.model_dump_json(), str(image)]
    command += ["--threads", str(threads), *(["--update"] if update else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(name: str, config: AttentionConfig, image: Path, *, update: bool) -> dict[str, Any]:
    """Predict, and count; here, in this process."""
    made = learner(name, config, 0)
    before = megabytes("VmRSS")
    start_again()
    clock, processor = [], []
    for _ in range(TURNS):
        forget(image)
        began = time.perf_counter(), time.process_time()
        with open_big(image, 3) as big:
            answer = made.answer(big)
        clock.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    peak = megabytes("VmHWM")
    with open_big(image, 3) as big, FlopCounterMode(display=False) as counter:
        made.answer(big)
        pixels = big.height * big.width
    found = {
        "parameters": sum(p.numel() for p in made.networks.parameters()),
        "gigaflops": counter.get_total_flops() / 1e9,
        "pixels_seen": answer.pixels,
        "share_seen": answer.pixels / pixels,
        "seconds": min(clock),
        "cpu_seconds": min(processor),
        "peak_mb": peak,
        "above_mb": peak - before,
    }
    if update:
        start_again()
        with open_big(image, 3) as big:
            batch = 1 if name in ("small", "whole") else config.batch  # these go through one by one
            made.update([Sample(big, 0, ())] * batch, range(batch))
        found["update_above_mb"] = megabytes("VmHWM") - before
    return found


def megabytes(field: str) -> int:
    """Read a field of this process's memory: VmRSS now, VmHWM the most since `start_again`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def start_again() -> None:
    """Forget the most memory that there was."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Measure one learner."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_cost", description=__doc__)
    parser.add_argument("learner")
    parser.add_argument("config")
    parser.add_argument("image", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--update", action="store_true")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(1, given.threads)])
    torch.set_num_threads(given.threads)
    print(json.dumps(measured(given.learner, read_attention_config(given.config), given.image, update=given.update)))


if __name__ == "__main__":
    main()
