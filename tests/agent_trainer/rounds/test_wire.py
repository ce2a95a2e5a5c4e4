import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from agent_trainer.evaluation import merge_validation
from agent_trainer.rounds.layout import flatten, layout_of, read_layout, unflatten, write_layout
from agent_trainer.rounds.validation import merged_metrics
from agent_trainer.rounds.wire import (
    ROUND,
    WEIGHTS,
    Order,
    answer,
    arrays,
    order_record,
    read_metrics,
    read_order,
    read_update,
)
from cairn.errors import Diverged, TrainingError

SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@pytest.fixture(autouse=True)
def _task():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@given(st.lists(SHAPES, max_size=5), st.integers(0, 2**32))
def test_weights_come_back_from_one_vector_as_they_went_in(shapes, seed):
    rng = np.random.default_rng(seed)
    weights = {f"layer.{i}": np.asarray(rng.random(shape), np.float32) for i, shape in enumerate(shapes)}
    layout = read_layout(write_layout(layout_of(weights)))
    found = unflatten(flatten(weights), layout)
    assert list(found) == list(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("vector", [np.zeros(4, np.float32), np.zeros(3, np.float64), np.zeros((1, 3), np.float32)])
def test_a_vector_of_another_network_is_refused(vector):
    with pytest.raises(TrainingError, match="another network"):
        unflatten(vector, (("w", (3,)),))


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["w"]]', '[["w", "x"]]'])
def test_a_layout_that_cannot_be_read_is_one_clear_error(text):
    with pytest.raises(TrainingError, match="cannot be read"):
        read_layout(text)


ORDER = Order(
    "run", 3, "dqn", '{"a": 1}', 2**62, (("w", (3,)),), evaluate=True, deadline_s=2.5, plan=b"\x00", counts=b"\xff"
)


def message(content):
    return Message(content, 1, "train.dqn")


def test_an_order_is_read_as_it_was_written():
    content = RecordDict({WEIGHTS: arrays(np.arange(3, dtype=np.float32)), ROUND: order_record(ORDER)})
    order, weights = read_order(message(content))
    assert order == ORDER
    assert weights.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {ROUND: ConfigRecord({"run": "x"})},
        {WEIGHTS: arrays(np.zeros(3, np.float32)), ROUND: ConfigRecord({"run": "x"})},
        {WEIGHTS: arrays(np.zeros(3, np.float32)), ROUND: ConfigRecord({**order_record(ORDER), "new": 1})},
        {WEIGHTS: ArrayRecord({"flat": Array(np.zeros(3))}), ROUND: order_record(ORDER)},
        {WEIGHTS: ArrayRecord({"other": Array(np.zeros(3, np.float32))}), ROUND: order_record(ORDER)},
    ],
)
def test_a_train_message_of_another_version_is_one_clear_error(content):
    with pytest.raises(TrainingError, match=r"update the older side|one float32 vector was expected"):
        read_order(message(RecordDict(content)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", ".."),
        ("run", "/tmp/run"),
        ("run", "sella/../../run"),
        ("run", ".run"),
        ("run", ""),
        ("run", 7),
        ("algorithm", "DQN"),
        ("number", -1),
        ("number", "third"),
        ("settings", 3),
        ("seed", 0.5),
        ("evaluate", "perhaps"),
        ("deadline-s", math.nan),
        ("deadline-s", 0.0),
        ("plan", 1.0),
        ("proximal-mu", math.inf),
    ],
)
def test_an_order_whose_fields_are_of_another_kind_is_refused_before_a_name_of_it_becomes_a_path(field, value):
    record = ConfigRecord({**order_record(ORDER), field: value})
    content = RecordDict({WEIGHTS: arrays(np.zeros(3, np.float32)), ROUND: record})
    with pytest.raises(TrainingError, match=rf"its {field.replace('-', '_')} is wrong .*; update the older side$"):
        read_order(message(content))


def reply(metrics, weights=None):
    return answer(metrics, weights, message(RecordDict()))


def test_numbers_that_are_not_finite_are_left_out_of_an_answer():
    found = read_metrics(reply({"loss": math.nan, "reward": math.inf, "examples": 2.0}))
    assert found == {"examples": 2.0}


@pytest.mark.parametrize(
    ("metrics", "weights", "error", "sentence"),
    [
        ({"examples": 1.0}, None, TrainingError, "holds no weights"),
        ({"examples": 1.0}, [1.0], TrainingError, "has 1 weights where 2 were expected"),
        ({"examples": 1.0}, [1.0, math.nan], Diverged, "1 of 2 weights are not finite"),
        ({"examples": 1.0}, [math.inf, -math.inf], Diverged, "2 of 2"),
        ({"examples": 0.0}, [1.0, 1.0], TrainingError, "no examples"),
        ({}, [1.0, 1.0], TrainingError, "no examples"),
        ({"examples": -3.0}, [1.0, 1.0], TrainingError, "no examples"),
    ],
)
def test_an_update_that_cannot_be_used_is_refused_with_its_reason(metrics, weights, error, sentence):
    update = None if weights is None else np.array(weights, np.float32)
    with pytest.raises(error, match=sentence):
        read_update(reply(metrics, update), 2)


def test_an_answer_with_a_flood_of_numbers_is_refused():
    flood = Message(
        RecordDict({"metrics": MetricRecord({str(i): 1.0 for i in range(1001)})}), reply_to=message(RecordDict())
    )
    with pytest.raises(TrainingError, match="no numbers that this version can read"):
        read_metrics(flood)


def test_numbers_of_sites_merge_as_means_over_examples_sums_and_the_largest_time():
    sites = [
        {"examples": 3, "updates": 10, "seconds": 4, "loss": 1.0, "validation/a/n": 1},
        {"examples": 1, "updates": 20, "seconds": 9, "loss": 5.0, "reward": 2.0},
    ]
    assert merged_metrics(sites) == {"examples": 4, "updates": 30, "seconds": 9, "loss": 2.0, "reward": 2.0}


def test_collapses_and_restarts_of_masks_are_counted_over_all_sites():
    sites = [
        {"examples": 30, "masks/collapses": 2, "masks/restarts": 1, "masks/kept": 0.5},
        {"examples": 10, "masks/collapses": 1, "masks/restarts": 0, "masks/kept": 0.1},
    ]
    assert merged_metrics(sites) == pytest.approx(
        {"examples": 40, "masks/collapses": 3, "masks/restarts": 1, "masks/kept": 0.4}
    )


SCORES = st.lists(st.floats(0, 100), min_size=1, max_size=8)


@given(st.lists(SCORES, min_size=1, max_size=5))
def test_the_merged_mean_error_is_the_mean_over_all_images_of_all_sites(of_site):
    sites = [
        {
            "validation/sella/n": len(errors),
            "validation/sella/mean_mm": float(np.mean(errors)),
            "validation/sella/sdr_2": float(np.mean(np.array(errors) <= 2)),
            "validation/sella/median_mm": float(np.median(errors)),
        }
        for errors in of_site
    ]
    every = np.concatenate([np.array(errors) for errors in of_site])
    found = merge_validation(sites)
    assert found["validation/sella/n"] == len(every)
    assert found["validation/mean_mm"] == pytest.approx(every.mean())
    assert found["validation/sella/mean_mm"] == pytest.approx(every.mean())
    assert found["validation/sella/sdr_2"] == pytest.approx((every <= 2).mean())
    assert "validation/sella/median_mm" not in found, "a median of medians is none"


def test_without_a_validation_there_is_nothing_to_merge():
    assert merge_validation([{"loss": 1.0}, {"validation/a/n": 0, "validation/a/mean_mm": 0.0}]) == {}
