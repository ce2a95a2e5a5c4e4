"""A disk that is really full, at a site and at the aggregator: nothing is lost, and all goes on when there is room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.errors import StorageFull
from tests.system.observing import Observed, assert_same, centrally, observed, study_of
from tests.system.seeing import eventually, listed, page, signed_in, status
from tests.system.small_disk import fill, make_room, small_disk

pytestmark = pytest.mark.slow
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tissue: Path) -> Iterator[Observed]:
    """A federation whose aggregator and site-1 each keep their state on a small disk."""
    with observed(tmp_path_factory.mktemp("full") / "all", tissue) as seen:
        running = seen.running
        running.stop()
        with small_disk(running.state, "48m"), small_disk(running.site_folder("site-1") / "state", "4m"):
            running.start_aggregator()
            for site in running.sites:
                running.start_site(site)
            yield seen
            running.stop()


def check_sums(seen: Observed, study: str) -> None:
    for stage in STAGES:
        fingerprint, plan = seen.plans(study)[stage, 0]
        assert sorted(upload.site for upload in seen.uploads(fingerprint)) == ["site-1", "site-2", "site-3"]
        assert_same(seen.merged(study, stage), centrally(plan, seen.sources()))


def create_many(seen: Observed, data: Path) -> None:
    """Create studies that no site takes part in: the database's file has room in itself for the first ones."""
    for number in range(1000):
        seen.create(study_of(data, f"nobody-{number}", bands=("a-band-that-no-site-has",)))


def test_a_full_disk_at_a_site_is_said_there_and_the_study_waits_for_room(small: Observed, tissue: Path) -> None:
    state = small.running.site_folder("site-1") / "state"
    eventually(small, "the sites", lambda: all(status(small, site)["connected"] for site in small.running.sites))
    fill(state)
    small.create(study_of(tissue, "site-full", masking="off"))
    fingerprint, _ = small.plans("site-full")["moments", 0]

    def said() -> str:
        return " ".join(status(small, "site-1")["problems"])

    def others() -> set[str]:
        return {upload.site for upload in small.uploads(fingerprint)}

    eventually(small, "the site to say so", lambda: "disk" in said())
    eventually(small, "the other sites", lambda: others() == {"site-2", "site-3"})
    assert "disk" in page(small, "site-1")
    assert small.state("site-full") == "moments"
    make_room(state)
    small.wait_until("site-full", lambda now: now == "done")
    check_sums(small, "site-full")
    eventually(small, "the problem to be over", lambda: said() == "")


def test_a_full_disk_at_the_aggregator_is_said_and_the_uploads_wait_for_room(small: Observed, tissue: Path) -> None:
    fill(small.running.state)
    with pytest.raises(StorageFull, match="the aggregator's database has no room on its disk; try again when there is"):
        create_many(small, tissue)
    make_room(small.running.state)

    def said() -> str:
        return " ".join(problem for site in small.running.sites for problem in status(small, site)["problems"])

    with signed_in(small) as browser:  # while there is room for the audit to say so
        small.create(study_of(tissue, "aggregator-full", masking="off"))
        fill(small.running.state)
        full = "the aggregator cannot take the upload: its disk is full"
        eventually(small, "a site to say so", lambda: full in said())
        assert 'cairn_errors_total{kind="StorageFull"}' in browser.get("/metrics").text
        assert listed(small, "site-1")["state"] == "enrolled"
        assert "aggregator-full" in browser.get("/").text
    make_room(small.running.state)
    small.wait_until("aggregator-full", lambda now: now == "done")
    check_sums(small, "aggregator-full")
    eventually(small, "the problems to be over", lambda: said() == "")
