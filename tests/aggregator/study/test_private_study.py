"""A whole study, masked and noised, of three sites in this process: real ledgers, samples, noise, masks and merges."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aggregator import database, tables
from aggregator.database import open_database, upgrade
from aggregator.intake.merging import load_merged
from cairn import codec
from cairn.images import Tile
from cairn.plan import Plan
from cairn.tally import Tally, add
from edge_node.privacy.ledger import Ledger
from edge_node.privacy.noised import noised
from edge_node.privacy.settings import PrivacySettings
from edge_node.privacy.units import UnitCounter
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Sites
from tests.aggregator.simulated import NUMPY, Federation, spec, tissue

NAMES = ("a", "b", "c")
IMAGES, SIDE = 40, 20
PROMISE = {"unit": "image", "epsilon": 90.0, "delta": 1e-6, "clip": 12, "brightest": 1500}


class Hospital:
    """What one site does before its tally is masked."""

    def __init__(self, folder: Path, number: int) -> None:
        self.ledger = Ledger(folder, PrivacySettings())
        self.images = [tissue(1000 * number + n, SIDE * SIDE).reshape(5, SIDE, SIDE) for n in range(IMAGES)]
        self.tally = cache(self._tally)

    def exact(self, plan: Plan, of: bytes) -> Tally:
        assert plan.privacy is not None
        counter = UnitCounter(plan.stage, NUMPY, plan.privacy, self.ledger.sampling_seed(of))  # type: ignore[arg-type]
        for number, image in enumerate(self.images):
            with counter.unit(), counter.image(str(number)):
                counter.add([Tile(0, 0, 0, image)])
        return Tally(of, counter.tables())

    def _tally(self, fingerprint: str) -> Tally:
        plan, of = self.plans[fingerprint], bytes.fromhex(fingerprint)
        counted = self.exact(plan, of)
        return noised(plan, counted, self.ledger.spend(plan, of, counted.tables, datetime.now(UTC)))

    def of(self, plan: Plan, fingerprint: str) -> Tally:
        self.plans[fingerprint] = plan
        return self.tally(fingerprint)

    plans: dict[str, Plan] = {}  # noqa: RUF012 - the same for all


@pytest.fixture
def sites(tmp_path: Path, clock: Clock) -> Iterator[Sites]:
    engine = open_database(f"sqlite:///{tmp_path / 'cairn.db'}")
    upgrade(engine)
    federation = Federation(engine, tmp_path / "aggregator", clock)
    made = Sites(federation, NAMES, tmp_path / "sites")
    for number, site in enumerate(made.sites.values()):
        site.tally = Hospital(tmp_path / "state" / site.name, number).of  # type: ignore[method-assign]
    federation.create(
        spec(min_sites=3, masking="on", dimensions=2, radix=6, top_k=15, auto_approve=True, privacy=PROMISE)
    )
    yield made
    engine.dispose()


@pytest.mark.slow
def test_a_masked_and_noised_study_finds_the_common_tissue_keeps_its_promise_and_says_it(sites: Sites) -> None:
    federation = sites.federation
    sites.until(lambda: federation.study().state in {"done", "failed"})
    study = federation.study()
    assert study.state == "done", study.message

    told = study.results["privacy"]
    assert len(told["noise"]) == 5
    assert 89.0 < told["epsilon"] <= 90.0
    assert told["said"].startswith("so far, each image has ε 90")
    for site in sites.sites.values():
        ledger = Ledger(site.folder.parents[1] / "state" / site.name, PrivacySettings())
        assert [line.stage for line in ledger.lines()] == ["moments", "ranges", "counts", "recovery", "codebook"]
        assert ledger.total() <= 90.0

    with database.reading(federation.engine) as rows:
        plans = {row.stage: row for row in rows.query(tables.Plan)}
        merge = rows.get_one(tables.Merge, plans["counts"].fingerprint)
    plan = codec.decode_plan(plans["counts"].published)
    assert plan.secrecy is not None
    assert plan.privacy is not None
    assert (plan.privacy.sites, plan.privacy.sharers) == (3, 2)
    merged = load_merged(federation.store, merge.digest, plans["counts"].fingerprint, plan.stage).tables
    exact: dict[str, np.ndarray] = {}
    for site in sites.sites.values():
        found = site.tally.__self__.exact(plan, bytes.fromhex(plans["counts"].fingerprint)).tables  # type: ignore[attr-defined]
        if exact:
            add(exact, found)
        else:
            exact = found
    noise = merged["dense"] - exact["dense"]
    assert 0 < np.abs(noise).max() < 6 * study.results["count_noise"] * 2
    # Every key that is shown stands out of the noise, and is really there.
    shown = study.results["shown_from"]
    assert shown >= 4 * study.results["count_noise"]
    assert study.results["heavy_hitters"] >= 3
    top = np.argsort(exact["dense"])[::-1][:3]
    with federation.store.open(study.results["heavy_hitters_digest"]) as file:
        keys = pq.read_table(file).column("key").to_numpy()
    assert set(top.tolist()) <= set(keys.tolist())
    assert all(exact["dense"][key] > 0 for key in keys)
