"""The rounds that stand on the page."""

import pytest

from edge_node.page.curves import curves
from edge_node.status import Board, RoundNote
from edge_node.training.messages import RoundTold
from edge_node.training.rounds import Rounds


def told(number, phase="ends", run="sella-1", **metrics):
    return RoundTold(event="round", run=run, round=number, phase=phase, metrics=metrics)


@pytest.fixture
def board():
    return Board()


def shown(board):
    return [(note.round, dict(note.metrics)) for note in board.snapshot().training.rounds]


def test_rounds_are_listed_as_they_end_and_read_again_after_a_restart(tmp_path, board):
    rounds = Rounds(tmp_path / "rounds.jsonl", board)
    for number in (1, 2):
        rounds.told(told(number, "begins"))
        assert board.snapshot().training.now.busy
        rounds.told(told(number, loss=1 / number))
    assert shown(board) == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    again = Board()
    Rounds(tmp_path / "rounds.jsonl", again)
    assert shown(again) == shown(board)
    assert not again.snapshot().training.now.busy


def test_the_validation_of_a_round_that_comes_later_is_added_to_it_while_the_next_goes_on(tmp_path, board):
    rounds = Rounds(tmp_path / "rounds.jsonl", board)
    rounds.told(told(1, loss=1.0))
    rounds.told(told(2, "begins"))
    rounds.told(told(1, **{"validation/sella/mean_mm": 3.0}))
    assert shown(board) == [(1, {"loss": 1.0, "validation/sella/mean_mm": 3.0})]
    assert (board.snapshot().training.now.round, board.snapshot().training.now.busy) == (2, True)


def test_a_run_that_goes_on_from_an_earlier_checkpoint_and_another_run_replace_what_was_there(tmp_path, board):
    rounds = Rounds(tmp_path / "rounds.jsonl", board)
    for number in (1, 2, 3):
        rounds.told(told(number, loss=float(number)))
    rounds.told(told(2, "begins"))
    assert [number for number, _ in shown(board)] == [1]
    rounds.told(told(1, "begins", run="nasion"))
    assert shown(board) == []


def test_a_searchs_jobs_come_in_any_order_and_each_replaces_only_what_was_told_of_itself(tmp_path, board):
    rounds = Rounds(tmp_path / "rounds.jsonl", board)
    for number, phase, loss in (
        (4, "ends", 0.4),
        (7, "ends", 0.7),
        (2, "begins", 9.0),
        (2, "ends", 0.2),
        (4, "ends", 0.3),
    ):
        rounds.told(told(number, phase, loss=loss).model_copy(update={"job": True}))
        assert board.snapshot().training.now.round == number
    assert shown(board) == [(2, {"loss": 0.2}), (4, {"loss": 0.3}), (7, {"loss": 0.7})]


def test_a_damaged_file_costs_the_curves_alone(tmp_path, board):
    (tmp_path / "rounds.jsonl").write_text('{"run": 1}\n[', encoding="utf-8")
    Rounds(tmp_path / "rounds.jsonl", board).told(told(1, loss=1.0))
    assert shown(board) == [(1, {"loss": 1.0})]


def test_a_round_is_not_under_way_when_its_trainer_has_ended(tmp_path, board):
    rounds = Rounds(tmp_path / "rounds.jsonl", board)
    rounds.told(told(1, "trains", loss=1.0))
    rounds.broken_off()
    assert not board.snapshot().training.now.busy


def test_a_curve_goes_from_the_first_round_to_the_last_between_the_lowest_and_the_highest_value():
    rounds = [RoundNote("r", n, metrics={"loss": loss}) for n, loss in ((1, 4.0), (2, 2.0), (5, 0.0))]
    [curve] = curves(rounds)
    assert (curve.title, curve.low, curve.high, curve.first, curve.last) == ("Loss", 0.0, 4.0, 1, 5)
    assert curve.lines[0].points == "0.0,3.0 60.0,36.0 240.0,69.0"
    assert curve.lines[0].last == 0.0


def test_the_errors_of_all_tasks_share_one_drawing_and_one_round_is_a_level_line():
    metrics = {"validation/sella/mean_mm": 2.0, "validation/nasion/mean_mm": 2.0, "validation/sella/n": 7.0}
    [curve] = curves([RoundNote("r", 3, metrics=metrics)])
    assert curve.title == "Error on this site's validation images, mm"
    assert [line.name for line in curve.lines] == ["nasion", "sella"]
    assert {line.points for line in curve.lines} == {"0.0,3.0 240.0,3.0"}


def test_a_classifiers_rounds_are_drawn_by_its_goal_its_measures_and_a_line_for_each_class():
    metrics = {"loss": 0.5, "accuracy": 0.75, "validation/balanced_accuracy": 0.7, "validation/auc": 0.8}
    metrics |= {"validation/sensitivity/ill": 0.6, "validation/sensitivity/well": 0.8, "validation/n": 9.0}
    found = curves([RoundNote("r", 3, metrics=metrics)])
    here = "on this site's validation images"
    assert [curve.title for curve in found] == [
        f"Balanced accuracy {here}",
        f"Sensitivity by class, {here}",
        "AUC",
        "Loss",
        "Accuracy on images learned from",
    ]
    assert [(line.name, line.last) for line in found[1].lines] == [("ill", 0.6), ("well", 0.8)]


def test_nothing_is_drawn_before_the_first_round():
    assert curves([]) == []
