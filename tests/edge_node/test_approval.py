"""What a site takes part in."""

import io
import threading

import pytest

from cairn import codec
from cairn.errors import PlanNotApproved, Unreachable
from cairn.plan import Plan, fingerprint
from edge_node.approval import Offers, approve
from edge_node.audit import read
from edge_node.status import make_log

from .conftest import make_plan


def test_a_study_whose_name_fits_a_pattern_is_approved():
    plan, of = make_plan("tumour-2026")
    approve(plan, of, ["tumour-*"], [])


def test_a_listed_fingerprint_is_approved_and_no_other_plan_of_the_study():
    plan, of = make_plan()
    approve(plan, of, [], [of.hex()])
    other, of_other = make_plan(window=1)
    with pytest.raises(PlanNotApproved):
        approve(other, of_other, [], [of.hex()])


def test_nothing_is_approved_by_empty_lists():
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match=r"has not approved study tumour, stage moments"):
        approve(plan, of, [], [])


@pytest.mark.parametrize("name", ["../etc", "Tumour", ""])
def test_a_name_that_could_be_a_path_is_refused_even_by_a_pattern_for_all(name):
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match="name"):
        approve(Plan(name, 0, plan.stage), of, ["*"], [of.hex()])


@pytest.fixture
def offers(audit_log):
    """Give a list of plans on offer, what was judged and answered, and a gate that judging waits at."""
    gate = threading.Event()
    gate.set()
    answers: list[tuple[bytes, str | None]] = []
    refused: set[str] = set()

    def judge(plan, of):
        gate.wait(20)
        return "no" if plan.study in refused else None

    listed = Offers(judge, lambda of, reason: answers.append((of, reason)), audit_log, make_log(io.StringIO()))
    return listed, answers, refused, gate


def published(study):
    return codec.encode_plan(make_plan(study)[0])


def test_a_plan_stays_open_while_a_new_list_with_it_is_being_judged(offers):
    listed, _, _, gate = offers
    old, new = published("old"), published("new")
    listed.take([old])
    gate.clear()
    taking = threading.Thread(target=listed.take, args=([old, new],))
    taking.start()
    assert listed.open(fingerprint(old))
    assert not listed.open(fingerprint(new))
    gate.set()
    taking.join(20)
    assert listed.open(fingerprint(new))
    listed.take([new])
    assert not listed.open(fingerprint(old))


def test_a_plan_is_answered_once_and_again_only_when_the_answer_changes(offers):
    listed, answers, refused, _ = offers
    refused.add("a")
    listed.take([published("a")])
    listed.take([published("a")])
    listed.reconsider()
    refused.clear()
    listed.reconsider()
    listed.reconsider()
    assert [reason for _, reason in answers] == ["no", None]


def test_an_acceptance_taken_back_after_the_work_is_not_given_again(offers):
    listed, answers, _, _ = offers
    listed.take([published("a")])
    listed.refuse(fingerprint(published("a")), "no image could be counted")
    listed.reconsider()
    assert [reason for _, reason in answers] == [None, "no image could be counted"]


def test_an_answer_that_was_not_heard_is_given_again(audit_log):
    heard: list[bytes] = []
    away = [Unreachable("away")]

    def answer(of, reason):
        if away:
            raise away.pop()
        heard.append(of)

    listed = Offers(lambda plan, of: None, answer, audit_log, make_log(io.StringIO()))
    listed.take([published("a")])
    assert heard == []
    listed.reconsider()
    assert heard == [fingerprint(published("a"))]
    assert len(list(read(audit_log.path))) == 1
