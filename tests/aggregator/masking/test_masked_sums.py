"""Masked sums through the aggregator's real parts: what comes out, who may be lost when, what is refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from aggregator import database, tables
from aggregator.intake.merging import load_merged
from cairn import codec
from cairn.errors import IdentityError, PlanMismatch, WindowClosed
from cairn.masking.canonical import decode, digest
from cairn.masking.messages import Session
from cairn.tally import Tables
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Sites
from tests.aggregator.simulated import Federation, spec

FOUR = ("a", "b", "c", "d")


@pytest.fixture
def sites(engine: Engine, tmp_path: Path, clock: Clock) -> Iterator[Sites]:
    federation = Federation(engine, tmp_path / "aggregator", clock)
    yield begun(federation, FOUR, tmp_path)
    federation.store = None  # type: ignore[assignment]


def begun(federation: Federation, names: tuple[str, ...], folder: Path) -> Sites:
    made = Sites(federation, names, folder / "sites")
    federation.create(spec(min_sites=3, masking="on", min_count=1))
    return made


def merged(sites: Sites, plan: tables.Plan) -> tuple[Tables, list[str]]:
    federation = sites.federation
    with database.reading(federation.engine) as rows:
        merge, row = rows.get_one(tables.Merge, plan.fingerprint), rows.get_one(tables.Plan, plan.fingerprint)
    stage = codec.decode_plan(plan.published).stage
    return load_merged(federation.store, merge.digest, plan.fingerprint, stage).tables, row.sites_expected or []


def check_sum_of(sites: Sites, plan: tables.Plan, names: tuple[str, ...]) -> None:
    found, who = merged(sites, plan)
    assert who == sorted(names)
    decoded = codec.decode_plan(plan.published)
    tallies = [sites.sites[name].tally(decoded, plan.fingerprint).tables for name in names]
    for table, cells in found.items():
        np.testing.assert_array_equal(cells, sum(tally[table] for tally in tallies), err_msg=table)


def the_plan(sites: Sites) -> tables.Plan:
    plan = sites.federation.open_plan()
    assert plan is not None
    return plan


def moved_on(sites: Sites, plan: tables.Plan) -> bool:
    with database.reading(sites.federation.engine) as rows:
        return rows.get_one(tables.Plan, plan.fingerprint).state == "done"


def test_the_sum_is_that_of_the_plain_tallies_bit_for_bit(sites: Sites) -> None:
    plan = the_plan(sites)
    assert codec.decode_plan(plan.published).secrecy is not None
    sites.until(lambda: moved_on(sites, plan))
    check_sum_of(sites, plan, FOUR)


def test_nothing_that_the_aggregator_stores_of_one_site_is_like_its_tally(sites: Sites) -> None:
    plan = the_plan(sites)
    sites.until(lambda: sites.everybody("receipt"))
    decoded = codec.decode_plan(plan.published)
    blobs = [path.read_bytes() for path in (sites.federation.folder / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == len(FOUR)
    for site in sites.sites.values():
        tally = site.tally(decoded, plan.fingerprint)
        plain = np.concatenate([tally.tables[name].reshape(-1) for name in decoded.stage.shapes()])
        for blob in blobs:
            words = np.frombuffer(blob, "<i8")
            assert len(words) == len(plain)
            assert not (words == plain).any()
            # Uniform words agree with any in their highest byte once in 256; all of these tallies' are zero.
            assert np.mean(words >> 56 == 0) < 0.05


@pytest.mark.parametrize("lost_after", ["advertisement", "dealing", "receipt", "vote"])
def test_a_site_that_is_lost_after_any_of_its_messages_costs_its_own_counts_at_most(
    sites: Sites, lost_after: str
) -> None:
    plan = the_plan(sites)
    sites.until(lambda: sites.everybody(lost_after))
    for _ in range(6):
        sites.turn("d")
        if moved_on(sites, plan):
            break
        sites.pass_patience()
    sites.until(lambda: moved_on(sites, plan), "d")
    counted = ("a", "b", "c") if lost_after in ("advertisement", "dealing") else FOUR
    check_sum_of(sites, plan, counted)


@pytest.mark.parametrize("turns", range(8))
def test_everybody_killed_between_any_two_turns_goes_on_to_the_same_sum(sites: Sites, turns: int) -> None:
    plan = the_plan(sites)
    for _ in range(turns):
        sites.turn()
    sites.federation.reopen()
    for site in sites.sites.values():
        site.restart()
    sites.until(lambda: moved_on(sites, plan))
    check_sum_of(sites, plan, FOUR)


def test_with_too_few_sites_the_sum_is_given_up_and_made_in_another_attempt(sites: Sites) -> None:
    plan = the_plan(sites)
    sites.until(lambda: sites.everybody("dealing"))
    sites.sites["c"].lose_words = sites.sites["d"].lose_words = True
    sites.turn()
    sites.turn()
    sites.pass_patience()  # two of four have sent their words: too few to be summed
    sites.until(lambda: "survivors" in sites.made())
    sites.until(lambda: sites.everybody("vote"))
    sites.sites["c"].lose_words = sites.sites["d"].lose_words = False
    sites.until(lambda: moved_on(sites, plan))
    check_sum_of(sites, plan, FOUR)
    with database.reading(sites.federation.engine) as rows:
        assert {row.attempt for row in rows.query(tables.MaskingSession).filter_by(plan=plan.fingerprint)} == {1, 2}


def test_a_site_alone_waits_with_a_sentence_for_others(engine: Engine, tmp_path: Path, clock: Clock) -> None:
    sites = begun(Federation(engine, tmp_path / "aggregator", clock), FOUR, tmp_path)
    plan = the_plan(sites)
    clock.advance(spec().stage_deadline)
    for _ in range(4):
        sites.turn("b", "c", "d")
    assert not moved_on(sites, plan)
    assert sites.federation.study().message == (
        "1 sites are ready for the masked sum and 3 are needed; the stage waits for more"
    )


def test_a_tally_in_plain_is_refused_where_sums_are_secret(sites: Sites) -> None:
    plan = the_plan(sites)
    federation = sites.federation
    with pytest.raises(PlanMismatch, match="summed secretly and a tally came in plain"):
        federation.send(plan, "a", *federation.tally_of_zeros(plan))
    assert not [path for path in (federation.folder / "blobs").rglob("*") if path.is_file()]


def test_a_message_in_another_sites_name_is_refused(sites: Sites) -> None:
    sites.until(lambda: sites.everybody("advertisement"))
    body = _stored(sites, "advertisement", "a")
    with pytest.raises(IdentityError, match="in the name of 'a'"):
        sites.federation.arrivals.advertise("b", digest(_session(sites)), body)
    sites.until(lambda: sites.everybody("dealing"))
    with pytest.raises(IdentityError, match="another site's name"):
        sites.federation.arrivals.deal("b", digest(_session(sites)), _stored(sites, "dealing", "a"))


def test_the_same_message_again_changes_nothing_and_another_sites_is_refused(sites: Sites) -> None:
    sites.until(lambda: sites.everybody("dealing"))
    arrivals, session = sites.federation.arrivals, digest(_session(sites))
    body = _stored(sites, "dealing", "a")
    arrivals.deal("a", session, body)
    assert _stored(sites, "dealing", "a") == body
    sites.until(lambda: sites.everybody("vote"))
    with pytest.raises(IdentityError, match="another site's name"):
        arrivals.vote("a", session, _stored(sites, "vote", "b"))


def test_after_the_sum_nothing_more_is_taken(sites: Sites) -> None:
    plan = the_plan(sites)
    sites.until(lambda: sites.everybody("vote"))
    session, vote = digest(_session(sites)), _stored(sites, "vote", "a")
    sites.until(lambda: moved_on(sites, plan))
    with pytest.raises(WindowClosed):
        sites.federation.arrivals.vote("a", session, vote)


def test_a_revoked_site_is_not_in_the_next_roster(sites: Sites) -> None:
    plan = the_plan(sites)
    sites.until(lambda: sites.everybody("advertisement", "d"), "d")
    sites.federation.revoke("d")
    sites.until(lambda: moved_on(sites, plan), "d")
    check_sum_of(sites, plan, ("a", "b", "c"))


def _session(sites: Sites) -> Session:
    with database.reading(sites.federation.engine) as rows:
        found = rows.query(tables.MaskingSession).order_by(tables.MaskingSession.attempt.desc()).first()
        assert found is not None
        return decode(Session, found.body)


def _stored(sites: Sites, kind: str, site: str) -> bytes:
    with database.reading(sites.federation.engine) as rows:
        return rows.get_one(tables.MaskingMessage, (digest(_session(sites)).hex(), kind, site)).body
