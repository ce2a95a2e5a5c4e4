"""The systemd units are valid, and as shut as they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from cairn.cli import make_app

UNITS = Path(__file__).parents[2] / "deploy/systemd"
SERVICES = sorted(UNITS.glob("*.service"))
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not os.environ.get("CI"), reason="no systemd-analyze"
)


def analyse(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/cairn/bin/cairn", sys.executable))
    done = analyse("verify", *sorted(tmp_path.iterdir()))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if "backup" not in unit.name], ids=lambda unit: unit.name)
def test_a_service_is_shut_off_from_the_machine(unit: Path) -> None:
    done = analyse("security", "--offline=true", "--threshold=20", unit)  # tenths; 10.0 is wide open
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_unit_calls_a_command_that_exists(unit: Path) -> None:
    called = re.search(r"/opt/cairn/bin/cairn (\w+ \w+)", re.search(r"^ExecStart=(.*)$", unit.read_text(), re.M)[1])
    program, command = called[1].split()
    assert command in get_command(make_app([program])).commands[program].commands
