"""Seeded schedules of faults; two thousand were run once (docs/RELIABILITY.md), a few dozen run here."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np
import pytest

from aggregator import database
from aggregator.intake.merging import load_merged
from aggregator.tables import Merge
from cairn import codec
from tests.aggregator.conftest import Clock
from tests.aggregator.masking.masked_sites import Sites
from tests.aggregator.simulated import Federation, spec
from tests.faults import broken, masked, plain
from tests.faults.ground import Ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("ground"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_node.uplink.MESSAGE", plain.MESSAGE)


@pytest.mark.parametrize("seed", range(12))
def test_the_merged_tables_are_the_sum_of_the_acknowledged_uploads_each_once(seed: int, ground: Ground) -> None:
    plain.run(seed, ground)


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_a_masked_sum_is_exact_over_just_the_sites_that_it_names(seed: int, ground: Ground) -> None:
    assert masked.run(seed, ground)["merges"] == 1


@pytest.mark.parametrize("number", range(1, 29, 4))
def test_a_disk_that_is_full_at_one_write_costs_neither_a_tally_nor_the_study(number: int, ground: Ground) -> None:
    found = plain.run_full(number, ground)  # each write of all: `python -m tests.faults full 1 1000`
    assert (found["full_disks"], found["merges"]) == (1, 1)
    assert found["uploads"] >= 3


def test_a_schedule_does_the_same_each_time(ground: Ground) -> None:
    assert plain.run(40, ground) == plain.run(40, ground)


@pytest.mark.parametrize(("variant", "first"), [(broken.adds_in_place, 5), (broken.acknowledges_first, 0)])
def test_schedules_find_an_aggregator_that_is_wrong_in_one_place(
    variant: plain.Variant, first: int, ground: Ground
) -> None:
    found = ""
    for seed in range(first, first + 6):
        try:
            plain.run(seed, ground, variant)
        except AssertionError as error:
            found = str(error)
            break
    assert found


def test_a_session_in_which_nobody_dealt_in_time_is_given_up_and_tried_again(ground: Ground) -> None:
    folder = ground.cleared()
    sites = Sites(Federation(ground.engine, folder / "aggregator", Clock(datetime.now(UTC))), masked.NAMES, folder)
    sites.federation.create(spec(min_sites=3, masking="on", min_count=1))
    sites.until(lambda: "roster" in sites.made())
    sites.pass_patience()  # and no site was there meanwhile
    sites.federation.coordinator.turn()
    assert "survivors" in sites.made()
    plan = sites.federation.open_plan()
    assert plan is not None

    def merged() -> bool:
        with database.reading(sites.federation.engine) as rows:
            return rows.get(Merge, plan.fingerprint) is not None

    sites.until(merged)


class Gone(Exception):
    """Site and aggregator are killed, and the answer with them."""


def test_a_masked_sum_is_exact_when_both_ends_are_killed_after_every_single_message(ground: Ground) -> None:
    folder = ground.cleared()
    federation = Federation(ground.engine, folder / "aggregator", Clock(datetime.now(UTC)))
    sites = Sites(federation, masked.NAMES, folder)
    federation.create(spec(min_sites=3, masking="on", min_count=1))
    killed = set()

    def dying(name: str, send: Callable[..., object]) -> Callable[..., object]:
        def sending(*message: object) -> object:
            taken = send(*message)
            kind = message[0] if isinstance(message[0], str) else "words"
            if (name, kind) not in killed:
                killed.add((name, kind))
                raise Gone
            return taken

        return sending

    for name, site in sites.sites.items():
        site._send, site._words = dying(name, site._send), dying(name, site._words)  # type: ignore[method-assign]
        site.restart()
    plan = federation.open_plan()
    assert plan is not None
    for _ in range(60):
        for site in sites.sites.values():
            try:
                site.look()
            except Gone:
                site.restart()
                federation.reopen()
        federation.coordinator.turn()
        with database.reading(federation.engine) as rows:
            if (merge := rows.get(Merge, plan.fingerprint)) is not None:
                break
    assert merge is not None
    assert killed == {(n, kind) for n in masked.NAMES for kind in ("Advertise", "Deal", "words", "Vote", "Reveal")}
    decoded = codec.decode_plan(plan.published)
    found = load_merged(federation.store, merge.digest, plan.fingerprint, decoded.stage).tables
    for table, cells in found.items():
        tallies = [site.tally(decoded, plan.fingerprint).tables[table] for site in sites.sites.values()]
        np.testing.assert_array_equal(cells, sum(tallies), err_msg=table)
