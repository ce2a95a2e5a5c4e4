"""The GPU's figures run to their end before a card is lent for them: all parts, tiny, on the emulated card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_figure_is_made_and_what_is_compared_is_equal():
    if not shutil.which("g++"):
        pytest.skip("no g++: the emulation of the GPU cannot be compiled")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "cairn" / "emulated")))
    settings = os.environ | {"PYTHONPATH": path, "CAIRN_GPU_SCALE": "1e-6"}
    said = subprocess.check_output([sys.executable, "-m", "benchmarks", "gpu"], cwd=ROOT, env=settings, text=True)
    lines = [json.loads(line) for line in said.splitlines()]
    assert not [line for line in lines if line["name"].startswith("gpu/failed")]
    parts = {line["name"].split("/")[2] for line in lines if line["name"].startswith("gpu/took")}
    assert {"floors", "exact", "keys", "pixels", "scaling", "host", "file", "stages", "recovery", "peers"} == parts
    exact = [line["value"] for line in lines if line["name"].startswith("gpu/exact/")]
    equal = [line["equal"] for line in lines if line["name"].startswith("gpu/peers/")]
    assert exact == [1] * 4
    assert equal == [True] * 6
