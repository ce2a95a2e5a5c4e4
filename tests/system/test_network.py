"""A whole study over a line that cuts connections, falls silent and turns bits over: the sums are exact."""

import json
import math
import random
from collections.abc import Iterator

import pytest

from deploy.tissue import make_tissue
from edge_node.connection import keep_address, read_enrolled
from tests.system.failing_line import FailingLine, Fault
from tests.system.observing import Observed, assert_same, centrally, observed, study_of
from tests.system.seeing import eventually, listed, status

pytestmark = pytest.mark.slow
SEED = 11
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")
CUT, CORRUPT, SILENT = 20, 20, 4


def faults() -> list[Fault]:
    """Draw what happens to the first connections: some in the handshake, some in the middle of a tally."""
    rng = random.Random(SEED)
    kinds = ["cut"] * CUT + ["corrupt"] * CORRUPT + ["silent"] * SILENT
    rng.shuffle(kinds)
    return [Fault(kind, int(math.exp(rng.uniform(math.log(1_000), math.log(300_000))))) for kind in kinds]


def lead_through(seen: Observed, site: str, line: FailingLine) -> None:
    """Let a site find the aggregator at the line's end, as if that were its address."""
    seen.running.sites[site].stop()
    keep_address(seen.running.site_folder(site) / "state" / "identity", f"127.0.0.1:{line.port}")
    seen.running.start_site(site)


@pytest.fixture(scope="module")
def line_and_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FailingLine, Observed]]:
    folder = tmp_path_factory.mktemp("network")
    make_tissue(folder, folders=3, images_per_folder=1, size=320, seed=3, progress=lambda _n, _of: None)
    with observed(folder / "all", folder / "images") as seen:
        site = seen.running.site_folder("site-1")
        target = int(read_enrolled(site / "state" / "identity").address.rpartition(":")[2])
        line = FailingLine(target, faults(), SEED)
        for name in seen.running.sites:
            lead_through(seen, name, line)
        seen.create(study_of(folder / "images", dimensions=8, radix=22, depth=8, width=50_000))
        seen.wait_until("small", lambda state: state == "done")
        yield line, seen
        line.close()


@pytest.mark.parametrize("stage", STAGES)
def test_the_sums_are_exact_over_a_failing_line(line_and_study: tuple[FailingLine, Observed], stage: str) -> None:
    _, seen = line_and_study
    fingerprint, plan = seen.plans("small")[stage, 0]
    assert sorted(upload.site for upload in seen.uploads(fingerprint)) == ["site-1", "site-2", "site-3"]
    assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))


def test_the_line_did_fail(line_and_study: tuple[FailingLine, Observed]) -> None:
    line, _ = line_and_study
    found = {kind: len(line.struck(kind)) for kind in ("cut", "corrupt", "silent")}
    print(json.dumps(found | {"connections": len(line.connections), "bytes": sum(c.carried for c in line.connections)}))  # noqa: T201 - for docs/RELIABILITY.md
    assert found["cut"] >= CUT // 2
    assert found["corrupt"] >= CORRUPT // 2
    assert found["silent"] >= SILENT // 2


def test_tls_notices_every_bit_that_was_turned_over(line_and_study: tuple[FailingLine, Observed]) -> None:
    line, seen = line_and_study
    assert {connection.over for connection in line.struck("corrupt")} == {"by an end"}
    # What TLS lets through is what was sent: the aggregator's own checksums had nothing to complain of.
    assert "ChecksumMismatch" not in (seen.running.folder / "logs" / "aggregator.log").read_text()


def test_a_silent_connection_is_given_up_and_not_waited_for(line_and_study: tuple[FailingLine, Observed]) -> None:
    line, seen = line_and_study

    def all_over() -> bool:
        return all(connection.over for connection in line.struck("silent"))

    eventually(seen, "the end of the silent connections", all_over)
    assert {connection.over for connection in line.struck("silent")} == {"by an end"}


def test_a_broken_line_is_shown_at_both_ends_and_mends_by_itself(line_and_study: tuple[FailingLine, Observed]) -> None:
    line, seen = line_and_study

    def shown() -> set[bool]:
        there = {bool(listed(seen, site)["connected"]) for site in seen.running.sites}
        return there | {bool(status(seen, site)["connected"]) for site in seen.running.sites}

    eventually(seen, "all sites to be connected", lambda: shown() == {True})
    line.pause()
    eventually(seen, "no site to be connected", lambda: shown() == {False})
    line.go_on()
    eventually(seen, "all sites to be connected again", lambda: shown() == {True})
