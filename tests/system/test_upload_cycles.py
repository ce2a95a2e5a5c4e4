"""Many times kill -9, of sites in the middle of an upload and of the aggregator; then the sums are exact.

The invariant (DESIGN §7): the merged tables equal the exact sum of the acknowledged uploads, each once. The aggregator
is the real program; the sites are processes around the edge node's own outbox and uplink (tests/system/uploading.py).
"""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from aggregator import tables
from aggregator.database import open_database, reading
from aggregator.intake.store import BlobStore
from aggregator.settings import load_settings
from cairn import enrolment, invitation
from cairn.files import write_atomically
from cairn.study import StudySpec
from cairn.tally import add, zeros
from deploy.federation import federation
from tests.invoking import invoke
from tests.system.observing import Observed, assert_same
from tests.system.uploading import tally_of, upload

KILLS = int(os.environ.get("UPLOAD_KILLS", "40"))  # a multiple of ten; 200 were measured, docs/RELIABILITY.md
SEED = 20
SITES = ("site-1", "site-2", "site-3")
STAGES = ("moments", "ranges", "counts")
OPEN = 4  # studies that are collected at a time
PATIENCE_S = 300.0
POLL_S = 0.002
Parts = dict[tuple[str, str, str], int]  # (plan, site, digest) → bytes of the partial file at the aggregator


def study(number: int) -> StudySpec:
    """A study whose counts are a tally of 29 MB that nothing makes smaller."""
    return StudySpec(
        name=f"study-{number}",
        bands=("a", "b", "c", "d", "e", "f", "g", "h"),
        min_sites=len(SITES),
        depth=8,
        width=200_000,
        top_k=100,
        masking="off",  # a masked tally is sent when all sites are there, not site by site
    )


@dataclass
class Cycles:
    """The federation, its sites' processes, and what was seen of uploads on their way."""

    seen: Observed
    engine: Engine
    store: BlobStore
    rng: random.Random
    sites: dict[str, BaseProcess] = field(default_factory=dict)
    studies: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    within: int = 0  # kills that fell into an upload: a part of the tally was at the aggregator
    resumed: int = 0  # of those, uploads seen to go on behind the part that was there at the kill
    repeated: int = 0  # uploads sent again as a whole, because the kill fell between the blob and the ledger
    cut: Parts = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.seen.running.folder

    @property
    def plans(self) -> Path:
        return self.folder / "plans"

    def enrol(self, site: str) -> None:
        folder = self.folder / "sites" / site
        folder.mkdir(parents=True)
        text = folder / "invitation.txt"
        invoke(["aggregator", "invite", site, "--profile", str(self.seen.running.profile), "--out", str(text)])
        enrolment.enrol(invitation.parse(text.read_text()), folder / "identity")

    def start(self, site: str) -> None:
        # A fork of a process that has imported everything: a site is back within a tenth of a second.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.system.uploading"])
        address = json.loads((self.seen.running.state / "addresses.json").read_text())["address"]
        arguments = (site, self.folder / "sites" / site, self.plans, address)
        self.sites[site] = context.Process(target=upload, args=arguments, daemon=True)
        self.sites[site].start()

    def supply(self) -> None:
        """Keep a few studies open, and show the sites the plans that are open now."""
        with reading(self.engine) as session:
            collecting = session.scalars(select(tables.Study.name).where(tables.Study.state.in_(STAGES))).all()
            open_plans = session.scalars(
                select(tables.Plan).where(tables.Plan.state == "open", tables.Plan.stage.in_(STAGES))
            ).all()
        wanted = {plan.fingerprint: plan.published for plan in open_plans}
        for path in self.plans.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name in wanted.keys() - {path.name for path in self.plans.iterdir()}:
            with write_atomically(self.plans / name) as file:
                file.write(wanted[name])
        if len(collecting) < OPEN and self.kills.total() < KILLS:
            self.seen.create(study(self.studies))
            self.studies += 1

    def look(self) -> int:
        """Look at the partial files: how many bytes came since the last look. What is there never gets less."""
        now: Parts = {}
        spool = self.seen.running.state / "spool"
        for folder, _, files in os.walk(spool):  # passes over what is finished and gone while it looks
            for digest in files:
                plan, site = Path(folder).parts[-2:]
                with suppress(FileNotFoundError):
                    now[plan, site, digest] = (Path(folder) / digest).stat().st_size
        came = 0
        for name, size in now.items():
            before = self.parts.get(name, 0)
            if size < before:
                # Only a tally whose blob was put, but not entered into the ledger, goes out again from its beginning.
                assert self.store.has(name[2]), f"{before - size} bytes of {name} were lost"
                self.repeated += 1
                self.cut.pop(name, None)
            if name in self.cut and size > self.cut[name]:
                self.resumed += 1
                del self.cut[name]
            came += max(0, size - before)
        self.parts |= now
        return came

    def sending(self) -> dict[str, tuple[str, str, str]]:
        """Name the sites that are in the middle of an upload, and of which."""
        spool, found = self.seen.running.state / "spool", {}
        for name in self.parts:
            plan, site, digest = name
            path = spool / plan / site / digest
            outbox = self.folder / "sites" / site / "outbox" / "pending"
            try:
                size, whole = path.stat().st_size, next(outbox.glob(f"*.{plan}.tally")).stat().st_size
            except (FileNotFoundError, StopIteration):
                continue
            if 0 < size < whole:
                found[site] = name
        return found

    def kill(self, victims: list[str]) -> None:
        """Kill as a power cut does, note into which uploads it fell, and start the same again."""
        self.look()
        middle = self.sending()
        hit = [name for site, name in middle.items() if site in victims or "aggregator" in victims]
        for victim in victims:
            if victim == "aggregator":
                self.seen.running.aggregator.kill()
            else:
                self.sites[victim].kill()
                self.sites[victim].join()
        self.within += bool(hit)
        self.kills[" and ".join(victims)] += 1
        self.look()
        self.cut |= {name: self.parts[name] for name in hit if not self.store.has(name[2])}
        if "aggregator" in victims:
            self.seen.running.start_aggregator()
        for victim in victims:
            if victim != "aggregator":
                self.start(victim)

    def wait(self, found: Callable[[], bool], what: str) -> None:
        """Wait, while plans are handed on."""
        deadline = time.monotonic() + PATIENCE_S
        supplied = 0.0
        while not found():
            for site, process in self.sites.items():
                assert process.is_alive(), f"{site} died: {(self.folder / 'sites' / site / 'log').read_text()[-2000:]}"
            assert self.seen.running.aggregator.alive()
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
            if time.monotonic() > supplied + 0.1:
                self.supply()
                supplied = time.monotonic()
            time.sleep(POLL_S)

    def cycle(self) -> None:
        """Wait until some bytes of tallies came, or just for a moment, and kill."""
        number = self.kills.total()
        if number % 5 == 4:  # a moment of any kind: sealing, asking, closing, merging
            end = time.monotonic() + self.rng.uniform(0, 0.5)
            self.wait(lambda: time.monotonic() > end, "a moment")
            victims = [self.rng.choice(SITES)]
        else:
            left = self.rng.uniform(0, 4e6)

            def enough() -> bool:
                nonlocal left
                left -= self.look()
                return left < 0 and bool(self.sending())

            self.wait(enough, "a part of an upload")
            victims = [self.rng.choice(sorted(self.sending()) or SITES)]
        if number % 10 == 0:
            victims = ["aggregator"] if number % 20 else ["aggregator", *SITES]
        self.kill(victims)

    def finished(self) -> bool:
        with reading(self.engine) as session:
            states = session.scalars(select(tables.Study.state)).all()
        return not set(states) & set(STAGES)


@pytest.fixture
def cycles(tmp_path: Path) -> Iterator[Cycles]:
    with federation(tmp_path / "all", [], command=invoke) as running:
        seen = Observed(running, [])
        engine = open_database(load_settings(running.state / "aggregator.toml").database_url)
        made = Cycles(seen, engine, seen.store(), random.Random(SEED))
        made.plans.mkdir()
        for site in SITES:
            made.enrol(site)
            made.start(site)
        yield made
        for process in made.sites.values():
            process.kill()
            process.join()
        engine.dispose()
    shutil.rmtree(tmp_path / "all")  # gigabytes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sums_are_those_of_the_acknowledged_uploads_after_many_kills(cycles: Cycles) -> None:
    began = time.monotonic()
    while cycles.kills.total() < KILLS:
        cycles.cycle()
    took = time.monotonic() - began
    cycles.wait(cycles.finished, "the end of all studies")

    uploads, size = 0, 0
    for number in range(cycles.studies):
        plans = cycles.seen.plans(f"study-{number}")
        for stage in STAGES:
            fingerprint, plan = plans[stage, 0]
            ledger = {row.site: row for row in cycles.seen.uploads(fingerprint)}
            assert len(ledger) == len(cycles.seen.uploads(fingerprint)) == len(SITES)
            expected = zeros(plan.stage)
            for site in SITES:
                add(expected, tally_of(site, bytes.fromhex(fingerprint), plan.stage).tables)
                assert acknowledged(cycles.folder / "sites" / site, fingerprint) == [ledger[site].digest]
                uploads, size = uploads + 1, size + ledger[site].size
            assert_same(cycles.seen.merged(f"study-{number}", stage), expected)

    figures = {
        "kills": cycles.kills.total(),
        **cycles.kills,
        "within an upload": cycles.within,
        "seen to resume": cycles.resumed,
        "sent again as a whole": cycles.repeated,
        "studies": cycles.studies,
        "uploads": uploads,
        "MB": round(size / 1e6),
        "seconds": round(took),
    }
    print(json.dumps(figures))  # noqa: T201 - for docs/RELIABILITY.md, shown by pytest -s
    assert cycles.kills.total() == KILLS
    assert cycles.kills["aggregator"] + cycles.kills[" and ".join(["aggregator", *SITES])] == KILLS // 10
    assert cycles.within >= KILLS // 2
    assert cycles.resumed >= KILLS // 4


def acknowledged(site: Path, plan: str) -> list[str]:
    """List the digests that a site's audit log says were acknowledged for a plan."""
    lines = [json.loads(line) for line in (site / "audit.jsonl").read_text().splitlines()]
    return [line["digest"] for line in lines if line["event"] == "acknowledged" and line["plan"] == plan]
