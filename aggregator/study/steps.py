"""What a study's next step makes of the merged tables: the next plan, and what people may know of it.

Every step is a function of merged tallies and of the specification alone, so that it can be run again after a crash.
Raises StudyError or PlanError where the data do not allow to go on: then the study has failed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.study import embedding, recovery, results, studies
from aggregator.study.layout import Asked, LayOut
from aggregator.study.noise import promised, table_noise, threshold
from cairn import codec, moments
from cairn.errors import PlanError, StudyError
from cairn.kernels import Kernels
from cairn.plan import (
    CodebookPlan,
    CountsPlan,
    MomentsPlan,
    Plan,
    RangesPlan,
    RecoveryPlan,
    ReplayPlan,
    ReplayRangesPlan,
    UpdatePlan,
    fingerprint,
)
from cairn.ranges import ranges
from cairn.study import StudySpec
from cairn.tally import Tables

Results = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a step leads to.

    event    in the table of transitions
    plan     to be published next, if the next state needs one
    results  entries to be put into the study's results
    table    the heavy hitters' table, where the step made one
    """

    event: studies.Event
    plan: Plan | None
    results: Results
    table: bytes | None = None


def after_moments(spec: StudySpec, tables: Tables) -> Outcome:
    """Choose the projection."""
    projection = moments.projection(tables, spec.components)
    explained = [float(share) for share in moments.explained(tables)[: spec.components]]
    found = {
        "bands": list(spec.bands),
        "pixels": int(tables["pixels"][0]),
        "explained": explained,
        "explained_share": math.fsum(explained),
    }
    return Outcome("merged", studies.ranges_plan(spec, projection), found)


def after_ranges(spec: StudySpec, plan: Plan, tables: Tables, tallies: int) -> Outcome:
    """Choose the foreground cut-off and the digits' ranges."""
    assert isinstance(plan.stage, RangesPlan)  # the caller took it from the ranges stage
    found = ranges(tables, spec.range_quantile, noise=table_noise(plan, tallies)["unit"])
    counts = studies.counts_plan(
        spec,
        plan.stage.projection,
        min_norm=found.min_norm,
        low=found.low,
        high=found.high,
        ranges_fingerprint=fingerprint(codec.encode_plan(plan)),
    )
    cut_off = {"said": found.said, "min_norm": found.min_norm, "foreground_share": found.foreground}
    return Outcome("merged", counts, {"cut_off": cut_off})


def after_counts(tables: Tables) -> Outcome:
    """Note how much was counted; the search is a step of its own.

    tables  merged counts, the sum of all windows
    """
    found = {"pixels": int(tables["pixels"][0]), "foreground": int(tables["foreground"][0])}
    return Outcome("merged", None, found)


def recover(spec: StudySpec, plan: Plan, tables: Tables, kernels: Kernels, tallies: int) -> Outcome:
    """Find candidates.

    plan     the counts plan of the last window
    tables   merged counts, the sum of all windows
    tallies  that are in it
    """
    assert isinstance(plan.stage, CountsPlan)  # the caller took it from the counts stage
    noise = table_noise(plan, tallies)["dense"]
    found = recovery.candidates(tables, plan.stage, spec.top_k, kernels, spec.min_count, noise)
    said = {"error_bound": found.error_bound, "candidates": len(found.keys)}
    return Outcome("computed", studies.recovery_plan(plan, found.keys), said)


def embed(spec: StudySpec, plan: Plan, tables: Tables, tallies: int, lay_out: LayOut) -> Outcome:
    """Choose the heavy hitters by their exact (or noisy) counts and make their map.

    plan     the recovery plan
    tallies  that were merged
    lay_out  see `layout`
    """
    assert isinstance(plan.stage, RecoveryPlan)  # the caller took it from the recovery stage
    quantiser, noise = plan.stage.quantiser, table_noise(plan, tallies)["count"]
    found = recovery.verified(tables, plan.stage, spec.top_k, spec.min_count, noise)
    made = embedding.make_map(
        quantiser.keyspace.decode(found.keys),
        found.counts,
        quantiser,
        Asked(spec.n_neighbors, spec.clusters, spec.clustering, spec.embedding_seed),
        spec.states,
        lay_out,
    )
    said = {
        "heavy_hitters": len(found.keys),
        "foreground": found.foreground,
        "mass": found.mass,
        "clusters": results.cluster_rows(made),
        **({"count_noise": noise, "shown_from": threshold(spec.min_count, noise)} if noise else {}),
    }
    return Outcome("computed", None, said, results.heavy_hitters(found, made, quantiser.keyspace))


def approve(plan: Plan, known: Results, table: bytes, named: Mapping[int, str]) -> Outcome:
    """Make the codebook, with the states that a person gave to clusters before those of the rules.

    plan   the recovery plan
    known  the study's results
    table  the heavy hitters' table
    """
    rows = known["clusters"]
    unknown = sorted(number for number in named if not 0 <= number < len(rows))
    if unknown:
        raise StudyError(f"there is no cluster {unknown[0]}; the study has the clusters 0 to {len(rows) - 1}")
    states = [named.get(number, row["state"]) for number, row in enumerate(rows)]
    for state in states:
        if not 1 <= len(state) <= 40 or not state.isprintable():
            raise StudyError(f"{state[:40]!r} cannot be a state's name; 1 to 40 printable characters are expected")
    codes = results.codes(table)
    book = studies.codebook_plan(plan, codes.keys, codes.clusters, states)
    named_rows = [{**row, "state": state} for row, state in zip(rows, states, strict=True)]
    return Outcome("approved", book, {"clusters": named_rows}, results.with_states(table, states))


def after_codebook(spec: StudySpec, plan: Plan, known: Results, tables: Tables, tallies: int) -> Outcome:
    """Put the exact profiles into the results, of clusters with enough pixels to be shown."""
    least = threshold(spec.min_count, table_noise(plan, tallies)["clusters"])
    return Outcome("merged", None, {"clusters": results.exact_rows(known["clusters"], tables, least)})


def after_merge(spec: StudySpec, plan: Plan, known: Results, tables: Tables, tallies: int = 1) -> Outcome:
    """Choose the step that follows the merge of a plan's stage, and say what of the units' privacy it cost.

    tables   merged; of the counts stage the sum of all windows
    tallies  that were merged
    """
    outcome = _after_merge(spec, plan, known, tables, tallies)
    outcome.results.update(promised(plan, known))
    return outcome


def _after_merge(spec: StudySpec, plan: Plan, known: Results, tables: Tables, tallies: int) -> Outcome:
    match plan.stage:
        case MomentsPlan():
            return after_moments(spec, tables)
        case RangesPlan():
            return after_ranges(spec, plan, tables, tallies)
        case CountsPlan():
            return after_counts(tables)
        case RecoveryPlan():
            return Outcome("merged", None, {"foreground": int(tables["foreground"][0])})
        case CodebookPlan():
            return after_codebook(spec, plan, known, tables, tallies)
        case ReplayRangesPlan() | ReplayPlan() | UpdatePlan():
            raise PlanError(f"the plan of {plan.study} is of a training run, not of a study")
