"""Run Cairn's programs as processes, wait for what they announce, and take them down again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.errors import CairnError


@dataclass
class Program:
    """A running `cairn` program and where its log goes.

    asked  to end; a second signal could come when Python hears none any more, and kill it in its last moments
    """

    arguments: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    asked: bool = False

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it as a power cut would, by signal 9."""
        self.process.kill()
        self.process.wait()

    def ask(self) -> None:
        """Ask it to end."""
        if not self.asked:
            self.asked = True
            self.process.terminate()

    def stop(self, patience_s: float = 20.0) -> int:
        """Ask it to end and wait; returns its exit code, -9 when it had to be killed."""
        self.ask()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9


def start(arguments: Sequence[str], log: Path, source: Path | None = None) -> Program:
    """Start `cairn ARGUMENTS…` with its output appended to a log file.

    source  folder of another version's source, to run that one
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cairn", *arguments],
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(source)} if source else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Program(tuple(arguments), log, process)


def run(arguments: Sequence[str], timeout_s: float = 120.0, source: Path | None = None) -> str:
    """Run `cairn ARGUMENTS…` to its end and return what it printed. Raises CairnError with its sentence.

    source  folder of another version's source, to run that one
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cairn", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(source)} if source else None,
        )
    except subprocess.TimeoutExpired as error:
        raise CairnError(f"cairn {' '.join(arguments[:2])} did not end within {timeout_s:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise CairnError(f"cairn {' '.join(arguments[:2])} failed: {said[-1].removeprefix('cairn: ')}")
    return done.stdout


def wait_for(what: str, found: Callable[[], bool], programs: Sequence[Program], patience_s: float) -> None:
    """Wait until something is so. Raises CairnError when a program dies first or patience ends."""
    began = time.monotonic()
    while not found():
        for program in programs:
            if not program.alive():
                raise CairnError(
                    f"cairn {' '.join(program.arguments[:2])} ended with exit code {program.process.returncode} while "
                    f"the demo waited for {what}: {_last_line(program.log)}"
                )
        if time.monotonic() > began + patience_s:
            raise CairnError(f"{what} did not come within {patience_s:.0f} s; the logs are in {programs[0].log.parent}")
        time.sleep(min(0.25, 0.05 + (time.monotonic() - began) / 50))


def announced(path: Path) -> dict[str, Any]:
    """Read the addresses that a program announced, or nothing when it has not yet."""
    try:
        addresses: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return addresses


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it logged nothing"
