"""A PostgreSQL that is stopped in mid-study, as its machine's operators do."""

from pathlib import Path

import pytest

from cairn.images import find_images
from deploy.dealing import deal
from deploy.federation import Federation, start_aggregator
from deploy.processes import run
from tests.postgresql import serving
from tests.system.observing import Observed, assert_same, centrally, study_of
from tests.system.test_kills import STAGES


@pytest.mark.slow
def test_postgresql_stopped_in_every_state_of_a_study_costs_no_upload(
    tmp_path: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hands = tmp_path / "all", deal(find_images(tissue), 3)
    (folder / "logs").mkdir(parents=True)
    with serving() as server:
        monkeypatch.setenv("CAIRN_DATABASE", server.url)
        run(
            [
                "aggregator",
                "init",
                "--dir",
                str(folder / "aggregator"),
                "--federation",
                "demo",
                "--address",
                "127.0.0.1:0",
            ]
        )
        seen = Observed(Federation(folder, start_aggregator(folder)), hands)
        try:
            for hand in hands:
                seen.running.join(hand)
            seen.create(study_of(tissue))
            now, stopped_in = "", []
            while now != "done":
                now = seen.wait_until("small", lambda state, last=now: state != last)
                server.stop()
                stopped_in.append(now)
                server.start()
            assert set(STAGES) <= set(stopped_in)
            assert seen.running.aggregator.alive()
            for stage in STAGES:
                _, plan = seen.plans("small")[stage, 0]
                assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))
        finally:
            seen.running.stop()
