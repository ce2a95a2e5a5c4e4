"""A study's specification as its message on the wire, and back."""

from datetime import timedelta
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration

from cairn.study import StudyPrivacy, StudySpec, parse_spec
from cairn.v1 import operations_pb2

# Fields whose zero is nobody's choice: left out on the wire, they take the default of cairn/study.py.
_NUMBERS = (
    "pixel_scale",
    "dimensions",
    "radix",
    "depth",
    "width",
    "top_k",
    "min_sites",
    "min_count",
    "clusters",
    "n_neighbors",
)
_WORDS = ("clustering", "masking")
_SHARES: tuple[Literal["may_drop", "may_collude"], ...] = ("may_drop", "may_collude")
_SPANS: tuple[Literal["stage_deadline", "masking_patience"], ...] = ("stage_deadline", "masking_patience")


def spec_message(spec: StudySpec) -> operations_pb2.StudySpec:
    """Write a specification as its message."""
    values = spec.model_dump(exclude={"states", "privacy", *_SPANS})
    message = operations_pb2.StudySpec(**values)
    for name in _SPANS:
        getattr(message, name).FromTimedelta(getattr(spec, name))
    if spec.privacy is not None:
        message.privacy.CopyFrom(operations_pb2.StudyPrivacy(**spec.privacy.model_dump()))
    for state, bands in spec.states.items():
        message.states.add(state=state, bands=bands)
    return message


def read_spec(message: operations_pb2.StudySpec) -> StudySpec:
    """Read a specification from its message. Raises PlanError with the first thing that is wrong."""
    values: dict[str, Any] = {
        "name": message.name,
        "bands": tuple(message.bands),
        "pixel_offset": message.pixel_offset,
        "range_quantile": message.range_quantile,
        "embedding_seed": message.embedding_seed,
        "auto_approve": message.auto_approve,
        "states": {rule.state: tuple(rule.bands) for rule in message.states},
    }
    values.update({name: getattr(message, name) for name in _NUMBERS if getattr(message, name)})
    values.update({name: getattr(message, name) for name in _WORDS if getattr(message, name)})
    values.update({name: getattr(message, name) for name in _SHARES if message.HasField(name)})
    values.update({name: _span(getattr(message, name)) for name in _SPANS if message.HasField(name)})
    if message.HasField("privacy"):
        told = message.privacy
        values["privacy"] = {name: getattr(told, name) for name in StudyPrivacy.model_fields}
    return parse_spec(values)


def _span(duration: Duration) -> timedelta:
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
