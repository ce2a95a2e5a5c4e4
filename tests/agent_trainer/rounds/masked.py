"""A masked run without its processes: the middle's loop, the aggregator's sums, and each site's steps, in one place."""

import threading
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO

import numpy as np

from agent_trainer.rounds import masked_updates
from agent_trainer.rounds.wire import EXAMPLES, answer, read_order
from aggregator import database
from aggregator.database import open_database, upgrade
from aggregator.masking.sums import Sums
from aggregator.runs import records
from aggregator.runs.bell import Bell
from aggregator.runs.replay import ReplayPlans
from aggregator.telemetry import make_log, make_metrics
from cairn import kernels
from cairn.codec import read_tally
from cairn.tally import Tally
from edge_node.training.replay import tally_of
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Sites
from tests.aggregator.simulated import Federation

QUIET_S = 0.3  # in which nothing moves: then somebody is waited for, and time passes
PASSING = timedelta(seconds=30)


class MaskedFederation:
    """The aggregator of a run, and its sites' edge nodes, whose trainers are a test's apps. It is the run's desk."""

    def __init__(self, folder, names, spec, clock: Clock) -> None:
        self._engine = open_database(f"sqlite:///{folder}/aggregator.sqlite")
        upgrade(self._engine)
        federation = Federation(self._engine, folder / "aggregator", clock)
        self._clock, self._moved, self._bell = clock, threading.Event(), Bell()
        self.sites = Sites(federation, names, folder / "sites")
        self.lines: list[str] = []
        self.dead: set[str] = set()
        self.silent_after: dict[str, str] = {}  # site → the kind of message after which it is lost
        sums = Sums(self._engine, federation.store, federation.folder / "spool", clock, self._moved.set)
        self.plans = ReplayPlans(
            self._engine, federation.store, federation.board, federation.uploads, sums, federation.folder / "spool",
            self._bell, now=clock, log=make_log(StringIO()), metrics=make_metrics(),
        )  # fmt: skip
        self.store = federation.store
        with database.writing(self._engine) as rows:
            records.create(rows, spec, "operator/ann", clock())
            rows.flush()
            records.claim(rows, clock())
        for name, site in self.sites.sites.items():
            spool = folder / "spools" / name
            spool.mkdir(parents=True)
            site.tally = lambda plan, of, spool=spool: Tally(
                bytes.fromhex(of), tally_of(plan.stage, spool / f"{of}.npy", kernels.load("numpy"))
            )
            site.spool = spool

    def app(self, name, amount, examples):
        """A trainer that adds an amount to the weights and hands its update to its edge node."""

        def train(message):
            order, weights = read_order(message)
            trained = weights + np.float32(amount)
            masked_updates.hand_over(order, weights, trained, examples, self.sites.sites[name].spool)
            return answer(masked_updates.told({EXAMPLES: examples, "loss": amount}, order), None, message)

        return train

    def publish(self, plan, open_for):
        self.plans.publish(plan, open_for)

    def sum(self, of, sites, patience):
        with self._living():
            digest = self.plans.merge(of.hex(), sites, patience, lambda: True)
        with self.store.open(digest) as file:
            path = self.sites.folder / "merged.tally"
            path.write_bytes(file.read())
        return read_tally(path), self.plans.merged_sites(of.hex())

    def log(self, text):
        self.lines.append(text)

    def stopping(self):
        return False

    def blobs(self):
        return [path.read_bytes() for path in (self.sites.federation.folder / "blobs").rglob("*") if path.is_file()]

    @contextmanager
    def _living(self):
        over = threading.Event()
        thread = threading.Thread(target=self._live, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _live(self, over):
        while not over.is_set():
            self._moved.clear()
            plan = self.sites.federation.open_plan()
            for name, site in self.sites.sites.items():
                if plan is None or name in self.dead or not (site.spool / f"{plan.fingerprint}.npy").exists():
                    continue
                site.look()
                kind = self.silent_after.get(name)
                if kind is not None and self.sites.sent(name, kind, plan.fingerprint):
                    self.dead.add(name)
            self._bell.ring()
            if not self._moved.wait(QUIET_S):
                self._clock.advance(PASSING)
