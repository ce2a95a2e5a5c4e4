"""The researcher's commands against a real aggregator, whose trainer is the test."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aggregator.runs.superlink import Programs
from cairn.cli import main
from cairn.profile import operator_channel
from cairn.v1 import training_pb2
from tests.aggregator.conftest import Clock, Running, clock, start_aggregator
from tests.aggregator.runs.conftest import IDLE
from tests.aggregator.runs.parties import Parties, Researcher, let_in

__all__ = ["clock", "start_aggregator"]  # fixtures


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def parties(start_aggregator: Callable[..., Running], clock: Clock, tmp_path: Path) -> Parties:
    running = start_aggregator(None, Programs(IDLE, IDLE))
    trainer = let_in(running, tmp_path / "trainer", clock)
    researcher = Researcher(lambda: operator_channel(running.profile))
    return Parties(running, researcher, trainer, running.folder / "runs")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs `cairn ARGUMENTS…` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cairn", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def cairn(command: Callable[..., Said], parties: Parties, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The same, for the operator of the running aggregator."""
    monkeypatch.setenv("CAIRN_PROFILE", str(parties.running.profile))
    return command


def round_of(number: int, **metrics: float) -> training_pb2.Round:
    """Report a round of two sites: north has trained on two landmarks, south was late."""
    north = {"validation/sella/n": 3, "validation/sella/mean_mm": 2.0}
    north |= {"validation/nasion/n": 1, "validation/nasion/mean_mm": 4.0}
    sites = [
        training_pb2.SiteRound(site="north", state="trained", metrics=north, bytes=2**40),
        training_pb2.SiteRound(site="south", state="late", reason="it did not answer in time"),
    ]
    return training_pb2.Round(round=number, seconds=1.5, sites=sites, metrics={"loss": 0.5 / number, **metrics})
