"""What a person decides at the command line, at a site that runs."""

import io
import json
import threading
from contextlib import contextmanager
from datetime import datetime

import httpx
import pytest
from cryptography import x509
from typer.testing import CliRunner

from cairn import chain, codec
from cairn.enrolment import tls_files
from cairn.errors import ConfigError, PolicyError
from cairn.plan import Plan, UpdatePlan
from edge_node import audit
from edge_node.commands import app
from edge_node.local_service import ask
from edge_node.node import Node
from edge_node.status import make_log

from .conftest import STAGES, wait_until, write_image, write_settings


@pytest.fixture
def site(tmp_path, middle):
    write_image(tmp_path / "images" / "good.ome.tif", 0)
    middle.enrol(tmp_path / "state" / "identity")
    return tmp_path


@contextmanager
def running(settings):
    stop, log = threading.Event(), io.StringIO()
    thread = threading.Thread(target=Node(settings, stop, make_log(log)).run)
    thread.start()
    wait_until(lambda: "edge node runs" in log.getvalue(), "the service")
    yield log
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def said(folder, *arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments), "--config", str(folder / "site.toml")])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def plan_of(study):
    return Plan(study, 0, STAGES["moments"])


def test_a_decision_takes_effect_in_the_running_service_and_both_sides_see_it(site, middle):
    settings = write_settings(site, '[policy]\napprovers = ["ada"]\n').model_copy(update={"rescan_seconds": 600.0})
    with running(settings):
        one, other = middle.publish(plan_of("lung"), plan_of("liver"))
        wait_until(lambda: len(middle.answers) == 2, "the answers")
        assert middle.answers[one] == (False, "the plan waits for the approval of ada at this site")

        done = json.loads(said(site, "approve", one.hex()[:8], "--by", "ada", "--json"))
        assert done == {"plan": one.hex(), "decision": "approve", "by": "ada", "study": "lung"}
        wait_until(lambda: one in middle.tallies.ledger, "the tally of the plan that was approved")
        assert middle.answers[one] == (True, "")

        said(site, "refuse", other.hex(), "--by", "ada", "--reason", "no consent for livers")
        sentence = "refused at this site by ada: no consent for livers"
        wait_until(lambda: middle.answers[other] == (False, sentence), "the refusal at the aggregator")
        page = httpx.get(ask(site / "state").page).text
        assert sentence in page
        assert "approved by ada" in page
        assert other not in middle.tallies.ledger

    events = [(line.event, line.what) for line in audit.read(site / "state" / "audit.jsonl")]
    assert ("decision", "refused by ada: no consent for livers") in [
        (event, what.partition(" (login")[0]) for event, what in events
    ]
    assert audit.first_broken(site / "state" / "audit.jsonl") is None


def test_a_plan_that_is_refused_while_its_tally_waits_to_be_sent_stays_at_the_site(site, middle):
    away = "20:00-20:01" if datetime.now().astimezone().hour < 12 else "04:00-04:01"
    settings = write_settings(site, f'[policy]\nhours = ["{away}"]\n')
    with running(settings):
        [of] = middle.publish(plan_of("lung"))
        pending = site / "state" / "outbox" / "pending"
        wait_until(lambda: any(pending.iterdir()), "the sealed tally")
        said(site, "refuse", of.hex())
        wait_until(lambda: middle.answers[of][0] is False, "the refusal")
    with running(settings.model_copy(update={"policy": type(settings.policy)()})):
        wait_until(lambda: middle.watching > 0 and middle.answers.get(of, (True,))[0] is False, "the answer")
        assert any(pending.iterdir())
    assert middle.tallies.ledger == {}


def test_only_who_is_named_decides(site, middle):
    write_settings(site, '[policy]\napprovers = ["ada"]\n')
    with pytest.raises(PolicyError, match="carl does not decide here, ada may"):
        said(site, "approve", "ab" * 32, "--by", "carl")
    assert not (site / "state" / "decisions.json").exists()


def test_a_plan_is_named_by_a_file_by_digits_or_not_at_all(site, middle):
    write_settings(site)
    (site / "one.plan").write_bytes(codec.encode_plan(plan_of("lung")))
    assert "lung, moments, plan" in said(site, "refuse", site / "one.plan")
    assert "is left to the settings" in said(site, "forget", site / "one.plan")
    with pytest.raises(ConfigError, match="neither a file nor a plan's fingerprint"):
        said(site, "approve", "lung")
    middle.publish(plan_of("lung"))
    with pytest.raises(ConfigError, match="0 open plans begin with 00000000"):
        said(site, "approve", "00000000")


def test_policy_check_names_the_rule_that_refuses_and_ends_with_1(site, middle):
    write_settings(site, '[policy]\nstreams = ["updates"]\n')
    (site / "one.plan").write_bytes(codec.encode_plan(plan_of("lung")))
    found = json.loads(said(site, "policy", "check", site / "one.plan", "--json", code=1))
    assert found["takes_part"] is False
    assert [name for name, against in found["rules"].items() if against] == ["policy.streams"]
    assert "does not take part" in said(site, "policy", "check", site / "one.plan", code=1)
    write_settings(site)
    assert "takes part" in said(site, "policy", "check", site / "one.plan")
    assert json.loads(said(site, "policy", "show", "--json"))["policy"]["streams"] == ["pixels", "replay", "updates"]


def test_policy_check_and_show_name_what_leaves_masked_alone(site, middle):
    write_settings(site, '[masking]\nrequired = ["pixels"]\n')
    (site / "one.plan").write_bytes(codec.encode_plan(plan_of("lung")))
    found = json.loads(said(site, "policy", "check", site / "one.plan", "--json", code=1))
    assert [name for name, against in found["rules"].items() if against] == ["masking"]
    assert json.loads(said(site, "policy", "show", "--json"))["policy"]["masked"] == ["pixels"]


def test_policy_check_does_not_hold_a_run_against_the_images_of_the_studies(site, middle):
    write_settings(site, '[policy]\nstreams = ["updates"]\n')
    (site / "round.plan").write_bytes(codec.encode_plan(Plan("sella", 1, UpdatePlan(1000, 20, 64.0, 2**20))))
    found = json.loads(said(site, "policy", "check", site / "round.plan", "--json", code=1))
    assert [name for name, against in found["rules"].items() if against] == ["training", "approval"]


def test_the_audit_log_is_verified_and_exported_as_it_is(site, middle):
    write_settings(site)
    for number in range(3):
        said(site, "refuse", f"{number}" * 64, "--by", "ada")
    log = site / "state" / "audit.jsonl"
    first = json.loads(said(site, "audit", "verify", "--json"))
    assert (first["lines"], first["whole"]) == (3, True)
    said(site, "audit", "export", "--out", site / "exported.jsonl")
    assert (site / "exported.jsonl").read_bytes() == log.read_bytes()
    assert "the log is whole" in said(
        site, "audit", "verify", "--file", site / "exported.jsonl", "--known", first["head"]
    )
    assert "no line has the digest" in said(site, "audit", "verify", "--known", "ab" * 32, code=1)
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], lines[2]]) + b"\n")
    assert "line 2 of 2 does not follow" in said(site, "audit", "verify", code=1)
    assert chain.verify(lines).whole


def test_with_new_keys_the_running_service_goes_on_and_shows_them_from_then_on(site, middle):
    settings = write_settings(site)
    with running(settings) as log:
        wait_until(lambda: middle.watching == 1, "the site connected")
        assert "alpha has new keys" in said(site, "rotate")
        files = tls_files(settings.identity_folder)
        serial = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
        wait_until(lambda: "certificate renewed" in log.getvalue(), "the new certificate")
        assert middle.watching == 1
        [of] = middle.publish(plan_of("lung"))
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
        assert serial in middle.serials
