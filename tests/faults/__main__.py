"""`python -m tests.faults {plain,masked} FIRST LAST`: run these seeds' schedules, and print what happened as JSON.

`python -m tests.faults full 1 1000`: one study for each write, which finds a full disk; ends behind the last write.
"""

import json
import shutil
import sys
import time
from collections import Counter

from edge_node import uplink
from tests.faults import masked, plain
from tests.faults.ground import Ground, in_memory

WORLDS = {"plain": plain.run, "masked": masked.run, "full": plain.run_full}


def main() -> None:
    """Run the seeds one after another; the first that violates the invariant ends it with its number."""
    kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    uplink.MESSAGE = plain.MESSAGE
    folder, total = in_memory(), Counter[str]()
    ground = Ground(folder)
    try:
        for seed in range(first, last):
            try:
                found = WORLDS[kind](seed, ground)
                if kind == "full" and not found["full_disks"]:
                    last = seed + 1
                else:
                    total += found + Counter(schedules=1)
            except BaseException:
                sys.stderr.write(f"seed {seed}\n")
                raise
            if seed + 1 == last or (seed + 1) % 100 == 0:
                so_far = {"kind": kind, **total, "cpu_seconds": round(time.process_time(), 1)}
                sys.stdout.write(json.dumps(so_far) + "\n")
                sys.stdout.flush()
            if seed + 1 == last:
                break
    finally:
        ground.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
