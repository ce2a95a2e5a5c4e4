"""Real worker processes: killed while they count, of another version, gone while they are asked; the command itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

import cairn
from cairn import codec
from cairn.errors import CairnError, ConfigError, Unreachable
from cairn.plan import Plan
from edge_node.scale.cluster import HOST, STARTED, check_workers, connected
from edge_node.scale.spread import count_files
from edge_node.settings import Scale
from edge_node.status import Board
from edge_node.worker import count_offline
from tests.edge_node.conftest import STAGES, wait_until, write_settings
from tests.edge_node.test_node import running
from tests.invoking import invoke

from .conftest import cut_into, make_job

START_S = 60.0


class Killing(Board):
    """Kills processes when some pixels are done."""

    def __init__(self, pids: list[int], pixels: int) -> None:
        super().__init__()
        self.pids, self.pixels = pids, pixels
        self.killed_at = 0

    def advance(self, pixels: int, files: int = 0) -> None:
        super().advance(pixels, files)
        if not self.killed_at and self.pixels_done() >= self.pixels:
            self.killed_at = self.pixels_done()
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)


def test_workers_killed_by_signal_nine_in_the_middle_change_no_bit_of_the_tables(site, monkeypatch):
    cut_into(monkeypatch, 2**17)
    expected, _ = count_offline(make_job(site, "counts"))
    with connected(Scale(workers=2), site) as client:
        # All of them, so that what is counted so far is lost for certain.
        first = client.run(os.getpid)
        job = make_job(site, "counts", board=Killing(list(first.values()), 5 * 2**18))
        tally, problems = count_offline(job, lambda job, files: count_files(job, files, client))
        now = client.run(os.getpid)
    assert 0 < job.board.killed_at < int(expected.tables["pixels"][0])
    assert not set(first.values()) & set(now.values())
    assert problems == []
    for name, table in expected.tables.items():
        assert (tally.tables[name] == table).all(), name


@contextmanager
def scheduler() -> Iterator[str]:
    """A hospital's own scheduler; gives its address."""
    made = {"n_workers": 0, "processes": False, "protocol": "tcp://", "host": HOST, "dashboard_address": f"{HOST}:0"}
    with dask.config.set(STARTED | {"distributed.scheduler.allowed-failures": 0}), LocalCluster(**made) as cluster:
        yield cluster.scheduler_address


@contextmanager
def worker(address: str, before: str) -> Iterator[None]:
    """A worker process that does something before it begins; waits until the scheduler knows it."""
    code = f"{before}\nfrom distributed.cli.dask_worker import main\nmain()"
    arguments = [address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    try:
        with Client(address, set_as_default=False) as client:
            wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, "the worker", START_S)
        yield
    finally:
        process.kill()
        process.wait()


OTHERS = {
    "another version": (
        "import cairn; cairn.__version__ = '0.1.0'",
        f"the worker at tcp://127.0.0.1.* has Cairn 0.1.0, and {cairn.__version__} asks; install",
    ),
    "without Cairn": (
        "import sys; sys.modules['edge_node.scale.work'] = None",
        "the worker at tcp://127.0.0.1.* has no Cairn that can count; install",
    ),
}


@pytest.mark.parametrize(("before", "said"), OTHERS.values(), ids=list(OTHERS))
def test_a_worker_of_another_cairn_is_one_sentence(site, before, said):
    with scheduler() as address, worker(address, before):
        with pytest.raises(ConfigError, match=said), connected(Scale(scheduler=address), site):
            pass
        # One that comes after all were asked fails at its first task.
        with Client(address, set_as_default=False) as client, pytest.raises(ConfigError, match="install"):
            count_offline(make_job(site, "counts"), lambda job, files: count_files(job, files, client))


def test_a_worker_that_ends_while_it_is_asked_is_passed_over(site):
    dies = "import os, edge_node.scale.work as work; work.ready = lambda *_: os._exit(9)"
    with scheduler() as address, worker(address, dies), Client(address, set_as_default=False) as client:
        check_workers(client, site)
        wait_until(lambda: not client.scheduler_info()["workers"], "the worker to be gone", START_S)


BLIND = """
import edge_node.scale.work as work
from edge_node.fitness import GONE, Unfit
def not_mounted(source, *_):
    raise Unfit(GONE, f"{source.id}: is not there any more")
"""


@pytest.mark.parametrize(
    "when", ["work.look_at = lambda file, *_: not_mounted(file[1])", "work.check_unchanged = not_mounted"]
)
def test_a_worker_that_sees_other_files_spoils_the_count_and_leaves_no_image_out(site, when):
    blind = BLIND + when
    with (
        scheduler() as address,
        worker(address, blind),
        connected(Scale(scheduler=address), site) as client,
        pytest.raises(ConfigError, match=r"does not see large0\.ome\.tif as it is here; mount the same folder"),
    ):
        count_offline(make_job(site, "counts"), lambda job, files: count_files(job, files, client))


def test_workers_that_come_only_when_there_is_work_are_waited_for(site):
    job = make_job(site, "counts")
    with (
        scheduler() as address,
        connected(Scale(scheduler=address), site) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        counted = pool.submit(count_offline, job, lambda job, files: count_files(job, files, client))
        with worker(address, ""):
            tally, _ = counted.result(START_S)
    assert tally.tables["pixels"] == 2 * 1060 * 1060 + 3 * 96 * 96


@pytest.mark.parametrize("task", ["look_at_files", "count_batch"])
def test_an_image_that_ends_every_worker_is_named(site, task):
    dies = f"""
import os, edge_node.scale.work as work
before = work.{task}
work.{task} = lambda some, order: os._exit(9) if "large0" in repr(some) else before(some, order)
"""
    with (
        scheduler() as address,
        worker(address, dies),
        Client(address, set_as_default=False) as client,
        pytest.raises(Unreachable, match=r"workers ended, one after the other, with large0\.ome\.tif.* at hand"),
    ):
        count_offline(make_job(site, "counts"), lambda job, files: count_files(job, files, client))


WRONG: dict[str, tuple[str, str]] = {
    "nobody there": ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
    "no address": ("nonsense", "the scheduler nonsense cannot be asked"),
    "TLS without certificates": ("tls://127.0.0.1:9", "speaks TLS; name certificates"),
}


@pytest.mark.parametrize(("address", "said"), WRONG.values(), ids=list(WRONG))
def test_a_scheduler_that_cannot_be_reached_is_one_sentence_within_seconds(site, address, said):
    began = time.monotonic()
    with pytest.raises(CairnError, match=said), connected(Scale(scheduler=address), site):
        pass
    assert time.monotonic() - began < 15


@contextmanager
def scheduler_process(folder: Path, before: str = "") -> Iterator[tuple[str, int]]:
    """A scheduler as a process of its own; gives its address and process id."""
    file = folder / "scheduler.json"
    code = f"{before}\nfrom distributed.cli.dask_scheduler import main\nmain()"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler", START_S)
        yield json.loads(file.read_text())["address"], process.pid
    finally:
        process.kill()
        process.wait()


def test_a_scheduler_without_cairn_is_one_sentence(site, tmp_path):
    with (
        scheduler_process(tmp_path, "import sys; sys.modules['edge_node.scale.work'] = None") as (address, _),
        connected(Scale(scheduler=address), site) as client,
        pytest.raises(ConfigError, match=r"install .* at the scheduler"),
    ):
        count_offline(make_job(site, "counts"), lambda job, files: count_files(job, files, client))


def test_a_scheduler_that_is_lost_while_it_counts_is_one_sentence_within_seconds(site, tmp_path, monkeypatch):
    cut_into(monkeypatch, 2**17)
    with scheduler_process(tmp_path) as (address, pid), worker(address, ""):
        job = make_job(site, "counts", board=Killing([pid], 1))
        with connected(Scale(scheduler=address), site) as client:
            began = time.monotonic()
            with pytest.raises(Unreachable, match="the scheduler was lost"):
                count_offline(job, lambda job, files: count_files(job, files, client))
            assert time.monotonic() - began < 30
    assert job.board.killed_at


def test_the_service_counts_by_the_workers_of_its_settings_and_waits_while_there_are_none(site, tmp_path, middle):
    middle.enrol(site.state_dir / "identity")
    plan = Plan("tumour", 0, STAGES["counts"])
    [of] = middle.publish(plan)
    expected, _ = count_offline(make_job(site, "counts"))
    with scheduler() as address:
        file = f'[scale]\nscheduler = "{address}"\n'
    with running(write_settings(tmp_path, file)) as log:
        wait_until(lambda: "stage put off" in log.getvalue(), "the sentence", START_S)
    with scheduler() as address, worker(address, ""):
        file = f'[scale]\nscheduler = "{address}"\n'
        with running(write_settings(tmp_path, file)):
            wait_until(lambda: middle.tallies.ledger, "the tally", START_S)
    (tmp_path / "sent.tally").write_bytes(middle.tallies.ledger[of])
    for name, table in codec.read_tally(tmp_path / "sent.tally").tables.items():
        assert (table == expected.tables[name]).all(), name


def test_the_command_counts_by_processes_and_prints_one_object(site, tmp_path):
    (tmp_path / "plan").write_bytes(codec.encode_plan(Plan("tumour", 0, STAGES["counts"])))
    (site.images.folder / "empty.ome.tif").write_bytes(b"")
    count = ["edge", "count", "--config", str(tmp_path / "site.toml"), "--plan", str(tmp_path / "plan")]
    invoke([*count, "--out", str(tmp_path / "alone.tally")])
    said = json.loads(invoke([*count, "--out", str(tmp_path / "many.tally"), "--workers", "1", "--json"]))
    assert (tmp_path / "many.tally").read_bytes() == (tmp_path / "alone.tally").read_bytes()
    assert (said["images"], said["pixels"]) == (5, 2 * 1060 * 1060 + 3 * 96 * 96)
    assert said["left_out"][0].startswith("empty.ome.tif: found an empty file")
    assert said["dashboard"].startswith("http://127.0.0.1:")
    folder = ["edge", "count", "--images", str(site.images.folder), "--plan", str(tmp_path / "plan")]
    invoke([*folder, "--out", str(tmp_path / "folder.tally")])
    assert (tmp_path / "folder.tally").read_bytes() == (tmp_path / "alone.tally").read_bytes()
