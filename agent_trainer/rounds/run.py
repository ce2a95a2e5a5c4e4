"""A run at the middle, round after round, with a checkpoint behind each: the loop that `middle` drives."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Protocol

from flwr.app import Message, RecordDict

from agent_trainer.algorithms import Config, Weights, algorithm
from agent_trainer.config import DqnConfig
from agent_trainer.rounds import layout as lay
from agent_trainer.rounds.bounds import plain_updates, promise
from agent_trainer.rounds.checkpoints import Checkpoint, Checkpoints, Progress
from agent_trainer.rounds.masked_updates import MaskedRounds, left_out, secrecy_of
from agent_trainer.rounds.replay_plans import ReplayPlans, read, written
from agent_trainer.rounds.reports import (
    RoundReport,
    SiteReport,
    exchanged,
    of_training,
    only_validation,
    read_report,
)
from agent_trainer.rounds.server_app import Attempt, Clock, Outcome, Post, check_quorum
from agent_trainer.rounds.strategies import Strategy
from agent_trainer.rounds.validation import merged_metrics
from agent_trainer.rounds.wire import (
    EVALUATE,
    EXAMPLES,
    ROUND,
    TRAIN,
    WEIGHTS,
    Order,
    arrays,
    order_record,
    read_metrics,
    read_update,
)
from cairn.errors import CairnError, Diverged, TooFewSites, TrainingError
from cairn.figures import VALIDATION
from cairn.plan import fingerprint
from cairn.run import RunSpec
from cairn.tally import Tally

ATTEMPTS = 3  # at a round that too few sites finish
MERGE_PATIENCE = timedelta(seconds=20)
EVALUATION_SHARE = 0.5  # of a round's deadline, for the validation of the last weights


class Desk(Protocol):
    """What a run needs of the aggregator."""

    def publish(self, plan: bytes, open_for: timedelta) -> None:
        """Publish a round's replay plan to the sites."""

    def merge(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> Tally:
        """Close a replay plan and return the merged tally."""

    def sum(self, fingerprint: bytes, sites: Sequence[str], patience: timedelta) -> tuple[Tally, list[str]]:
        """Take a masked sum to its end; returns it with the sites in it."""

    def first_weights(self) -> bytes:
        """Fetch the weights that the run was given to begin with, one safetensors file."""

    def log(self, text: str) -> None:
        """Note a line in the run's log."""

    def stopping(self) -> bool:
        """Tell whether a person has asked the run to stop."""


class Run:
    """A run that goes on where its checkpoint ends.

    weights  of the network before the first round, in the network's own order
    Raises TrainingError when the checkpoint is of another network, or cannot be read.
    """

    def __init__(
        self,
        spec: RunSpec,
        config: Config,
        weights: Weights,
        checkpoints: Checkpoints,
        desk: Desk,
        clock: Clock = time,
    ) -> None:
        self._clock = clock
        self._spec, self._config, self._checkpoints, self._desk = spec, config, checkpoints, desk
        self._layout = lay.layout_of(weights)
        self._strategy = Strategy(spec, self._layout)
        self._masked = MaskedRounds(spec, desk) if spec.masked else None
        self._plans = ReplayPlans(
            spec.name,
            config if isinstance(config, DqnConfig) else None,
            secrecy=secrecy_of(spec) if spec.masked else None,
        )
        self.progress = Progress(0)
        self._weights = lay.flatten(weights)
        if (found := checkpoints.latest()) is not None:
            self._go_on_from(found)
        elif said := promise(spec):
            desk.log(said)

    def _go_on_from(self, found: Checkpoint) -> None:
        number = found.progress.round
        held = {name: found.weights[name] for name, _ in self._layout if name in found.weights}
        held |= found.weights  # the network's order first, and nothing of the checkpoint left out
        lay.check_layout(lay.layout_of(held), self._layout, f"the checkpoint of round {number}")
        self.progress = found.progress
        self._weights = lay.flatten(held)
        self._strategy.restore(found.strategy, self._weights)
        self._plans.published = bytes.fromhex(found.progress.plan)
        if found.replay:
            self._plans.tables = read(found.replay).tables

    @property
    def reported(self) -> RoundReport | None:
        """The last round that counts, as it was reported."""
        return read_report(self.progress.report) if self.progress.report else None

    @property
    def finished(self) -> str:
        """Why the run has nothing more to do, as a sentence; empty while it has."""
        patience, progress = self._spec.patience, self.progress
        if patience and progress.since_best >= patience:
            return (
                f"stopped early after round {progress.round}: {progress.since_best} validations without a better one "
                f"than that of round {progress.best_round} ({self._spec.goal.said(progress.best_value or 0.0)})"
            )
        return f"all {self._spec.rounds} rounds are done" if progress.round >= self._spec.rounds else ""

    def play(self, post: Post, sites: Mapping[int, str]) -> Iterator[RoundReport]:
        """Play one round and write its checkpoint; yields the round before again when it was validated, then this one.

        sites  node id → site, of all that are registered
        Raises TooFewSites after three attempts, Diverged when the aggregate is not finite, Unreachable.
        """
        began = self._clock.monotonic()
        number = self.progress.round + 1
        evaluate = self.progress.round > 0 and self._due(self.progress.round)
        order = self._order(number, self._plans.plan(number), evaluate=evaluate)
        if self._masked:
            order = self._masked.order(order)
        for plan in filter(None, (order.plan, order.update_plan)):
            self._desk.publish(plan, ATTEMPTS * self._spec.round_deadline + self._merge_patience())
        content = self._strategy.configure(number, self._weights, order_record(order))
        outcomes, trained = self._attempts(post, content, number, sites)
        if evaluate:
            yield from self._validated(outcomes)
        made, outcomes, found = self._joined(number, order.update_plan, outcomes, len(sites))
        if order.plan:
            self._absorb(order.plan, trained)
        sent = 4 * len(self._weights) + len(order.plan) + len(order.coder_plan) + len(order.counts)
        masked = 8 * (len(self._weights) + 1) if self._masked else 0
        reports = tuple(
            SiteReport(o.site, o.state, o.reason, of_training(o.metrics), exchanged(o, sent, masked)) for o in outcomes
        )
        metrics = merged_metrics([o.metrics for o in trained]) | found
        report = RoundReport(number, self._clock.monotonic() - began, reports, metrics)
        self._weights = made
        self._save(replace(self.progress, round=number, plan=self._plans.published.hex(), report=asdict(report)))
        yield report

    def evaluate(self, post: Post, sites: Mapping[int, str]) -> Iterator[RoundReport]:
        """Validate the last weights at the sites, if that was not done; yields the last round again."""
        last = self.reported
        if last is None or not self._tells() or any(name.startswith(VALIDATION) for name in last.metrics):
            return
        order = self._order(self.progress.round, b"", evaluate=True)
        content = RecordDict({WEIGHTS: arrays(self._weights), ROUND: order_record(order)})
        kind, deadline = EVALUATE.format(self._spec.algorithm), self._spec.round_deadline * EVALUATION_SHARE

        def judge(site: str, reply: Message) -> Outcome:
            return Outcome(site, "trained", metrics=read_metrics(reply))

        attempt = Attempt(
            post, content, kind, self.progress.round, sites, 1, deadline.total_seconds(), judge, self._clock
        )
        yield from self._validated(attempt.play(self._desk.stopping))

    def give_best(self, post: Post, sites: Mapping[int, str]) -> bool:
        """Send the best round's weights to the sites, which keep them in place of the last; tells whether it did.

        Early stopping ends behind its best round: what a site goes on using is not to be the last one.
        Raises TrainingError when the best checkpoint cannot be read, Unreachable.
        """
        best = self.progress.best_round
        if best in {0, self.progress.round}:
            return False
        found = self._checkpoints.load(best).weights
        weights = lay.flatten({name: found[name] for name, _ in self._layout})
        order = self._order(best, b"", evaluate=True)
        content = RecordDict({WEIGHTS: arrays(weights), ROUND: order_record(order)})
        kind, deadline = EVALUATE.format(self._spec.algorithm), self._spec.round_deadline * EVALUATION_SHARE

        def judge(site: str, reply: Message) -> Outcome:
            return Outcome(site, "trained", metrics=read_metrics(reply))

        Attempt(post, content, kind, best, sites, 1, deadline.total_seconds(), judge, self._clock).play(
            self._desk.stopping
        )
        return True

    def _due(self, number: int) -> bool:
        return self._tells() and self._spec.evaluate_every > 0 and number % self._spec.evaluate_every == 0

    def _tells(self) -> bool:
        """Whether sites tell figures, by which weights can be validated."""
        return self._masked is None or self._spec.site_figures == "all"

    def _merge_patience(self) -> timedelta:
        return self._spec.masking_patience if self._masked else MERGE_PATIENCE

    def _order(self, number: int, plan: bytes, *, evaluate: bool) -> Order:
        counts = self._plans.counts()
        return Order(
            run=self._spec.name,
            number=number,
            algorithm=self._spec.algorithm,
            settings=self._config.model_dump_json(),
            seed=self._spec.seed,
            layout=self._layout,
            evaluate=evaluate,
            deadline_s=self._spec.round_deadline.total_seconds(),
            plan=plan,
            coder_plan=self._plans.published,
            counts=written(counts) if counts else b"",
        )

    def _attempts(
        self, post: Post, content: RecordDict, number: int, sites: Mapping[int, str]
    ) -> tuple[list[Outcome], list[Outcome]]:
        kind, deadline = TRAIN.format(self._spec.algorithm), self._spec.round_deadline.total_seconds()
        for tried in range(1, ATTEMPTS + 1):
            attempt = Attempt(
                post, content, kind, number, sites, self._spec.min_sites, deadline, self._judge, self._clock
            )
            outcomes = attempt.play(self._desk.stopping)
            for outcome in outcomes:
                if outcome.state not in {"trained", "absent"}:
                    self._desk.log(f"round {number}: {outcome.site} {outcome.state}: {outcome.reason}")
            try:
                return outcomes, check_quorum(outcomes, self._spec.min_sites)
            except TooFewSites as error:
                if tried == ATTEMPTS or self._desk.stopping():
                    raise TooFewSites(
                        f"round {number} failed {tried} times: {error}; resume the run when they are back"
                    ) from error
                self._desk.log(f"round {number} is tried again: {error}")
        raise AssertionError  # the loop returns or raises

    def _judge(self, site: str, reply: Message) -> Outcome:
        if self._masked:
            return self._masked.judge(site, reply)
        try:
            update, metrics = read_update(reply, len(self._weights))
        except TrainingError as error:
            return Outcome(site, "refused", f"{type(error).__name__}: {error}")
        return Outcome(site, "trained", metrics=metrics, update=update, message=reply)

    def _joined(
        self, number: int, plan: bytes, outcomes: list[Outcome], asked: int
    ) -> tuple[lay.Vector, list[Outcome], dict[str, float]]:
        """Make the next weights of a round; returns them, what became of the sites, and figures of all together.

        plan  of a masked run: whose sum is the only update there is. Lost with it, the round leaves the weights.
        """
        if self._masked is None:
            updates = plain_updates(self._spec, self._weights, lay.learnt(self._layout), outcomes, asked)
            return self._aggregate(number, updates), outcomes, {}
        found = self._masked.mean(plan, self._weights, outcomes, asked)
        if found is None:
            return self._weights, left_out(outcomes, ()), {}
        message = next(o.message for o in outcomes if o.state == "trained" and o.message is not None)
        made = self._aggregate(number, [(found.weights, found.examples, message)])
        return made, found.outcomes, {EXAMPLES: found.examples}

    def _aggregate(self, number: int, updates: Sequence[tuple[lay.Vector, float, Message]]) -> lay.Vector:
        made = self._strategy.aggregate(number, updates)
        try:
            lay.check_finite(made)
        except Diverged as error:
            raise Diverged(
                f"the aggregate of round {number} diverged: {error}; resume with a smaller learning rate"
            ) from error
        return made

    def _absorb(self, plan: bytes, trained: Sequence[Outcome]) -> None:
        """Take the merged replay tally; without it the run goes on with the counts it has."""
        try:
            merged = self._desk.merge(fingerprint(plan), [o.site for o in trained], self._merge_patience())
            self._plans.absorb(plan, merged)
        except CairnError as error:
            self._desk.log(f"the replay tallies of this round are not counted: {error}")

    def _validated(self, outcomes: Sequence[Outcome]) -> Iterator[RoundReport]:
        """Note the validation of the last round's weights; yields that round's report with it."""
        merge, goal = algorithm(self._spec.algorithm).merge_validation, self._spec.goal
        found, last = merge([o.metrics for o in outcomes if o.state == "trained"]), self.reported
        if not found or last is None:
            return
        value, progress = found[goal.metric], self.progress
        if progress.best_value is None or goal.better(value, progress.best_value):
            progress = replace(progress, best_round=progress.round, best_value=value, since_best=0)
        else:
            progress = replace(progress, since_best=progress.since_best + 1)
        of_site = {o.site: only_validation(o.metrics) for o in outcomes}
        known = {report.site for report in last.sites}
        sites = [replace(report, metrics={**report.metrics, **of_site.get(report.site, {})}) for report in last.sites]
        sites += [
            SiteReport(site, "absent", "it came later", metrics)
            for site, metrics in of_site.items()
            if site not in known
        ]
        report = replace(last, sites=tuple(sites), metrics={**last.metrics, **found})
        self.progress = replace(progress, report=asdict(report))
        self._checkpoints.note(self.progress)
        yield report

    def _save(self, progress: Progress) -> None:
        counts = self._plans.counts()
        weights = lay.unflatten(self._weights, self._layout)
        state = self._strategy.state()
        self._checkpoints.save(Checkpoint(progress, weights, state, written(counts) if counts else b""))
        self.progress = progress
