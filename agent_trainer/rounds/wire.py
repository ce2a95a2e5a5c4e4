"""What a round's messages hold: an order from the middle, an answer from a site.

Order    ArrayRecord "weights" {flat}, ConfigRecord "round" (the fields of `Order`)
Answer   ArrayRecord "weights" {flat} (of a train message only), MetricRecord "metrics"
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from agent_trainer.rounds.layout import Layout, Vector, check_finite, read_layout, write_layout
from cairn.errors import TrainingError
from cairn.run import AlgorithmName
from cairn.study import Name

WEIGHTS, FLAT, ROUND, METRICS = "weights", "flat", "round", "metrics"
EXAMPLES = "examples"
TRAIN, EVALUATE = "train.{}", "evaluate.{}"  # message types, of an algorithm
METRIC_LIMIT = 1000  # numbers that a site may send


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Order:
    """What a site is asked to do in a round.

    run         its name, which is also that of folders and files at a site: `read_order` lets no other word through
    algorithm   its name
    settings    the algorithm's own, JSON
    seed        of the run; a site adds its own name and the round
    evaluate    measure the weights that came on the site's validation scenes, before training
    deadline_s  when the answer must be there; the site ends its training before
    plan        published bytes of the round's replay plan; b"" for none
    coder_plan  published bytes of the plan that holds the coder of `counts`; b"" before there is one
    counts      tally file: the sum of all merged replay tallies; b"" before there is one
    updates     of a search's job, whose number is `number`: optimiser steps from the weights that came; 0 in a run
    validations of a job at this site alone: so many over its updates, the best of which is answered, and no weights;
                0 at several sites: the weights are answered as in a round, and validated when they are joined
    leg         of a job at several sites: 0 at first, then rising with the same practice
    update_plan published bytes of the plan under which the updates of a masked run are summed; b"" where they come
                with the answers
    figures     what the answer of a masked run tells: all numbers but the examples, or none
    norm_bound  length to which a site of a masked run shortens what it learned; 0 for none
    alike       every site of a masked run weighs the same, and all of its update is shortened: noise will be added
    """

    run: Name
    number: Annotated[int, Field(ge=0)]
    algorithm: AlgorithmName
    settings: str
    seed: int
    layout: Layout
    evaluate: bool
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    plan: bytes = b""
    coder_plan: bytes = b""
    counts: bytes = b""
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    updates: Annotated[int, Field(ge=0)] = 0
    validations: Annotated[int, Field(ge=0)] = 0
    leg: Annotated[int, Field(ge=0)] = 0
    update_plan: bytes = b""
    figures: Literal["all", "none"] = "all"
    norm_bound: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    alike: bool = False


_ORDER: Final = TypeAdapter(Order)
OF_JOBS: Final = ("updates", "validations", "leg")
OF_MASKED: Final = ("update_plan", "figures", "norm_bound", "alike")


def arrays(vector: Vector) -> ArrayRecord:
    """Wrap a vector float32[n] for Flower."""
    return ArrayRecord({FLAT: Array(vector)})


def vector(record: ArrayRecord) -> Vector:
    """Unwrap it. Raises TrainingError when it is something else."""
    try:
        found = record[FLAT].numpy()
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError("the message holds no weights that this version can read; update the older side") from error
    if list(record) != [FLAT] or found.dtype != np.float32 or found.ndim != 1:
        raise TrainingError(f"weights came as {found.dtype}{found.shape} where one float32 vector was expected")
    return found


def order_record(order: Order) -> ConfigRecord:
    """Write an order, without what it does not need, so that a site of an older version can follow it."""
    idle = (() if order.updates else OF_JOBS) + (() if order.update_plan else OF_MASKED)
    fields = {name: value for name, value in vars(order).items() if name not in idle}
    fields["layout"] = write_layout(order.layout)
    return ConfigRecord({name.replace("_", "-"): value for name, value in fields.items()})


def read_order(message: Message) -> tuple[Order, Vector]:
    """Read an order and the weights that came with it. Raises TrainingError."""
    record = message.content.config_records.get(ROUND)
    weights = message.content.array_records.get(WEIGHTS)
    if record is None or weights is None:
        raise TrainingError("the train message holds no order that this version can read; update the older side")
    fields = {name.replace("-", "_"): value for name, value in record.items() if name != "server-round"}
    layout = read_layout(str(fields.get("layout", "")))
    try:
        order = _ORDER.validate_python({**fields, "layout": layout})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrainingError(
            f"the order of the round cannot be followed, its {where} is wrong ({first['msg']}); update the older side"
        ) from error
    return order, vector(weights)


def answer(metrics: Mapping[str, float], trained: Vector | None, message: Message) -> Message:
    """Answer a message with numbers, of which those that are not finite are left out, and with weights."""
    content = RecordDict({METRICS: MetricRecord({name: v for name, v in metrics.items() if math.isfinite(v)})})
    if trained is not None:
        content[WEIGHTS] = arrays(trained)
    return Message(content, reply_to=message)


def read_metrics(message: Message) -> dict[str, float]:
    """Read the numbers of an answer. Raises TrainingError for something else."""
    record = message.content.metric_records.get(METRICS)
    if record is None or len(record) > METRIC_LIMIT:
        raise TrainingError("the answer holds no numbers that this version can read; update the older side")
    found = {str(name)[:100]: float(value) for name, value in record.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def read_without_weights(message: Message) -> dict[str, float]:
    """Read the numbers of a masked run's answer. Raises TrainingError when weights came with them."""
    if message.content.array_records.get(WEIGHTS) is not None:
        raise TrainingError(
            "the update came in plain where updates are summed secretly; it is not used, update the site"
        )
    return read_metrics(message)


def read_update(message: Message, length: int) -> tuple[Vector, dict[str, float]]:
    """Read a site's update and its numbers. Raises Diverged for NaN or infinity, TrainingError for another network."""
    record = message.content.array_records.get(WEIGHTS)
    if record is None:
        raise TrainingError("the answer holds no weights")
    update, metrics = vector(record), read_metrics(message)
    if len(update) != length:
        raise TrainingError(f"the update has {len(update)} weights where {length} were expected")
    check_finite(update)
    if metrics.get(EXAMPLES, 0) <= 0:
        raise TrainingError("the update is of no examples; the site has nothing to learn from")
    return update, metrics
