"""The way out, over a network that fails."""

import hashlib
import io
import random
import threading
from datetime import timedelta

import grpc
import pytest

from cairn.errors import PlanMismatch, Revoked, UnknownPlan
from edge_node import audit
from edge_node.outbox import Outbox
from edge_node.status import make_log
from edge_node.uplink import MESSAGE, Pace, Uplink, backoff

from .conftest import Fault, make_plan, make_tally, wait_until

FAST = Pace(timedelta(milliseconds=1), timedelta(milliseconds=20), timedelta(seconds=5), timedelta(milliseconds=400))


class Sending:
    """An uplink and what it said."""

    def __init__(self, channel, outbox, audit_log):
        self.troubles: list[str] = []
        self.outbox = outbox
        self.bytes = 0
        self.stop = threading.Event()
        self.uplink = Uplink(
            channel=lambda: channel,
            outbox=outbox,
            audit_log=audit_log,
            stop=self.stop,
            sent=self.count,
            trouble=self.troubles.append,
            log=make_log(io.StringIO()),
            pace=FAST,
        )

    def count(self, size: int) -> None:
        self.bytes += size


@pytest.fixture
def sending(channel, outbox, audit_log):
    return Sending(channel, outbox, audit_log)


@pytest.fixture
def large(outbox, monkeypatch):
    """Make a tally of five messages by making messages smaller, so that the tests stay quick."""
    monkeypatch.setattr("edge_node.uplink.MESSAGE", 50_000)
    plan, of = make_plan(bands=120)
    return outbox.seal(plan, make_tally(plan, of))


def check_sent_once(faulty, outbox, sealed, content):
    assert faulty.ledger == {sealed.fingerprint: content}
    assert faulty.merges == 1
    found = outbox.find(sealed.fingerprint)
    assert found is not None
    assert found[0] == "sent"
    assert found[1].path.read_bytes() == content


def test_a_tally_goes_out_whole_in_messages_of_at_most_one_mebibyte(faulty, sending, outbox):
    plan, of = make_plan(bands=128)
    tally = make_tally(plan, of)
    sealed = outbox.seal(plan, tally)
    with sealed.path.open("ab") as file:  # bytes behind the tables: the uplink sends files, whatever is in them
        file.write(random.Random(1).randbytes(3 * MESSAGE))
    content = sealed.path.read_bytes()
    assert sending.uplink.deliver(sealed) == "sent"
    check_sent_once(faulty, outbox, sealed, content)
    assert max(faulty.message_sizes) == MESSAGE
    assert sending.bytes == len(content)


@pytest.mark.parametrize("after", [0, 1, 120_000, 200_000])
@pytest.mark.parametrize("kind", ["cut", "flip", "stall", "restart", "lost-answer", "full"])
def test_whatever_fails_on_the_way_the_tally_arrives_once(kind, after, faulty, sending, large):
    content, outbox = large.path.read_bytes(), sending.outbox
    faulty.faults = [Fault(kind, after)]
    assert sending.uplink.deliver(large) == "sent"
    check_sent_once(faulty, outbox, large, content)


def test_a_broken_upload_goes_on_where_it_ended(faulty, sending, large):
    content = large.path.read_bytes()
    faulty.faults = [Fault("cut", 100_000)]
    assert sending.uplink.deliver(large) == "sent"
    assert sum(faulty.message_sizes) == len(content)


def test_two_hundred_random_faults_lose_and_double_nothing(faulty, sending, outbox, monkeypatch):
    monkeypatch.setattr("edge_node.uplink.MESSAGE", 5_000)
    rng = random.Random(7)
    expected = {}
    faults = 0
    for window in range(50):
        plan, of = make_plan(window=window, bands=40)
        sealed = outbox.seal(plan, make_tally(plan, of, seed=window))
        expected[of] = sealed.path.read_bytes()
        kinds = ["cut", "flip", "lost-answer", "full", "cut", "restart"]
        faulty.faults = [Fault(rng.choice(kinds), rng.randrange(len(expected[of]))) for _ in range(4)]
        faults += len(faulty.faults)
        assert sending.uplink.deliver(sealed) == "sent"
    assert faults == 200
    assert faulty.ledger == expected
    assert faulty.merges == 50


def test_killed_between_the_ledger_and_the_answer_a_tally_is_sent_once_and_audited_once(
    faulty, channel, sending, audit_log, large
):
    content = large.path.read_bytes()
    faulty.faults = [Fault("lost-answer")]
    sending.uplink._trouble = lambda sentence: sending.stop.set()  # as after a kill: nothing is done any more
    assert sending.uplink.deliver(large) == "stopped"
    assert faulty.merges == 1
    reopened = Outbox(large.path.parents[1])
    [pending] = reopened.listed("pending")
    assert Sending(channel, reopened, audit_log).uplink.deliver(pending) == "sent"
    check_sent_once(faulty, reopened, large, content)
    assert [line.event for line in audit.read(audit_log.path)] == ["tally", "acknowledged"]


def test_every_byte_is_in_the_audit_log_before_it_leaves(faulty, sending, audit_log, large):
    seen = []
    sending.uplink._sent = lambda size: seen.append([line.event for line in audit.read(audit_log.path)])
    sending.uplink.deliver(large)
    assert seen
    assert all(events == ["tally"] for events in seen)
    lines = list(audit.read(audit_log.path))
    assert {line.digest for line in lines} == {hashlib.sha256(faulty.ledger[large.fingerprint]).hexdigest()}
    assert {line.size for line in lines} == {len(faulty.ledger[large.fingerprint])}


def test_a_closed_window_parks_the_tally_and_sends_nothing(faulty, sending, outbox, large):
    faulty.closed.add(large.fingerprint)
    assert sending.uplink.deliver(large) == "parked"
    assert faulty.calls == 0
    assert outbox.listed("pending") == []
    assert len(outbox.listed("parked")) == 1
    assert "closed" in sending.troubles[-1]


def test_a_tally_that_an_earlier_call_finished_and_so_closed_the_stage_is_sent(faulty, sending, outbox, large):
    content = faulty.overtaking = large.path.read_bytes()
    faulty.faults = [Fault("overtaken")]
    assert sending.uplink.deliver(large) == "sent"
    assert sending.troubles == []
    check_sent_once(faulty, outbox, large, content)


@pytest.mark.parametrize("error", [UnknownPlan("no such plan"), PlanMismatch("other tables")])
def test_a_tally_that_can_never_be_taken_is_parked_and_a_person_is_told(error, faulty, sending, outbox, large):
    faulty.refusal = error
    assert sending.uplink.deliver(large) == "parked"
    assert str(error) in sending.troubles[-1]


def test_a_revoked_site_stops_sending_and_keeps_its_tally(faulty, sending, outbox, large):
    faulty.refusal = Revoked("revoked by the operator")
    with pytest.raises(Revoked):
        sending.uplink.deliver(large)
    assert len(outbox.listed("pending")) == 1


def test_a_tally_damaged_on_the_sites_own_disk_is_discarded_to_be_counted_again(faulty, sending, outbox, large):
    content = bytearray(large.path.read_bytes())
    faulty.faults = [Fault("flip", 10)]
    content[-10] ^= 1
    large.path.write_bytes(content)
    assert sending.uplink.deliver(large) == "damaged"
    assert outbox.find(large.fingerprint) is None
    assert "counted again" in sending.troubles[-1]


def test_a_server_that_is_away_is_waited_for(faulty, sending, outbox, large):
    content = large.path.read_bytes()
    faulty.stop()
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(sending.uplink.deliver(large)))
    thread.start()
    wait_until(lambda: len(sending.troubles) >= 3, "three failed attempts")
    faulty.start()
    thread.join(30)
    assert outcome == ["sent"]
    check_sent_once(faulty, outbox, large, content)


def test_stopping_ends_the_waiting_at_once_and_keeps_the_tally(faulty, channel, outbox, audit_log, large):
    faulty.stop()
    slow = Sending(channel, outbox, audit_log)
    slow.uplink._pace = Pace(timedelta(hours=1), timedelta(hours=1), timedelta(seconds=5), timedelta(seconds=5))
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(slow.uplink.deliver(large)))
    thread.start()
    wait_until(lambda: bool(slow.troubles), "one failed attempt")
    slow.stop.set()
    slow.uplink.hurry()
    thread.join(10)
    assert outcome == ["stopped"]
    assert len(outbox.listed("pending")) == 1
    faulty.start()


def test_back_off_doubles_is_bounded_and_never_the_same_for_all():
    pace = Pace(first=timedelta(seconds=1), longest=timedelta(seconds=30))
    rng = random.Random(3)
    for failures, ceiling in [(1, 1), (2, 2), (3, 4), (6, 30), (1000, 30)]:
        waits = {backoff(failures, pace, rng) for _ in range(50)}
        assert all(ceiling / 2 <= seconds <= ceiling for seconds in waits)
        assert len(waits) > 40


def test_a_channel_is_asked_for_anew_at_every_attempt(faulty, outbox, audit_log, large):
    """So that a renewed certificate is used without a restart."""
    opened = []

    def make():
        opened.append(grpc.insecure_channel(f"127.0.0.1:{faulty.port}"))
        return opened[-1]

    sending = Sending(None, outbox, audit_log)
    sending.uplink._channel = make
    faulty.faults = [Fault("cut")]
    assert sending.uplink.deliver(large) == "sent"
    assert len(opened) >= 3
    for channel in opened:
        channel.close()
