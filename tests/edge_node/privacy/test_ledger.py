"""What is spent is spent once, before the tally is sealed, and never over the limit."""

import json
import os
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cairn import codec
from cairn.errors import ConfigError, PolicyError, StudyError
from cairn.plan import Plan, RunStage, Secrecy, UpdatePlan, fingerprint
from cairn.privacy.accountant import composed
from cairn.privacy.terms import Privacy
from cairn.tally import Tables, Tally, zeros
from edge_node.approval import reason_against
from edge_node.commands import app
from edge_node.outbox import Outbox
from edge_node.privacy.ledger import FILE, Ledger
from edge_node.privacy.noised import noised
from edge_node.privacy.rules import lacking
from edge_node.privacy.settings import PrivacySettings
from tests.edge_node.conftest import REPLAY_STAGES, STAGES, write_image, write_settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = Privacy("image", 3.0, 1e-6, 2.0, 4, 3000, sites=1, sharers=1)
LIMIT = PrivacySettings(epsilon=4.0, delta=1e-6)  # one release of z = 2 costs 2.4, two 3.5, three 4.4


def private(study: str = "tumour", stage: str = "counts", terms: Privacy | None = TERMS) -> tuple[Plan, bytes]:
    plan = Plan(study, 0, STAGES[stage], None, terms)
    return plan, fingerprint(codec.encode_plan(plan))


def counted(stage: str = "counts", value: int = 7) -> Tables:
    return {name: table + value for name, table in zeros(STAGES[stage]).items()}


def test_a_site_killed_between_paying_and_sealing_pays_once_and_seals_the_same_tally(tmp_path: Path) -> None:
    plan, of = private()
    exact = Tally(of, counted())
    lost = noised(plan, exact, Ledger(tmp_path, LIMIT).spend(plan, of, exact.tables, NOW))
    # Killed here: nothing was sealed. The service comes back, counts the same images and pays again.
    ledger = Ledger(tmp_path, LIMIT)
    again = noised(plan, exact, ledger.spend(plan, of, exact.tables, NOW))
    assert len(ledger.lines()) == 1
    for name, table in again.tables.items():
        np.testing.assert_array_equal(table, lost.tables[name])
    outbox = Outbox(tmp_path / "outbox")
    np.testing.assert_array_equal(codec.read_tally(outbox.seal(plan, again).path).tables["dense"], lost.tables["dense"])


def test_a_site_killed_while_it_pays_has_paid_or_not_and_nothing_between(tmp_path: Path) -> None:
    plan, of = private()
    ledger = Ledger(tmp_path, LIMIT)
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute(
            "INSERT INTO spent (plan, digest, study, stage, window, unit, epsilon, delta, noise, at) "
            "VALUES ('x', 'y', 's', 't', 0, 'image', 1, 1e-6, 2, 'now')"
        )
        other.rollback()
    assert ledger.lines() == []
    ledger.spend(plan, of, counted(), NOW)
    assert [line.plan for line in Ledger(tmp_path, LIMIT).lines()] == [of.hex()]


def test_another_tally_of_the_same_plan_costs_again_and_gets_other_noise(tmp_path: Path) -> None:
    plan, of = private()
    ledger = Ledger(tmp_path, LIMIT)
    first, second = (ledger.spend(plan, of, counted(value=value), NOW)(64) for value in (7, 8))
    assert first != second
    assert len(ledger.lines()) == 2


def test_the_noise_of_two_sites_and_of_two_plans_differs(tmp_path: Path) -> None:
    (plan, of), (other, its) = private(), private("other")
    here, there = Ledger(tmp_path / "a", LIMIT), Ledger(tmp_path / "b", LIMIT)
    streams = {
        here.spend(plan, of, counted(), NOW)(32),
        there.spend(plan, of, counted(), NOW)(32),
        here.spend(other, its, counted(), NOW)(32),
    }
    assert len(streams) == 3


def test_a_plan_over_the_budget_is_refused_across_studies_and_after_a_restart(tmp_path: Path) -> None:
    for study in ("one", "two"):
        plan, of = private(study)
        Ledger(tmp_path, LIMIT).spend(plan, of, counted(), NOW)
    plan, of = private("three")
    ledger = Ledger(tmp_path, LIMIT)
    sentence = ledger.against(plan, of)
    assert sentence is not None
    assert "its privacy.epsilon is 4;" in sentence
    with pytest.raises(PolicyError, match="over all studies"):
        ledger.spend(plan, of, counted(), NOW)
    assert len(ledger.lines()) == 2
    assert ledger.total() == pytest.approx(composed([2.0, 2.0], 1e-6))
    assert ledger.against(*private("two")) is None  # paid already


def test_without_a_limit_what_is_spent_is_noted_all_the_same(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, PrivacySettings())
    for study in ("a", "b", "c"):
        plan, of = private(study)
        ledger.spend(plan, of, counted(), NOW)
    assert len(ledger.lines()) == 3


def test_lines_cannot_be_taken_out_or_changed_and_the_file_is_the_owners(tmp_path: Path) -> None:
    plan, of = private()
    Ledger(tmp_path, LIMIT).spend(plan, of, counted(), NOW)
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    for statement in ("DELETE FROM spent", "UPDATE spent SET noise = 1000"):
        with sqlite3.connect(tmp_path / FILE) as other, pytest.raises(sqlite3.IntegrityError, match="what is spent"):
            other.execute(statement)


def test_a_damaged_ledger_stops_private_plans(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 99)
    with pytest.raises(ConfigError, match="restore it"):
        Ledger(tmp_path, LIMIT)


def test_sums_in_two_words_are_noised_as_one_number(tmp_path: Path) -> None:
    plan, of = private(stage="moments")
    tables = counted("moments", 0)
    tables["second"][0] += 5
    tables["second"][1] += 3
    found = noised(plan, Tally(of, tables), Ledger(tmp_path, LIMIT).spend(plan, of, tables, NOW))
    assert not found.tables["second"][1].any()
    assert abs(found.tables["second"][0].astype(float).mean() - (3 * 2**32 + 5)) < 2**32
    tables["second"][1] += 2**30
    with pytest.raises(StudyError, match="too many pixels"):
        noised(plan, Tally(of, tables), os.urandom)


def test_what_a_site_asks_for_is_what_a_plan_may_lack(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, '[privacy]\nrequired = true\nunit = "image"\n')
    assert "has no noise" in (lacking(*private(terms=None), settings) or "")
    pixel = replace(TERMS, unit="pixel", clip=1)
    assert "asks for each image" in (lacking(*private(terms=pixel), settings) or "")
    assert lacking(*private(), settings) is None
    assert lacking(*private(terms=replace(TERMS, unit="patient")), settings) is None


@pytest.mark.parametrize(
    "stage", [REPLAY_STAGES["replay"], UpdatePlan(1000, 20, 64.0, 2**20)], ids=["replay", "update"]
)
def test_where_noise_is_required_replay_plans_and_masked_updates_are_refused_with_a_sentence(
    tmp_path: Path, stage: RunStage
) -> None:
    (tmp_path / "images").mkdir()
    training = '[training]\nruns = ["*"]\nscenes = [{ kind = "generated" }]\n'
    settings = write_settings(tmp_path, training + "[privacy]\nrequired = true\n")
    plan = Plan("sella-1", 1, stage, Secrecy(64, 400, 100))
    of = fingerprint(codec.encode_plan(plan))
    expected = "this site takes part in private plans alone (privacy.required), and this one has no noise"
    assert reason_against(plan, of, settings) == expected
    assert reason_against(plan, of, write_settings(tmp_path, training)) is None


def test_the_answer_to_a_plan_over_the_budget_is_one_sentence_for_both_sides(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.ome.tif", 1)
    settings = write_settings(tmp_path, "[privacy]\nepsilon = 2.5\ndelta = 1e-6\n")
    plan, of = private()
    assert reason_against(plan, of, settings) is None
    Ledger(settings.state_dir, settings.privacy).spend(plan, of, counted(), NOW)
    assert reason_against(plan, of, settings) is None  # what is paid for is still sent
    sentence = reason_against(*private("next"), settings)
    assert sentence is not None
    assert sentence.count(".") >= 1
    assert "ε" in sentence


def test_the_budget_is_shown_as_text_and_as_json(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, "[privacy]\nepsilon = 4\ndelta = 1e-6\n")
    plan, of = private()
    Ledger(settings.state_dir, settings.privacy).spend(plan, of, counted(), NOW)
    arguments = ["budget", "--config", str(tmp_path / "site.toml")]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["limit"] == 4
    assert told["epsilon"] == pytest.approx(composed([2.0], 1e-6))
    assert [line["study"] for line in told["spent"]] == ["tumour"]
    assert "of 4 is spent" in CliRunner().invoke(app, arguments).stdout


def test_of_an_image_level_tally_almost_no_exact_count_can_be_read(tmp_path: Path) -> None:
    """One site's counts of 50 images, as a curious aggregator sees them: plain, for each pixel, for each image."""
    stage = STAGES["counts"]
    rng = np.random.default_rng(0)
    tables = zeros(stage)
    tables["dense"] += rng.integers(1, 200, tables["dense"].shape)
    shares = {}
    for unit, clip in (("pixel", 1), ("image", 100)):
        terms = replace(TERMS, unit=unit, clip=clip)  # type: ignore[arg-type]
        plan = Plan(unit, 0, stage, Secrecy(64, 0, 0), terms)
        of = fingerprint(codec.encode_plan(plan))
        found = noised(plan, Tally(of, tables), Ledger(tmp_path, PrivacySettings()).spend(plan, of, tables, NOW))
        shares[unit] = float(np.mean(found.tables["dense"] == tables["dense"]))
    assert shares["image"] < 0.1  # 16 prefixes; plain, all of them
    assert shares["image"] <= shares["pixel"] < 0.4
