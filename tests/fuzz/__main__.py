"""`python -m tests.fuzz COUNT[:SEED] [TARGET…]`: feed each target so many mutated messages, and print JSON a line.

A message that crashes, hangs (five seconds of the processor) or asks for more than a gigabyte is kept under
tests/fuzz/found, for a person to make smaller and to put into the corpus when the fault is mended.
"""

import hashlib
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import psutil

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"
HANG_S = 5.0
MEMORY = 1 << 30


class Hang(BaseException):
    """A message took too long."""


def feed(name: str, count: int, seed: int, folder: Path) -> dict[str, object]:
    """Feed one target; returns what happened."""
    target, rng, faults = TARGETS[name], random.Random(seed), dict[str, str]()
    seeds, slowest, began = target.seeds(folder), 0.0, time.process_time()
    for _ in range(count):
        data, start = mutate(rng, seeds, target.largest), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        try:
            target.feed(data, folder)
        except (Exception, Hang) as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            if key not in faults:
                faults[key] = hashlib.sha256(data).hexdigest()[:12]
                FOUND.mkdir(exist_ok=True)
                (FOUND / f"{name}.{faults[key]}").write_bytes(data)
                traceback.print_exception(error, limit=-6)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
    spent = time.process_time() - began
    return {"target": name, "messages": count, "faults": faults, "slowest_s": round(slowest, 3), "cpu_s": round(spent)}


def main() -> None:
    """Feed the wanted targets, or all, one after another."""
    count, _, seed = sys.argv[1].partition(":")
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(Hang()))
    for name in sys.argv[2:] or TARGETS:
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        feed(name, 20, 0, folder)  # what is loaded when first used is no message's memory
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(feed(name, int(count), int(seed or 0), folder)) + "\n")
        sys.stdout.flush()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
