"""The site's policy: rules, people's decisions, and the one door."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from cairn.errors import ConfigError
from cairn.plan import Plan, Secrecy, UpdatePlan
from edge_node.approval import Offers, not_allowed
from edge_node.audit import AuditLog, Departure, first_broken, read
from edge_node.decisions import FILE, Decision, decide, read_decisions
from edge_node.door import Door
from edge_node.outbox import Outbox
from edge_node.policy import IN_WORDS, against_updates, open_at, opens, rules
from edge_node.sending import Sending
from edge_node.settings import Policy, load_settings, read_span
from edge_node.status import Board, make_log
from edge_node.uplink import Pace, Uplink

from .conftest import REPLAY_STAGES, STAGES, make_plan, make_tally, wait_until, write_settings

NOON = datetime(2026, 1, 7, 12, 0, tzinfo=UTC)  # a Wednesday
SAID = NOON.isoformat()


def settings_of(folder, policy="", studies='["tumour*"]'):
    (folder / "site.toml").write_text(
        f'state_dir = "state"\n[images]\nfolder = "images"\n[approval]\nstudies = {studies}\n[policy]\n{policy}\n'
    )
    (folder / "state").mkdir(exist_ok=True)
    return load_settings(folder / "site.toml")


def departure(size, of="", digest="ab", event="tally"):
    return Departure(event, "tally of moments", "tumour", "moments", 0, size, digest * 32, of or "cd" * 32)


@pytest.fixture
def said(tmp_path):
    """Decide as a person does, in the state folder of `settings_of`."""
    log = AuditLog(tmp_path / "state" / "audit.jsonl", lambda: NOON)

    def say(of, verdict, by="ada", reason=""):
        decision = Decision(verdict, by, SAID, reason) if verdict else None
        decide(tmp_path / "state", of.hex(), decision, log)

    yield say
    log.close()


def test_a_person_approves_a_plan_that_no_pattern_names_and_refuses_one_that_a_pattern_does(tmp_path, said):
    settings = settings_of(tmp_path)
    (named, of_named), (other, of_other) = make_plan("tumour"), make_plan("lung")
    assert not_allowed(named, of_named, settings) is None
    assert "has not approved study lung" in (not_allowed(other, of_other, settings) or "")
    said(of_other, "approve")
    said(of_named, "refuse", by="ben", reason="the ethics board has not met")
    assert not_allowed(other, of_other, settings) is None
    assert not_allowed(named, of_named, settings) == "refused at this site by ben: the ethics board has not met"
    said(of_named, None)
    assert not_allowed(named, of_named, settings) is None
    lines = [(line.event, line.what, line.plan) for line in read(tmp_path / "state" / "audit.jsonl")]
    assert lines == [
        ("decision", "approved by ada", of_other.hex()),
        ("decision", "refused by ben: the ethics board has not met", of_named.hex()),
        ("decision", "what was decided is taken back", of_named.hex()),
    ]
    assert first_broken(tmp_path / "state" / "audit.jsonl") is None


def test_where_approvers_are_named_every_plan_waits_for_one_of_them(tmp_path, said):
    settings = settings_of(tmp_path, 'approvers = ["ada", "ben"]')
    plan, of = make_plan("tumour")
    assert not_allowed(plan, of, settings) == "the plan waits for the approval of ada or ben at this site"
    said(of, "approve", by="carl")
    assert not_allowed(plan, of, settings) is not None
    said(of, "approve", by="ben")
    assert not_allowed(plan, of, settings) is None


def test_a_stream_that_is_not_let_out_is_refused_whoever_approves(tmp_path, said):
    settings = settings_of(tmp_path, 'streams = ["replay"]')
    plan, of = make_plan("tumour")
    said(of, "approve")
    assert "lets out replay, and the plan is of pixels" in (not_allowed(plan, of, settings) or "")


def test_every_rule_says_yes_or_no_by_its_name(tmp_path):
    settings = settings_of(tmp_path)
    replay = Plan("sella-1", 0, REPLAY_STAGES["replay"])
    found = {rule.name: rule.against for rule in rules(replay, bytes(32), settings, {})}
    assert found["training"] == "this site does not train"
    assert found["policy.streams"] is None
    assert {"names", "decisions", "policy.approvers", "approval"} <= set(found)


@pytest.mark.parametrize(
    ("stream", "stage"),
    [
        ("pixels", STAGES["counts"]),
        ("replay", REPLAY_STAGES["replay"]),
        ("updates", UpdatePlan(1000, 20, 64.0, 2**20)),
    ],
)
def test_a_stream_that_leaves_masked_alone_is_refused_in_plain_and_the_others_are_not(tmp_path, stream, stage):
    (tmp_path / "images").mkdir()
    settings = write_settings(tmp_path, f'[masking]\nrequired = ["{stream}"]\n')
    others = write_settings(tmp_path, f"[masking]\nrequired = {[s for s in IN_WORDS if s != stream]}\n")

    def masking(plan, of_site):
        return {rule.name: rule.against for rule in rules(plan, bytes(32), of_site, {})}["masking"]

    plain, masked = Plan("tumour", 0, stage), Plan("tumour", 0, stage, Secrecy(64, 400, 100))
    assert "in masked sums alone (masking.required), and these would go in plain" in (masking(plain, settings) or "")
    assert masking(masked, settings) is None
    assert masking(plain, others) is None


def test_a_damaged_file_of_decisions_lets_nothing_through(tmp_path, said):
    settings = settings_of(tmp_path)
    plan, of = make_plan("tumour")
    (settings.state_dir / FILE).write_text("{")
    assert "damaged" in (not_allowed(plan, of, settings) or "")
    with pytest.raises(ConfigError):
        said(of, "approve")


def test_decisions_are_their_owners_alone_and_come_back_as_they_were_made(tmp_path, said):
    settings = settings_of(tmp_path)
    _, of = make_plan("tumour")
    said(of, "refuse", reason="no")
    assert read_decisions(settings.state_dir) == {of.hex(): Decision("refuse", "ada", SAID, "no")}
    assert (settings.state_dir / FILE).stat().st_mode & 0o077 == 0
    assert json.loads((settings.state_dir / FILE).read_text())[of.hex()]["by"] == "ada"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("20:00-06:00", ["23:59", "05:59", "20:00"], ["06:00", "12:00", "19:59"]),
        ("08:00-24:00", ["08:00", "23:59"], ["00:00", "07:59"]),
        ("wed-thu 08:00-10:00", ["08:00"], ["10:00"]),
        ("thu-tue 08:00-10:00", [], ["08:00"]),
        ("tue 22:00-06:00", ["05:00"], ["06:00", "23:00"]),  # Tuesday's night ends on Wednesday
    ],
)
def test_hours_are_those_of_the_sites_own_clock(text, inside, outside):
    spans = (read_span(text),)
    for said, expected in [(time, True) for time in inside] + [(time, False) for time in outside]:
        hour, minute = map(int, said.split(":"))
        assert open_at(spans, NOON.replace(hour=hour, minute=minute)) is expected, said


@trials(max_examples=30, deadline=None)
@given(st.datetimes(datetime(2026, 1, 1), datetime(2026, 2, 1)))
def test_hours_open_again_at_the_first_minute_inside(local):
    spans = (read_span("mon-fri 20:00-06:00"),)
    when = opens(spans, local)
    assert open_at(spans, when)
    assert when >= local
    if when > local:
        assert not open_at(spans, when - timedelta(minutes=1))


@pytest.mark.parametrize("text", ["20-06", "25:00-26:00", "20:60-21:00", "xyz 08:00-09:00", "08:00-08:00", "8:00-9:00"])
def test_what_are_no_hours_is_one_sentence(tmp_path, text):
    with pytest.raises(ConfigError, match=r"are no hours; write 20:00-06:00"):
        settings_of(tmp_path, f'hours = ["{text}"]')


class Clock:
    """A time that passes when the test says so."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def doors(tmp_path):
    """Make doors that share an audit log, and a clock."""
    clock = Clock(NOON)
    log = AuditLog(tmp_path / "audit.jsonl", clock)
    yield lambda **policy: Door(Policy(**policy), log, tmp_path, clock), clock
    log.close()


def test_no_more_bytes_leave_in_a_day_than_are_allowed_and_the_rest_leaves_the_next_day(doors):
    door, clock = doors
    some = door(bytes_per_day=100)
    assert some.leave(departure(60, digest="01")) is None
    assert some.leave(departure(30, digest="02", event="update")) is None
    kept = some.leave(departure(20, digest="03"))
    assert kept is not None
    assert "waits for tomorrow" in kept.sentence
    assert not kept.final
    assert some.leave(departure(60, digest="01")) is None  # the same tally again, after a restart or a lost line
    assert door(bytes_per_day=100).leave(departure(20, digest="03")) is not None  # a restart forgets nothing
    clock.now += timedelta(days=1)
    assert some.leave(departure(20, digest="03")) is None


def test_what_is_larger_than_a_days_bytes_never_leaves_and_no_line_says_it_did(doors, tmp_path):
    door, _ = doors
    kept = door(bytes_per_day=100).leave(departure(101))
    assert kept is not None
    assert kept.final
    assert list(read(tmp_path / "audit.jsonl")) == []


def test_outside_of_the_hours_nothing_leaves_and_inside_all_does(doors):
    door, clock = doors
    clock.now = NOON.astimezone().replace(hour=12)
    night = door(hours=("20:00-06:00",))
    kept = night.leave(departure(1))
    assert kept is not None
    assert "they begin at Wed 20:00" in kept.sentence
    clock.now = clock.now.replace(hour=21)
    assert night.leave(departure(1)) is None


def test_what_a_person_refused_does_not_leave_though_it_was_counted_before(doors, tmp_path):
    door, _ = doors
    log = AuditLog(tmp_path / "decisions-audit.jsonl", lambda: NOON)
    decide(tmp_path, "cd" * 32, Decision("refuse", "ada", SAID), log)
    log.close()
    assert door().leave(departure(1)) is not None
    assert door().leave(departure(1, of="ef" * 32)) is None


def test_where_updates_leave_masked_alone_the_door_keeps_every_plain_one_and_lets_masked_sums_out(tmp_path):
    (tmp_path / "images").mkdir()
    log = AuditLog(tmp_path / "audit.jsonl", lambda: NOON)
    settings = write_settings(tmp_path, '[masking]\nrequired = ["updates"]\n')
    door = Door(settings.policy, log, tmp_path, lambda: NOON, against_updates(settings, masked=False))
    kept = door.leave(departure(1, event="update"))
    assert kept is not None
    assert kept.final
    assert "model updates out in masked sums alone" in kept.sentence
    assert list(read(tmp_path / "audit.jsonl")) == []
    assert door.leave(departure(1, event="masking")) is None
    log.close()


def test_a_tally_waits_for_the_hours_is_not_lost_and_leaves_when_they_begin(faulty, channel, tmp_path):
    clock = Clock(NOON.astimezone().replace(hour=12))
    log, outbox, board = AuditLog(tmp_path / "audit.jsonl", clock), Outbox(tmp_path / "outbox"), Board()
    door = Door(Policy(hours=("20:00-06:00",)), log, tmp_path, clock)
    plan, of = make_plan()
    sealed = outbox.seal(plan, make_tally(plan, of))
    content = sealed.path.read_bytes()
    silent = make_log(io.StringIO())
    halt = threading.Event()
    uplink = Uplink(
        channel=lambda: channel, outbox=outbox, audit_log=log, stop=halt, sent=lambda _: None,
        trouble=lambda _: None, log=silent, pace=Pace(), door=door,
    )  # fmt: skip
    offers = Offers(lambda *_: None, lambda *_: None, log, silent)
    offers.take([])
    sending = Sending(
        uplink, offers=offers, outbox=outbox, board=board, gone=lambda: None, changed=lambda: None, log=silent
    )
    life = threading.Thread(target=sending.run, args=(halt, 0.05))
    life.start()
    wait_until(lambda: any("waits for the hours" in one.kind for one in board.snapshot().problems), "the door shuts")
    assert (faulty.ledger, outbox.listed("pending")) == ({}, [sealed])
    clock.now = clock.now.replace(hour=20)
    wait_until(lambda: of in faulty.ledger, "the tally")
    wait_until(lambda: not board.snapshot().problems, "no problem any more")
    halt.set()
    sending.hurry()
    life.join(20)
    log.close()
    assert faulty.ledger[of] == content


def test_two_writers_of_one_audit_log_make_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    service, command = AuditLog(path, lambda: NOON), AuditLog(path, lambda: NOON)
    for number in range(6):
        (command if number % 2 else service).append(departure(number))
    service.close()
    command.close()
    assert [line.size for line in read(path)] == list(range(6))
    assert first_broken(path) is None
