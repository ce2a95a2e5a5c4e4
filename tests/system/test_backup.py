"""A backup in mid-study, the aggregator destroyed, restored: the study ends with the exact tables."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from sqlalchemy import select

from aggregator import tables
from deploy.processes import run
from tests.system.observing import assert_same, centrally, observed, study_of

pytestmark = pytest.mark.slow
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


@pytest.mark.parametrize(("sites", "taken_in"), [(2, "counts"), (3, "ranges")])
def test_a_study_goes_on_from_a_backup_taken_in_its_middle(
    tmp_path: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch, sites: int, taken_in: str
) -> None:
    key, backup = tmp_path / "at-rest.key", tmp_path / "backup.tar"
    run(["aggregator", "at-rest", "key", str(key)])
    monkeypatch.setenv("CAIRN_AT_REST__KEY_FILE", str(key))
    with observed(tmp_path / "all", tissue, sites) as seen:
        folder = seen.running.state
        seen.create(study_of(tissue, min_sites=sites))  # with three it is summed secretly
        seen.wait_until("small", lambda state: state == taken_in)
        assert seen.running.sites["site-2"].stop() == 0  # the stage waits for it
        made = json.loads(run(["aggregator", "backup", "--dir", str(folder), "--out", str(backup), "--json"]))
        assert made["sealed_by"]
        assert any("key-encryption key" in sentence for sentence in made["warnings"])
        with tarfile.open(backup) as tar:
            assert not any(key.read_bytes().strip() in tar.extractfile(one).read() for one in tar)
        was = seen.state("small")
        seen.running.start_site("site-2")
        seen.wait_until("small", lambda state: state != was)  # and acknowledged more since
        seen.running.aggregator.kill()
        shutil.rmtree(folder)
        run(["aggregator", "restore", str(backup), "--dir", str(folder)])
        assert seen.state("small") == was
        seen.running.start_aggregator()
        seen.wait_until("small", lambda state: state == "done")
        for stage in STAGES:
            fingerprint, plan = seen.plans("small")[stage, 0]
            assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))
            assert sorted(one.site for one in seen.uploads(fingerprint)) == sorted(seen.running.sites)
        report = json.loads(run(["aggregator", "check", "--dir", str(folder), "--json"]))
        assert not report["faults"]
        with seen.session() as session:
            actions = set(session.scalars(select(tables.Audit.action)))
        assert "restore" in actions
