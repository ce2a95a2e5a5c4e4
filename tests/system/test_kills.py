"""kill -9 of every process at every stage: nothing lost, nothing counted twice."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cairn.errors import ConfigError, StudyError, Unreachable
from deploy.processes import Program, wait_for
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


def born(program: Program, journal: Path) -> Program:
    """Start a program so that it dies, once, after every kind of message; the journal says of which it has."""
    arguments = [sys.executable, "-m", "tests.system.mortal", str(journal), *program.arguments]
    with program.log.open("ab") as output:
        return Program(program.arguments, program.log, subprocess.Popen(arguments, stdout=output, stderr=output))


@pytest.mark.slow
def test_the_sums_are_exact_when_a_site_and_the_aggregator_die_after_every_kind_of_message(
    tmp_path: Path, tissue: Path
) -> None:
    with observed(tmp_path / "all", tissue) as seen:
        running, site = seen.running, seen.running.sites
        of_aggregator, of_site = tmp_path / "aggregator.deaths", tmp_path / "site.deaths"

        def done() -> bool:
            if not running.aggregator.alive():
                assert running.aggregator.process.returncode == -signal.SIGKILL
                running.aggregator = born(running.aggregator, of_aggregator)
            if not site["site-1"].alive():
                assert site["site-1"].process.returncode == -signal.SIGKILL
                site["site-1"] = born(site["site-1"], of_site)
            if not seen.plans("small"):
                with suppress(ConfigError, StudyError, Unreachable):
                    seen.create(study_of(tissue))
                return False
            return seen.state("small") == "done"

        running.aggregator.kill()
        site["site-1"].kill()
        wait_for("the end of the study", done, [site["site-2"], site["site-3"]], 1800)
        for stage in STAGES:
            _, plan = seen.plans("small")[stage, 0]
            assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))
        deaths = {journal.stem: journal.read_text().splitlines() for journal in (of_aggregator, of_site)}
        for lines in deaths.values():
            methods = {line.split()[1].rsplit("/", 1)[1] for line in lines}
            assert {"Watch", "Answer", "Report", "Follow", "Advertise", "Deal", "Vote", "Reveal"} <= methods
