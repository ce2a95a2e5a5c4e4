"""kill -9 of every process at every stage: nothing lost, nothing counted twice."""

from pathlib import Path

import pytest

from tests.system.observing import Observed, assert_same, centrally, observed, study_of

STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


def kill_and_restart_all(seen: Observed) -> None:
    """Kill the aggregator and every site as a power cut would, and start them again."""
    for program in seen.running.programs:
        program.kill()
    seen.running.start_aggregator()
    for site in seen.running.sites:
        seen.running.start_site(site)


@pytest.mark.slow
def test_the_sums_are_exact_when_every_process_is_killed_in_every_state(tmp_path: Path, tissue: Path) -> None:
    with observed(tmp_path / "all", tissue) as seen:
        seen.create(study_of(tissue))
        state, killed_in = "", []
        while state != "done":
            state = seen.wait_until("small", lambda now, last=state: now != last)
            if state != "done":
                killed_in.append(state)
                kill_and_restart_all(seen)
        assert set(STAGES) <= set(killed_in)
        for stage in STAGES:
            _, plan = seen.plans("small")[stage, 0]
            assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))


@pytest.mark.slow
def test_a_site_that_vanishes_before_sending_and_returns_is_counted_once(tmp_path: Path, tissue: Path) -> None:
    with observed(tmp_path / "all", tissue) as seen:
        seen.running.sites["site-2"].kill()
        seen.create(study_of(tissue, masking="off"))
        fingerprint, plan = seen.plans("small")["moments", 0]
        others = {"site-1", "site-3"}

        def others_have_sent(_state: str) -> bool:
            return {upload.site for upload in seen.uploads(fingerprint)} >= others

        seen.running.sites.pop("site-2")
        assert seen.wait_until("small", others_have_sent) == "moments"  # it waits for the third
        seen.running.start_site("site-2")
        seen.wait_until("small", lambda state: state == "done")
        assert_same(seen.merged("small", "moments"), centrally(plan, seen.sources()))
