import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common.constant import ErrorCode

from agent_trainer.rounds.server_app import Attempt, Outcome, check_quorum
from agent_trainer.rounds.wire import ROUND, WEIGHTS, Order, arrays, order_record, read_update
from cairn.errors import TooFewSites, TrainingError
from tests.agent_trainer.rounds.post import MovingClock, Post, Site, adds, fails, in_turn, silent

NAMES = {1: "north", 2: "south", 3: "west"}


def judge(site, reply):
    try:
        update, metrics = read_update(reply, 3)
    except TrainingError as error:
        return Outcome(site, "refused", f"{type(error).__name__}: {error}")
    return Outcome(site, "trained", metrics=metrics, update=update, message=reply)


def play(sites, *, wanted=2, deadline=100.0, clock=None, stopped=lambda: False):
    clock = clock or MovingClock()
    post = Post(sites, clock)
    order = Order("run", 1, "dqn", "{}", 0, (("w", (3,)),), evaluate=False, deadline_s=deadline)
    content = RecordDict({WEIGHTS: arrays(np.zeros(3, np.float32)), ROUND: order_record(order)})
    names = {node: NAMES[node] for node in sites}
    attempt = Attempt(post, content, "train.dqn", 1, names, wanted, deadline, judge, clock)
    outcomes = {outcome.site: outcome for outcome in attempt.play(stopped)}
    return outcomes, clock.now


def states(outcomes):
    return {site: outcome.state for site, outcome in outcomes.items()}


def test_a_round_ends_as_soon_as_all_sites_have_answered():
    outcomes, took = play({1: Site(adds(1), after_s=3), 2: Site(adds(2), after_s=5)})
    assert states(outcomes) == {"north": "trained", "south": "trained"}
    assert 5 <= took < 5.5
    assert outcomes["south"].update.tolist() == [2, 2, 2]


def test_a_late_site_costs_its_update_and_no_more_than_the_deadline():
    outcomes, took = play({1: Site(adds(1)), 2: Site(adds(1)), 3: Site(silent)})
    assert states(outcomes) == {"north": "trained", "south": "trained", "west": "late"}
    assert 100 <= took < 101
    assert "deadline of 100 s" in outcomes["west"].reason


def test_a_site_that_is_not_connected_is_absent_and_not_waited_for():
    outcomes, took = play({1: Site(adds(1)), 2: Site(adds(1)), 3: Site(adds(1), online=False)})
    assert states(outcomes)["west"] == "absent"
    assert took < 1


def test_a_site_that_goes_away_in_mid_round_is_not_waited_for_when_the_others_suffice():
    clock = MovingClock()
    gone = Site(silent)
    clock.at(10, lambda: setattr(gone, "online", False))
    outcomes, took = play({1: Site(adds(1)), 2: Site(adds(1)), 3: gone}, clock=clock)
    assert states(outcomes)["west"] == "failed"
    assert "went away" in outcomes["west"].reason
    assert took < 12


def test_below_quorum_a_round_waits_for_more_sites_until_the_deadline():
    clock = MovingClock()
    second = Site(adds(1), online=False)
    clock.at(60, lambda: setattr(second, "online", True))
    outcomes, took = play({1: Site(adds(1)), 2: second}, clock=clock)
    assert states(outcomes) == {"north": "trained", "south": "trained"}
    assert 60 <= took < 62


def test_in_place_of_a_site_that_went_away_one_that_came_later_is_asked():
    clock = MovingClock()
    gone, later = Site(silent), Site(adds(1), online=False)
    clock.at(5, lambda: setattr(later, "online", True))
    clock.at(10, lambda: setattr(gone, "online", False))
    outcomes, took = play({1: Site(adds(1)), 2: gone, 3: later}, clock=clock)
    assert states(outcomes) == {"north": "trained", "south": "failed", "west": "trained"}
    assert 10 <= took < 13


def test_below_quorum_at_the_deadline_the_sentence_names_who_was_missing():
    outcomes, took = play({1: Site(adds(1)), 2: Site(silent), 3: Site(adds(1), online=False)})
    assert took >= 100
    with pytest.raises(TooFewSites, match=r"^1 sites trained where 2 are needed \(south late, west absent\)$"):
        check_quorum(list(outcomes.values()), 2)


def test_an_update_that_is_not_finite_is_refused_and_named():
    outcomes, _ = play({1: Site(adds(1)), 2: Site(adds(float("nan"))), 3: Site(adds(float("inf")))}, wanted=1)
    assert states(outcomes) == {"north": "trained", "south": "refused", "west": "refused"}
    assert outcomes["south"].reason == "Diverged: 3 of 3 weights are not finite numbers"


def test_an_update_of_no_examples_is_refused():
    outcomes, _ = play({1: Site(adds(1)), 2: Site(adds(1, examples=0))}, wanted=1)
    assert "no examples" in outcomes["south"].reason


def test_a_site_whose_app_failed_is_named_with_its_reason_and_not_asked_again():
    failing = Site(fails(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "Diverged: the loss is not finite"))
    outcomes, took = play({1: Site(adds(1)), 2: failing}, wanted=1)
    assert (outcomes["south"].state, outcomes["south"].reason) == ("failed", "Diverged: the loss is not finite")
    assert len(failing.seen) == 1
    assert took < 1


def test_a_message_whose_executor_crashed_is_sent_once_more():
    crashed = fails(ErrorCode.CLIENT_APP_CRASHED, "stopped responding")
    site = Site(in_turn(crashed, adds(1)))
    outcomes, took = play({1: Site(adds(1)), 2: site})
    assert states(outcomes)["south"] == "trained"
    assert took < 3
    twice = Site(crashed)
    outcomes, _ = play({1: Site(adds(1)), 2: twice}, wanted=1)
    assert outcomes["south"].state == "failed"
    assert len(twice.seen) == 2


def test_a_site_that_was_restarted_gets_its_message_again():
    clock = MovingClock()
    site = Site(in_turn(silent, adds(1)))
    clock.at(20, lambda: setattr(site, "since", "2026-01-02"))
    outcomes, took = play({1: Site(adds(1)), 2: site}, clock=clock)
    assert states(outcomes)["south"] == "trained"
    assert 20 <= took < 22


def test_a_reply_that_was_lost_without_a_word_is_asked_for_once_more_at_half_time():
    site = Site(in_turn(silent, adds(1)))
    outcomes, took = play({1: Site(adds(1)), 2: site})
    assert states(outcomes)["south"] == "trained"
    assert 50 <= took < 52
    assert [message.metadata.ttl > 0 for message in site.seen] == [True, True]
    assert site.seen[1].metadata.ttl < site.seen[0].metadata.ttl


def test_a_request_to_stop_ends_the_wait_for_absent_sites_but_not_the_work_of_those_there():
    outcomes, took = play({1: Site(adds(1), after_s=30), 2: Site(adds(1), online=False)}, stopped=lambda: True)
    assert states(outcomes) == {"north": "trained", "south": "absent"}
    assert 30 <= took < 32


def test_without_any_registered_site_an_attempt_ends_at_its_deadline():
    outcomes, took = play({})
    assert outcomes == {}
    assert took >= 100
    with pytest.raises(TooFewSites, match="no site is registered"):
        check_quorum([], 1)
