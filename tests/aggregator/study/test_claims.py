"""Claims: one process at a time, and none for ever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

from aggregator.study.claims import claim
from tests.aggregator.simulated import wait_until

PROGRAM = """
import sys
from pathlib import Path
from aggregator.study.claims import claim
from aggregator.database import open_database
with claim(open_database(sys.argv[1]), "breast", Path(sys.argv[2])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_claim_is_held_by_one_at_a_time_and_given_back(engine: Engine, tmp_path: Path) -> None:
    with (
        claim(engine, "breast", tmp_path) as first,
        claim(engine, "breast", tmp_path) as second,
        claim(engine, "lung", tmp_path) as other,
    ):
        assert (first, second, other) == (True, False, True)
    with claim(engine, "breast", tmp_path) as again:
        assert again


def test_a_claim_ends_with_its_process_however_that_ends(engine: Engine, database_url: str, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, database_url, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with claim(engine, "breast", tmp_path) as mine:
            assert not mine
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)

    def free() -> bool:
        with claim(engine, "breast", tmp_path) as mine:
            return mine

    wait_until(free, "PostgreSQL notices the broken connection a moment later")
