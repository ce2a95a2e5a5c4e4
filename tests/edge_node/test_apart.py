"""A site's images counted in a process of its own: the same bits, and what goes wrong there is not the service's."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cairn.errors import CairnError
from edge_node import worker
from edge_node.apart import Apart
from edge_node.settings import SiteSettings
from edge_node.worker import GivenUp, Job

from .conftest import STAGES, wait_until, write_image, write_settings
from .test_worker import assert_same, make_job


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    for number in range(3):
        write_image(tmp_path / "images" / f"good{number}.ome.tif", number)
    (tmp_path / "images" / "bad.ome.tif").write_bytes(b"nonsense" * 99)
    return write_settings(tmp_path)


@contextmanager
def counted_apart(site: SiteSettings, idle_s: float = 60.0) -> Iterator[Apart]:
    apart = Apart(site, pytest.fail, idle_s)
    try:
        yield apart
    finally:
        apart.end()


def children() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # which a zombie is too
            if "edge_node.apart" in " ".join(one.cmdline()):
                found.append(one)
    return found


def lean(job: Job) -> Job:
    """Return the job as the service has it: with no kernels in its own process."""
    return replace(job, kernels=None)


def test_every_stage_gives_the_same_bits_progress_and_problems_by_one_child(site: SiteSettings) -> None:
    with counted_apart(site) as apart:
        for stage in STAGES:
            here, there = make_job(site, stage), lean(make_job(site, stage))
            assert_same(worker.count(there, apart.count_files).tables, worker.count(here).tables)
            assert there.board.snapshot().work == here.board.snapshot().work
            assert there.board.snapshot().problems == here.board.snapshot().problems
            assert len(there.board.snapshot().problems) == 1
            assert len(children()) == 1
    assert children() == []


def test_a_child_that_dies_is_one_error_and_the_next_plan_has_a_new_one(site: SiteSettings) -> None:
    with counted_apart(site) as apart:
        worker.count(lean(make_job(site, "moments")), apart.count_files)
        [child] = children()
        child.send_signal(signal.SIGSEGV)  # as a faulty decoder does
        with pytest.raises(CairnError, match=r"the process that counts ended \(by SIGSEGV\)"):
            worker.count(lean(make_job(site, "ranges")), apart.count_files)
        again = worker.count(lean(make_job(site, "ranges")), apart.count_files)
        assert_same(again.tables, worker.count(make_job(site, "ranges")).tables)


def test_a_child_that_hangs_is_ended_when_the_plan_is_given_up(site: SiteSettings) -> None:
    with counted_apart(site) as apart:
        worker.count(lean(make_job(site, "moments")), apart.count_files)
        [child] = children()
        child.suspend()  # as a read from a network's folder does that is away
        with pytest.raises(GivenUp):
            worker.count(lean(make_job(site, "ranges", cancelled=lambda: True)), apart.count_files)
        assert not child.is_running()


def test_an_error_of_the_site_s_disk_is_the_same_error_in_the_service(site: SiteSettings) -> None:
    site.labels_folder.parent.mkdir(parents=True, exist_ok=True)
    site.labels_folder.write_text("a file where a folder should be")
    with counted_apart(site) as apart, pytest.raises((FileExistsError, NotADirectoryError)):
        worker.count(lean(make_job(site, "codebook")), apart.count_files)


def test_a_child_without_work_ends_and_work_starts_another(site: SiteSettings) -> None:
    with counted_apart(site, idle_s=0.05) as apart:
        for stage in ("moments", "ranges"):
            assert worker.count(lean(make_job(site, stage)), apart.count_files).tables["pixels"] > 0
            wait_until(lambda: not children(), "the child's end")


def test_a_child_ends_with_a_service_that_is_killed(site: SiteSettings, tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import signal, sys
        from pathlib import Path
        from edge_node import worker
        from edge_node.apart import Apart
        from tests.edge_node.test_apart import children, lean
        from tests.edge_node.test_worker import make_job
        from edge_node.settings import load_settings
        site = load_settings(Path({str(tmp_path / "site.toml")!r}))
        worker.count(lean(make_job(site, "moments")), Apart(site, print).count_files)
        print(children()[0].pid, flush=True)
        signal.pause()
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        child = psutil.Process(int(service.stdout.readline()))
        service.kill()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end")
