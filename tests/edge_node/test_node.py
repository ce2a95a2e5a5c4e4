"""The service of a site, against an aggregator that restarts, refuses, forgets and closes."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from cairn import codec, kernels
from cairn.errors import ConfigError, NotEnrolled, Revoked
from cairn.plan import Plan, fingerprint
from edge_node import audit, worker
from edge_node.local_service import ask
from edge_node.node import Node, alone
from edge_node.status import Board, make_log

from .conftest import STAGES, Fault, wait_until, write_image, write_settings
from .federation import Middle
from .test_apart import children

NUMBA = kernels.load("numba")


def plan_of(stage, window=0, study="tumour"):
    return Plan(study, window, STAGES[stage])


@pytest.fixture
def site(tmp_path, middle):
    for number in range(2):
        write_image(tmp_path / "images" / f"good{number}.ome.tif", number)
    middle.enrol(tmp_path / "state" / "identity")
    return write_settings(tmp_path)


@contextmanager
def running(settings) -> Iterator[io.StringIO]:
    stop, log, failed = threading.Event(), io.StringIO(), []

    def live():
        try:
            Node(settings, stop, make_log(log)).run()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    wait_until(lambda: "edge node runs" in log.getvalue() or not thread.is_alive(), "the service")
    try:
        yield log
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert failed == [], log.getvalue()


def expected(settings, plan):
    """Count the plan by itself, as the site should."""
    job = worker.Job(plan, fingerprint(codec.encode_plan(plan)), settings, NUMBA, Board(), lambda: False)
    return worker.count_offline(job)[0].tables


def arrived(middle, of, tmp_path):
    path = tmp_path / "arrived.tally"
    path.write_bytes(middle.tallies.ledger[of])
    return codec.read_tally(path).tables


def events(settings):
    return [(line.event, line.stage) for line in audit.read(settings.state_dir / "audit.jsonl")]


@pytest.mark.parametrize("stage", list(STAGES))
def test_an_approved_plan_is_accepted_counted_and_sent_exactly(stage, site, middle, tmp_path):
    plan = plan_of(stage)
    with running(site):
        [of] = middle.publish(plan)
        wait_until(lambda: of in middle.tallies.ledger, "the tally in the ledger")
    wanted = expected(site, plan)
    found = arrived(middle, of, tmp_path)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert middle.answers == {of: (True, "")}
    assert middle.tallies.merges == 1


def test_all_that_left_is_in_the_audit_log_and_nothing_names_a_file(site, middle):
    (site.images.folder / "patient7.ome.tif").write_bytes(b"broken")
    with running(site) as log:
        for stage in STAGES:
            [of] = middle.publish(plan_of(stage))
            wait_until(lambda of=of: of in middle.tallies.ledger, stage)
        wait_until(lambda: middle.reports[-1].fingerprint == b"", "the last report")
        wait_until(lambda: ("acknowledged", "codebook") in events(site), "the last line")
    written = events(site)
    for stage in STAGES:
        assert [event for event, of in written if of == stage and event != "report"] == [
            "answer", "tally", "acknowledged",
        ]  # fmt: skip
    assert audit.first_broken(site.state_dir / "audit.jsonl") is None
    assert {report.problems[0] for report in middle.reports if report.problems} == {"an image could not be read"}
    assert any(report.pixels_done == report.pixels_total == 2 * 96 * 96 for report in middle.reports)
    assert "patient7" not in log.getvalue()
    assert "patient7" not in str(middle.reports)
    assert "patient7" in (site.state_dir / "problems.json").read_text(encoding="utf-8")


def test_a_plan_that_is_not_approved_is_refused_with_the_rule_and_not_counted(tmp_path, site, middle):
    config = tmp_path / "site.toml"
    config.write_text(config.read_text(encoding="utf-8").replace('["*"]', '["lung-*"]'), encoding="utf-8")
    from edge_node.settings import load_settings

    with running(load_settings(config)):
        [refused, wanted] = middle.publish(plan_of("moments"), plan_of("moments", study="lung-1"))
        wait_until(lambda: wanted in middle.tallies.ledger, "the approved one")
        wait_until(lambda: refused in middle.answers, "the answer")
    accepted, reason = middle.answers[refused]
    assert not accepted
    assert "has not approved study tumour" in reason
    assert list(middle.tallies.ledger) == [wanted]


def test_a_missing_band_is_refused_by_name_and_accepted_when_an_image_with_it_arrives(tmp_path, middle):
    write_image(tmp_path / "images" / "x.ome.tif", 1, ("a", "b"))
    middle.enrol(tmp_path / "state" / "identity")
    with running(write_settings(tmp_path)):
        [of] = middle.publish(plan_of("moments"))
        wait_until(lambda: of in middle.answers, "the answer")
        assert middle.answers[of] == (False, "no image of this site can be counted: an image lacks c")
        write_image(tmp_path / "images" / "y.ome.tif", 1)
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
    assert middle.answers[of] == (True, "")


def test_images_that_all_fail_only_when_read_take_the_acceptance_back(tmp_path, middle):
    path = tmp_path / "images" / "x.ome.tif"
    write_image(path, 1, dtype="<f4")
    content = path.read_bytes()
    nan = np.full(4000, np.nan, np.float32).tobytes()
    path.write_bytes(content[:8000] + nan + content[8000 + len(nan) :])
    middle.enrol(tmp_path / "state" / "identity")
    with running(write_settings(tmp_path)):
        [of] = middle.publish(plan_of("moments"))
        wait_until(lambda: middle.answers.get(of, (True, ""))[0] is False, "the refusal")
    assert middle.answers[of][1].startswith("no image of this site can be counted")
    assert middle.tallies.ledger == {}


def test_a_plan_that_this_version_cannot_read_is_refused(site, middle):
    with running(site):
        middle.offer(b"\xff\xff\xff")
        wait_until(lambda: bool(middle.answers), "the answer")
    [(accepted, reason)] = middle.answers.values()
    assert not accepted
    assert "update Cairn" in reason


def test_the_site_comes_back_after_the_aggregator_restarted_at_any_moment(site, middle):
    with running(site):
        for number, stage in enumerate(STAGES):
            wait_until(lambda: middle.watching > 0, "connected")
            if number % 2:
                middle.tallies.faults = [Fault("cut", 10), Fault("flip", 10)]
            [of] = middle.publish(plan_of(stage))
            middle.stop()
            middle.start()
            wait_until(lambda of=of: of in middle.tallies.ledger, stage, 60)
    assert middle.tallies.merges == len(STAGES)


def test_a_revoked_site_stops_working_says_so_and_keeps_its_page(site, middle):
    with running(site):
        [before] = middle.publish(plan_of("moments"))
        wait_until(lambda: before in middle.tallies.ledger, "the tally before")
        middle.refuse(Revoked("the certificate was revoked by the operator"))
        wait_until(
            lambda: ask(site.state_dir).problems[:1] == ["the certificate was revoked by the operator"], "status"
        )
        calls = len(middle.serials)
        middle.publish(plan_of("ranges"))
        page = ask(site.state_dir).page
        assert "Not admitted" in httpx.get(page).text
        assert "revoked by the operator" in httpx.get(page).text
        assert not ask(site.state_dir).connected
        assert len(middle.serials) == calls
    assert list(middle.tallies.ledger) == [before]


def test_a_site_revoked_between_counting_and_sending_keeps_its_tally(site, middle):
    middle.tallies.refusal = Revoked("revoked by the operator")
    with running(site):
        middle.publish(plan_of("moments"))
        wait_until(lambda: bool(ask(site.state_dir).problems), "status")
    assert len(list((site.state_dir / "outbox" / "pending").iterdir())) == 1
    assert middle.tallies.ledger == {}


def park(site, middle, plan):
    """Publish a plan to a site that runs, and have its tally come too late; returns the plan's fingerprint."""
    of = fingerprint(codec.encode_plan(plan))
    middle.tallies.closed.add(of)
    middle.publish(plan)
    wait_until(lambda: len(list((site.state_dir / "outbox" / "parked").iterdir())) == 1, "parked")
    return of


def test_a_tally_that_comes_too_late_is_parked_and_not_sent_again(site, middle):
    with running(site):
        park(site, middle, plan_of("moments"))
        [other] = middle.publish(plan_of("ranges"))
        wait_until(lambda: other in middle.tallies.ledger, "the next stage")
    assert list(middle.tallies.ledger) == [other]


def test_a_parked_tally_is_sent_when_its_plan_is_open_again(site, middle):
    plan = plan_of("moments")
    with running(site):
        of = park(site, middle, plan)
        [other] = middle.publish(plan_of("ranges"))  # as an aggregator does that was restored from an old backup
        wait_until(lambda: other in middle.tallies.ledger, "an earlier stage")
        middle.tallies.closed.clear()
        middle.publish(plan)
        wait_until(lambda: of in middle.tallies.ledger, "the tally")


def test_what_the_aggregator_lost_is_sent_again_and_is_the_same(site, middle):
    with running(site):
        [of] = middle.publish(plan_of("counts"))
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
        wait_until(lambda: not ask(site.state_dir).outbox, "sent")
        before = middle.tallies.ledger.pop(of)  # restored from an old backup
        middle.tallies.wanted.clear()
        middle.stop()
        middle.start()
        wait_until(lambda: of in middle.tallies.ledger, "the tally again", 60)
    assert middle.tallies.ledger[of] == before


def test_a_restarted_site_sends_what_it_had_sealed_and_does_not_count_again(site, middle):
    middle.tallies.faults = [Fault("cut") for _ in range(1000)]
    with running(site):
        [of] = middle.publish(plan_of("counts"))
        wait_until(lambda: middle.tallies.calls > 1, "two attempts")
    [sealed] = (site.state_dir / "outbox" / "pending").iterdir()
    content = sealed.read_bytes()
    middle.tallies.faults = []
    for image in site.images.folder.iterdir():
        image.unlink()  # so that counting again would give something else
    with running(site):
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
    assert middle.tallies.ledger[of] == content


def test_a_full_disk_puts_the_stage_off_and_it_is_done_when_there_is_room(site, middle, monkeypatch):
    full = threading.Event()
    full.set()
    real = os.fsync

    def fsync(descriptor):
        if full.is_set() and "outbox" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with running(site):
        [of] = middle.publish(plan_of("counts"))
        wait_until(lambda: any("room on the disk" in text for text in ask(site.state_dir).problems), "the problem")
        assert list((site.state_dir / "outbox" / "pending").iterdir()) == []
        full.clear()
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
        wait_until(lambda: not ask(site.state_dir).problems, "no problem any more")


def test_nothing_leaves_that_the_audit_log_has_no_room_for(site, middle, monkeypatch):
    full = threading.Event()
    real = os.fsync

    def fsync(descriptor):
        if full.is_set() and "audit.jsonl" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    middle.tallies.faults = [Fault("cut", 1)]
    with running(site):
        wait_until(lambda: middle.watching > 0, "connected")
        full.set()
        [of] = middle.publish(plan_of("counts"))
        wait_until(lambda: any("audit log" in text for text in ask(site.state_dir).problems), "the problem")
        assert middle.answers == {}
        assert middle.tallies.calls == 0
        full.clear()
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
    assert middle.answers == {of: (True, "")}


def test_a_stage_that_closes_while_it_is_worked_is_given_up(site, middle):
    with running(site) as log:
        [first] = middle.publish(plan_of("moments"))
        wait_until(lambda: first in middle.tallies.ledger, "the first stage")
        [child] = children()
        child.suspend()  # the images are on a disk that does not answer
        [given_up] = middle.publish(plan_of("ranges"))
        wait_until(lambda: log.getvalue().count("stage begins") == 2, "the second stage")
        [wanted] = middle.publish(plan_of("counts"))
        wait_until(lambda: wanted in middle.tallies.ledger, "the next stage")
    assert given_up not in middle.tallies.ledger
    assert "stage given up" in log.getvalue()
    assert children() == []


def test_a_certificate_near_its_end_is_renewed_and_used(tmp_path, middle):
    write_image(tmp_path / "images" / "x.ome.tif", 1)
    identity = tmp_path / "state" / "identity"
    middle.enrol(identity, begin=datetime.now(UTC) - timedelta(days=80), lasts=timedelta(days=100))
    old = (identity / "certificate.pem").read_bytes()
    with running(write_settings(tmp_path)):
        [of] = middle.publish(plan_of("moments"))
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
    assert (identity / "certificate.pem").read_bytes() != old
    assert len(set(middle.serials)) == 2


def shown(settings, words):
    page = ask(settings.state_dir).page
    wait_until(lambda: words in httpx.get(page).text, words)


def test_a_certificate_that_cannot_be_renewed_is_a_problem_until_it_is(tmp_path, middle):
    write_image(tmp_path / "images" / "x.ome.tif", 1)
    begin = datetime.now(UTC) - timedelta(days=80)
    middle.enrol(tmp_path / "state" / "identity", begin=begin, lasts=timedelta(days=100))
    middle.stop()
    settings = write_settings(tmp_path)
    with running(settings):
        shown(settings, "could not be renewed")
        middle.start()
        shown(settings, "Connected")
        page = ask(settings.state_dir).page
        wait_until(lambda: "could not be renewed" not in httpx.get(page).text, "the problem gone")


def test_a_machine_of_another_federation_in_the_aggregators_place_is_not_trusted(site, middle):
    stranger = Middle()
    with running(site):
        wait_until(lambda: middle.watching > 0, "connected")
        middle.stop()
        stranger.port = middle.port
        stranger.start()
        shown(site, "does not show a certificate of this federation")
        stranger.stop()
        middle.start()
        shown(site, "Connected")
    assert stranger.serials == []


@pytest.mark.parametrize("of", ["another federation", "the past"])
def test_a_wrong_certificate_is_one_clear_sentence_and_nothing_is_sent(of, tmp_path, middle):
    identity = tmp_path / "state" / "identity"
    if of == "the past":
        middle.enrol(identity, begin=datetime.now(UTC) - timedelta(days=9), lasts=timedelta(days=8))
    else:
        stranger = Middle()
        stranger.port = middle.port
        stranger.enrol(identity)
        (identity / "ca.pem").write_bytes(middle.authority.pem)
    with running(write_settings(tmp_path)) as log:
        shown(write_settings(tmp_path), "is over or of another federation")
    assert middle.serials == []
    assert "not connected" in log.getvalue()


def test_one_service_at_a_time_holds_a_state_folder(tmp_path):
    with alone(tmp_path), pytest.raises(ConfigError, match="another edge node runs"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_a_site_that_is_not_enrolled_is_told_how_to(tmp_path):
    with pytest.raises(NotEnrolled, match="cairn edge enrol"):
        Node(write_settings(tmp_path), threading.Event(), make_log(io.StringIO()))


def test_an_audit_log_that_was_changed_is_shown_and_work_goes_on(site, middle):
    with running(site):
        [of] = middle.publish(plan_of("moments"))
        wait_until(lambda: ("acknowledged", "moments") in events(site), "a log of some lines")
    path = site.state_dir / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"window":0', b'"window":7', 1))
    with running(site):
        [of] = middle.publish(plan_of("ranges"))
        wait_until(lambda: of in middle.tallies.ledger, "the tally")
        assert any("audit log was changed" in text for text in ask(site.state_dir).problems)
