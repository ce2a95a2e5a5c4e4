"""Slow and lossy links: real processes in network namespaces, a switch between them that is as bad as a test says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.links import SITES
from tests.containers.switch import namespace

pytestmark = pytest.mark.containers
FOUND_S = 1800.0
WIDTH = "10000"  # docs/RELIABILITY.md has what was seen with 50,000


@contextmanager
def switch(prefix: str, folder: Path) -> Iterator[dict[str, int]]:
    """Run the switch; what it did stands in the dictionary when it has ended."""
    did: dict[str, int] = {}
    command = [sys.executable, "-m", "tests.containers.switch", prefix, str(folder), "hub", *SITES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield did
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        did |= json.loads(said.splitlines()[-1])


@pytest.mark.timeout(FOUND_S + 60)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
def test_over_links_that_are_slow_lose_double_reorder_and_are_cut_the_merged_tables_are_exact(tmp_path: Path) -> None:
    prefix = f"cairn{os.getpid()}"
    with switch(prefix, tmp_path) as did:
        inside = ["nsenter", f"--net=/run/netns/{namespace(prefix, 'hub')}", sys.executable]
        done = subprocess.run(
            [*inside, "-m", "tests.containers.links", prefix, str(tmp_path), WIDTH],
            capture_output=True,
            text=True,
            timeout=FOUND_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found | did))  # noqa: T201 - for docs/RELIABILITY.md
    assert found["merged tables equal"] == 10
    assert found["cuts"] >= 2
    assert min(did["lost"], did["doubled"], did["overtaking"], did["kept by a cut"]) > 0
