"""The study's machine: its transitions, when stages close, and whole studies through restarts and faults."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, func, select

from aggregator import database, tables
from aggregator.intake.merging import load_merged
from aggregator.study import records, steps, studies
from aggregator.study.steps import Outcome
from aggregator.study.studies import TRANSITIONS, Close, Participant, State, Wait, closing, following
from cairn import codec
from cairn.errors import StudyError, WindowClosed
from cairn.pixels import BACKGROUND
from cairn.plan import CodebookPlan, CountsPlan, RecoveryPlan
from tests.aggregator.conftest import Clock
from tests.aggregator.simulated import BANDS, Federation, Levels, count, keys_of, spec, tissue, wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def site(name: str, *, enrolled: bool = True, refused: bool = False, uploaded: bool = True) -> Participant:
    return Participant(name, enrolled=enrolled, refused=refused, uploaded=uploaded)


# The table


def test_every_state_can_be_reached_from_the_first() -> None:
    reached: set[State] = {studies.FIRST}
    for _ in TRANSITIONS:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(get_args(State))


def test_every_state_but_failed_has_a_way_on() -> None:
    assert {before for before, _ in TRANSITIONS} == set(get_args(State)) - {"failed"}


def test_only_states_in_which_something_runs_can_fail() -> None:
    running = {*studies.COLLECTING, *studies.COMPUTING}
    assert {before for before, event in TRANSITIONS if event == "failed"} == running


def test_an_event_out_of_place_is_refused_with_the_state_that_it_needs() -> None:
    with pytest.raises(StudyError, match="'counts', in which it cannot be approved; that needs awaiting_approval"):
        following("counts", "approved")


# Closing


def test_a_stage_closes_when_every_site_has_uploaded() -> None:
    assert closing([site("b"), site("a")], 2, LATER, NOW) == Close(("a", "b"))


def test_a_stage_waits_for_a_site_that_has_not_uploaded() -> None:
    assert closing([site("a"), site("b"), site("c", uploaded=False)], 2, LATER, NOW) == Wait()


def test_a_stage_does_not_wait_for_a_site_that_refused() -> None:
    sites = [site("a"), site("b"), site("c", uploaded=False, refused=True)]
    assert closing(sites, 2, LATER, NOW) == Close(("a", "b"))


def test_a_stage_neither_waits_for_nor_takes_a_revoked_site() -> None:
    sites = [site("a"), site("b"), site("c", enrolled=False), site("d", enrolled=False, uploaded=False)]
    assert closing(sites, 2, LATER, NOW) == Close(("a", "b"))


def test_at_the_deadline_a_stage_closes_with_a_quorum() -> None:
    sites = [site("a"), site("b"), site("c", uploaded=False)]
    assert closing(sites, 2, LATER, LATER - timedelta(microseconds=1)) == Wait()
    assert closing(sites, 2, LATER, LATER) == Close(("a", "b"))


def test_without_a_quorum_a_stage_waits_beyond_the_deadline_and_says_so() -> None:
    decision = closing([site("a"), site("b", uploaded=False)], 2, NOW, LATER)
    assert decision == Wait(
        "1 of at least 2 sites have sent their tally, 1 did not before the deadline; the stage waits for more"
    )


def test_with_too_few_sites_left_a_stage_says_at_once_that_it_waits_for_more() -> None:
    decision = closing([site("a"), site("b", uploaded=False, refused=True)], 2, LATER, NOW)
    assert decision == Wait("1 of at least 2 sites have sent their tally, 1 refused; the stage waits for more")


def test_the_upload_of_a_site_that_refused_afterwards_still_counts() -> None:
    assert closing([site("a", refused=True), site("b")], 2, LATER, NOW) == Close(("a", "b"))


# A whole study


@pytest.fixture
def data() -> dict[str, Levels]:
    return {"north": tissue(1), "south": tissue(2), "west": tissue(3, 1500)}


@pytest.fixture
def federation(engine: Engine, tmp_path: Path, clock: Clock) -> Iterator[Federation]:
    made = Federation(engine, tmp_path, clock)
    made.enrol("north", "south", "west")
    yield made
    assert "exc_info" not in made.log.getvalue()


def run(federation: Federation, data: dict[str, Levels], until: str = "done") -> None:
    for _ in range(20):
        federation.settle()
        study = federation.study()
        if study.state in {until, "failed"}:
            return
        federation.answer(data)
    raise AssertionError(study.state)


def stage_of(federation: Federation, stage: str, window: int = 0) -> CountsPlan | RecoveryPlan | CodebookPlan:
    with database.reading(federation.engine) as session:
        published = records.find_plan(session, "breast", stage, window).published
    found = codec.decode_plan(published).stage
    assert isinstance(found, CountsPlan | RecoveryPlan | CodebookPlan)
    return found


def exact_counts(federation: Federation, levels: Levels) -> dict[int, int]:
    keys = keys_of(stage_of(federation, "counts"), levels)
    found, counts = np.unique(keys[keys != BACKGROUND], return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def assert_heavy_hitters(federation: Federation, levels: Levels) -> None:
    """Every count is exact, and none is smaller than that of a key left out."""
    table, exact = table_of(federation), exact_counts(federation, levels)
    assert [exact[key] for key in table["key"]] == table["count"]
    assert table["count"] == sorted(exact.values(), reverse=True)[:40]


def table_of(federation: Federation) -> dict[str, list[int]]:
    with federation.store.open(federation.study().results["heavy_hitters_digest"]) as file:
        return pq.read_table(io.BytesIO(file.read())).to_pydict()


def test_a_study_finds_the_heavy_hitters_of_the_union_of_all_sites(
    federation: Federation, data: dict[str, Levels]
) -> None:
    federation.create(spec(auto_approve=True, states={"tumour": ("keratin",), "immune": ("cd45", "cd8")}))
    run(federation, data)
    study = federation.study()
    assert (study.state, study.message) == ("done", "")
    union = np.concatenate(list(data.values()), axis=1)
    assert_heavy_hitters(federation, union)
    table = table_of(federation)
    assert list(table) == ["key", *(f"d{i}" for i in range(5)), "count", "x", "y", "cluster", "state"]
    total = sum(table["count"])
    results = study.results
    assert results["pixels"] == union.shape[1]
    assert results["mass"] == total / results["foreground"]
    assert sum(row["size"] for row in results["clusters"]) == total
    assert sum(row["pixels"] for row in results["clusters"]) == results["foreground"]
    assert "tumour" in {row["state"] for row in results["clusters"]}
    # The exact profile of the tumour cluster is bright where tumour cells are.
    tumour = next(row for row in results["clusters"] if row["state"] == "tumour")
    assert BANDS[int(np.argmax(tumour["profile"]))] in {"dapi", "keratin"}
    assert tumour["profile_is"] == "levels"


def test_a_study_interrupted_after_every_single_step_finds_the_same(
    engine: Engine, tmp_path: Path, clock: Clock, data: dict[str, Levels]
) -> None:
    found = []
    for interrupted in (False, True):
        federation = Federation(engine, tmp_path / str(interrupted), clock)

        name = f"study-{int(interrupted)}"
        if not interrupted:
            federation.enrol(*data)
        federation.create(spec(name=name, auto_approve=True))
        for _ in range(100):
            if interrupted:
                federation.reopen()
            if not federation.coordinator.turn():
                if federation.study(name).state == "done":
                    break
                federation.answer(data)
        results = federation.study(name).results
        found.append({key: results[key] for key in ("mass", "foreground", "heavy_hitters")})
        with database.reading(engine) as session:
            merges = session.scalar(
                select(func.count()).select_from(tables.Merge).join(tables.Plan).filter(tables.Plan.study == name)
            )
        assert merges == 5
    # Another name is another seed, so the candidates may differ; the heavy hitters do not.
    assert found[0] == found[1]


def test_a_step_done_by_two_processes_at_once_is_done_once(federation: Federation, data: dict[str, Levels]) -> None:
    federation.create(spec())
    other = Federation(federation.engine, federation.folder, federation.clock)
    federation.answer(data)
    before = federation.study()
    federation.settle()
    # The other process read the study before the first one took it on.
    plan = federation.open_plan()
    assert plan is not None
    with database.writing(other.engine) as session:
        late = records.advance(
            session, before, Outcome("merged", None, {"explained": []}), actor="aggregator", now=other.clock()
        )
    assert not late
    assert federation.study().state == "ranges"
    assert federation.study().results["explained"]


def test_the_tables_are_the_sum_of_the_acknowledged_uploads_and_of_nothing_else(
    federation: Federation, data: dict[str, Levels]
) -> None:
    federation.create(spec())
    federation.answer(data)
    federation.settle()
    federation.answer({"north": data["north"]})
    federation.settle()
    federation.refuse("west")
    federation.answer({"south": data["south"]})
    federation.revoke("north")
    federation.settle()
    assert federation.study().message.startswith("1 of at least 2 sites")
    with database.writing(federation.engine) as session:
        session.get_one(tables.Member, "north").state = "enrolled"
    plan = federation.open_plan()
    assert plan is not None
    federation.settle()
    stage = codec.decode_plan(plan.published).stage
    with database.reading(federation.engine) as session:
        merge = session.get_one(tables.Merge, plan.fingerprint)
    merged = load_merged(federation.store, merge.digest, plan.fingerprint, stage).tables
    expected = count(stage, np.concatenate([data["north"], data["south"]], axis=1))
    for name, table in expected.items():
        np.testing.assert_array_equal(merged[name], table)


def test_a_site_that_vanishes_holds_a_study_up_only_to_the_deadline(
    federation: Federation, data: dict[str, Levels], clock: Clock
) -> None:
    federation.create(spec(stage_deadline=timedelta(hours=2)))
    present = {name: data[name] for name in ("north", "south")}
    plan = federation.answer(present)
    federation.settle()
    assert federation.study().state == "moments"
    clock.advance(timedelta(hours=2))
    federation.settle()
    assert federation.study().state == "ranges"
    # It returns with a tally that nobody needs any more, and is in time for the next stage.
    with pytest.raises(WindowClosed, match="moments of breast, window 0, is closed"):
        federation.send(plan, "west", *federation.tally(plan, data["west"]))
    federation.answer(data)
    federation.settle()
    assert federation.study().state == "counts"


def test_a_site_revoked_midway_is_left_out_and_the_study_goes_on(
    federation: Federation, data: dict[str, Levels]
) -> None:
    federation.create(spec())
    federation.answer({"north": data["north"], "west": data["west"]})
    federation.revoke("west")
    plan = federation.answer({"south": data["south"]})
    federation.settle()
    assert federation.study().state == "ranges"
    with database.reading(federation.engine) as session:
        assert session.get_one(tables.Plan, plan.fingerprint).sites_expected == ["north", "south"]


def test_a_researcher_names_clusters_before_the_codebook_goes_out(
    federation: Federation, data: dict[str, Levels]
) -> None:
    federation.create(spec(states={"tumour": ("keratin",)}))
    run(federation, data, until="awaiting_approval")
    assert not federation.coordinator.turn()  # it waits for a person
    study = federation.study()
    with database.reading(federation.engine) as session:
        recovery = records.find_plan(session, "breast", "recovery", 0)
    with federation.store.open(study.results["heavy_hitters_digest"]) as file:
        table = file.read()
    outcome = steps.approve(codec.decode_plan(recovery.published), study.results, table, {1: "stroma"})
    with pytest.raises(StudyError, match="no cluster 9; the study has the clusters 0 to 2"):
        steps.approve(codec.decode_plan(recovery.published), study.results, table, {9: "stroma"})
    digest = records.keep_table(federation.store, federation.folder / "spool", outcome)
    with database.writing(federation.engine) as session:
        assert records.advance(session, study, outcome, table=digest, actor="operator/ada", now=federation.clock())
    book = stage_of(federation, "codebook")
    assert isinstance(book, CodebookPlan)
    assert book.states[book.cluster_states[1]] == "stroma"
    rows = table_of(federation)
    assert {s for s, c in zip(rows["state"], rows["cluster"], strict=True) if c == 1} == {"stroma"}


def test_a_second_window_adds_new_files_to_the_counts_and_verifies_on_all(
    federation: Federation, data: dict[str, Levels]
) -> None:
    federation.create(spec(auto_approve=True))
    run(federation, data)
    first = federation.study()
    with database.reading(federation.engine) as session:
        counts = codec.decode_plan(records.find_plan(session, "breast", "counts", 0).published)
    with database.writing(federation.engine) as session:
        outcome = Outcome("extended", studies.next_window(counts), {})
        assert records.advance(session, first, outcome, actor="operator/ada", now=federation.clock())
    new = {"north": tissue(11), "south": tissue(12), "west": np.zeros((len(BANDS), 0), np.uint16)}
    assert federation.study().state == "counts"
    federation.answer(new)  # only the files that are new
    federation.settle()
    everything = {name: np.concatenate([data[name], new[name]], axis=1) for name in data}
    federation.answer(everything)  # verification covers all windows so far
    federation.settle()
    federation.answer(everything)
    federation.settle()
    study = federation.study()
    assert (study.state, study.window) == ("done", 1)
    union = np.concatenate(list(everything.values()), axis=1)
    assert_heavy_hitters(federation, union)
    assert study.results["pixels"] == union.shape[1]


def test_a_study_of_black_images_fails_with_the_reason(federation: Federation) -> None:
    federation.create(spec())
    run(federation, {name: np.zeros((len(BANDS), 100), np.uint16) for name in ("north", "south", "west")})
    study = federation.study()
    assert study.state == "failed"
    assert study.message == "every pixel at every site is zero; check the plan's offset and scale against the images"


def test_a_step_that_breaks_is_tried_again_and_says_so(
    federation: Federation, data: dict[str, Levels], clock: Clock
) -> None:
    federation.create(spec())
    plan = federation.answer(data)
    federation.coordinator.turn()  # closes
    with database.reading(federation.engine) as session:
        digest = session.scalars(select(tables.Upload.digest).filter_by(plan=plan.fingerprint)).first()
    assert digest is not None
    blob = federation.folder / "blobs" / digest[:2] / digest
    blob.rename(federation.folder / "taken")
    assert not federation.coordinator.turn()
    assert f"the blob {digest[:12]} is missing" in federation.study().message
    assert federation.study().state == "moments"
    (federation.folder / "taken").rename(blob)
    assert not federation.coordinator.turn()  # not at once
    clock.advance(timedelta(seconds=2))
    federation.settle()
    assert (federation.study().state, federation.study().message) == ("ranges", "")


def test_the_coordinator_s_thread_takes_a_study_on_when_woken(federation: Federation, data: dict[str, Levels]) -> None:
    federation.create(spec())
    federation.answer(data)
    federation.coordinator.start()
    try:
        federation.coordinator.wake()
        wait_until(lambda: federation.study().state == "ranges", "the next stage")
    finally:
        federation.coordinator.stop()
