"""A backup in mid-study, the aggregator destroyed, restored: its studies end with the exact tables."""

import json
import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from aggregator import tables
from aggregator.checking import check_aggregator
from aggregator.settings import load_settings
from deploy.processes import run
from tests.system.observing import assert_same, centrally, observed, study_of

pytestmark = pytest.mark.slow
FEW = 4  # heavy hitters: the map of so few needs no UMAP, which takes seconds to import
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


def test_studies_go_on_from_a_backup_taken_in_their_middle(
    tmp_path: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, backup = tmp_path / "at-rest.key", tmp_path / "backup.tar"
    run(["aggregator", "at-rest", "key", str(key)])
    monkeypatch.setenv("CAIRN_AT_REST__KEY_FILE", str(key))
    monkeypatch.setenv("CAIRN_BACKEND", "numpy")  # sites of six small images need not load a compiler first
    studies = {"plain": "off", "secret": "on"}
    with observed(tmp_path / "all", tissue) as seen:
        folder = seen.running.state
        for name, masking in studies.items():
            seen.create(study_of(tissue, name=name, masking=masking, top_k=FEW))
        for name in studies:
            seen.wait_until(name, lambda state: state != "moments")
        assert seen.running.sites["site-2"].stop() == 0  # for which both wait
        made = json.loads(run(["aggregator", "backup", "--dir", str(folder), "--out", str(backup), "--json"]))
        assert made["sealed_by"]
        assert any("key-encryption key" in sentence for sentence in made["warnings"])
        with tarfile.open(backup) as tar:
            assert not any(key.read_bytes().strip() in tar.extractfile(one).read() for one in tar)
        then = {name: seen.state(name) for name in studies}
        seen.running.start_site("site-2")
        for name in studies:  # more is acknowledged, which the backup does not know
            seen.wait_until(name, lambda state, name=name: state != then[name])
        seen.running.aggregator.kill()
        last = {name: seen.state(name) for name in studies}
        shutil.rmtree(folder)
        run(["aggregator", "restore", str(backup), "--dir", str(folder)])
        assert all(seen.state(name) != last[name] for name in studies)
        seen.running.start_aggregator()
        for name in studies:
            seen.wait_until(name, lambda state: state == "done")
            for stage in STAGES:
                fingerprint, plan = seen.plans(name)[stage, 0]
                assert_same(seen.merged(name, stage), centrally(plan, seen.sources()))
                assert sorted(one.site for one in seen.uploads(fingerprint)) == sorted(seen.running.sites)
        assert not check_aggregator(load_settings(folder / "aggregator.toml"), datetime.now(UTC)).faults
        with seen.session() as session:
            assert "restore" in set(session.scalars(select(tables.Audit.action)))
