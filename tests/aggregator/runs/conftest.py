"""A real aggregator that trains, whose trainer is the test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.runs.superlink import Programs
from cairn.profile import operator_channel
from tests.aggregator.conftest import Clock, Running
from tests.aggregator.runs.parties import Parties, Researcher, let_in

# In place of SuperLink and trainer, which the services do not need: it waits until it is told to end.
IDLE = (sys.executable, "-c", "import sys; sys.stdin.read()")


@pytest.fixture
def parties(start_aggregator: Callable[..., Running], database_url: str, clock: Clock, tmp_path: Path) -> Parties:
    """Return a running aggregator and all who talk to it, once with each kind of database."""
    url = database_url if database_url.startswith("postgresql") else None
    running = start_aggregator(url, Programs(IDLE, IDLE))
    trainer = let_in(running, tmp_path / "trainer", clock)
    researcher = Researcher(lambda: operator_channel(running.profile))
    return Parties(running, researcher, trainer, running.folder / "runs")
