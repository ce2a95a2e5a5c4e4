"""A network as ONNX, checked beside torch."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from cairn.errors import TrainingError

TOLERANCE = 1e-4  # of an output, absolute and relative, between torch and onnxruntime
CHECKED = (1, 5)  # images in a batch


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a model.

    network   on the CPU, as it is used
    inputs    by name in the order of the network's arguments, each with the names of its axes of any length
    outputs   names
    examples  makes the inputs for a batch of so many
    what      what the first output is called by people
    """

    file: str
    network: nn.Module
    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    examples: Callable[[int], tuple[Tensor, ...]]
    what: str


def to_onnx(graph: Graph) -> bytes:
    """Return a graph as an ONNX file."""
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in graph.inputs.values())
    with torch.no_grad(), _quietly():
        program = torch.onnx.export(
            graph.network.eval(),
            graph.examples(2),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    made = model.graph
    for part in (*made.node, *made.value_info, *made.input, *made.output, *made.initializer, made):
        part.ClearField("metadata_props")  # where on this machine each piece came from
        part.ClearField("doc_string")
    _name_axes(made, graph.inputs)
    content: bytes = model.SerializeToString()
    return content


def _name_axes(made: Any, inputs: Mapping[str, Mapping[int, str]]) -> None:
    """Give the axes of any length the names that people know, also where a length is computed of them."""
    names: dict[str, str] = {}
    for value in made.input:
        for axis, name in inputs[value.name].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*made.value_info, *made.input, *made.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param)


def check_onnx(content: bytes, graph: Graph) -> float:
    """Run an ONNX file in onnxruntime beside torch, in two sizes of batch; returns the outputs' largest difference.

    Raises TrainingError where it is over 1e-4 of max(1, |output|).
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in CHECKED:
        given = graph.examples(batch)
        with torch.inference_mode():
            made = graph.network.eval()(*given)
        expected: Sequence[Tensor] = made if isinstance(made, tuple) else (made,)
        feed = {name: value.numpy() for name, value in zip(graph.inputs, given, strict=True)}
        for wanted, found in zip(expected, session.run(list(graph.outputs), feed), strict=True):
            largest = max(largest, float(np.abs(found - wanted.numpy()).max()))
            if not np.allclose(found, wanted.numpy(), TOLERANCE, TOLERANCE):
                raise TrainingError(
                    f"the ONNX model's {graph.what} differs from torch's by up to {largest:g}; it was not written"
                )
    return largest


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep from people what torch's exporter says of its own insides and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
