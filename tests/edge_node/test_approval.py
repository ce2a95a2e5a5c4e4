"""What a site takes part in."""

import io
import threading

import pytest

from cairn import codec
from cairn.errors import PlanNotApproved, Unreachable
from cairn.plan import Plan, fingerprint
from edge_node.approval import Offers, approve, reason_against
from edge_node.audit import read
from edge_node.settings import Approval, Images, SiteSettings, Training
from edge_node.status import make_log

from .conftest import REPLAY_STAGES, make_plan


def allowing(studies=(), fingerprints=(), runs=None):
    approval = Approval(studies=studies, fingerprints=fingerprints)
    training = None if runs is None else Training(runs=runs, scenes=[{"kind": "generated"}])
    return SiteSettings(state_dir="s", images=Images(folder="i"), approval=approval, training=training)


def test_a_study_whose_name_fits_a_pattern_is_approved():
    plan, of = make_plan("tumour-2026")
    approve(plan, of, allowing(["tumour-*"]))


def test_a_listed_fingerprint_is_approved_and_no_other_plan_of_the_study():
    plan, of = make_plan()
    approve(plan, of, allowing([], [of.hex()]))
    other, of_other = make_plan(window=1)
    with pytest.raises(PlanNotApproved):
        approve(other, of_other, allowing([], [of.hex()]))


def test_nothing_is_approved_by_empty_lists():
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match=r"has not approved study tumour, stage moments"):
        approve(plan, of, allowing())


@pytest.mark.parametrize("name", ["../etc", "Tumour", ""])
def test_a_name_that_could_be_a_path_is_refused_even_by_a_pattern_for_all(name):
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match="name"):
        approve(Plan(name, 0, plan.stage), of, allowing(["*"], [of.hex()]))


@pytest.mark.parametrize("stage", list(REPLAY_STAGES.values()), ids=list(REPLAY_STAGES))
def test_a_replay_plan_is_approved_by_the_runs_that_the_site_trains_in_and_not_by_its_studies(stage):
    plan = Plan("sella-1", 3, stage)
    of = fingerprint(codec.encode_plan(plan))
    approve(plan, of, allowing(runs=["sella-*"]))
    approve(plan, of, allowing(runs=[], fingerprints=[of.hex()]))
    with pytest.raises(PlanNotApproved, match="has not approved run sella-1"):
        approve(plan, of, allowing(["*"], runs=["lung-*"]))


def test_a_site_without_training_refuses_replay_plans_whatever_else_it_allows():
    plan = Plan("sella-1", 3, REPLAY_STAGES["replay"])
    of = fingerprint(codec.encode_plan(plan))
    assert reason_against(plan, of, allowing(["*"], [of.hex()])) == "this site does not train"


def test_a_replay_plan_asks_for_no_image(tmp_path):
    plan = Plan("sella-1", 3, REPLAY_STAGES["replay"])
    assert reason_against(plan, bytes(32), allowing(runs=["*"])) is None


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
