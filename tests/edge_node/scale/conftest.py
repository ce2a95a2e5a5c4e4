"""Workers in the process of the tests, which are cheap, and images of several tiles."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from cairn import codec, kernels
from cairn.plan import Plan, fingerprint
from edge_node.scale import pieces
from edge_node.settings import SiteSettings
from edge_node.status import Board
from edge_node.worker import Job
from tests.edge_node.conftest import STAGES, write_image, write_settings

NUMBA = kernels.load("numba")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers of one thread each, in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    """Two images of 2 × 3 tiles and three of one."""
    for number in range(2):
        write_image(tmp_path / "images" / f"large{number}.ome.tif", number, side=1060)
    for number in range(3):
        write_image(tmp_path / "images" / f"small{number}.ome.tif", 9 + number)
    return write_settings(tmp_path)


def make_job(settings: SiteSettings, stage: str, **more: object) -> Job:
    plan = Plan("tumour", 0, STAGES[stage])
    given = {"board": Board(), "cancelled": lambda: False} | more
    return Job(plan, fingerprint(codec.encode_plan(plan)), settings, NUMBA, **given)  # type: ignore[arg-type]


def cut_into(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """Have about as many pixels counted at once, however many there are."""
    monkeypatch.setattr(pieces, "LEAST", pixels)
    monkeypatch.setattr(pieces, "MOST", pixels)
