"""A trained model as files for others: weights with a header that says what they are, a model card, ONNX."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agent_trainer.config import DqnConfig, read_config
from agent_trainer.networks import QNetwork, architecture
from cairn.errors import TrainingError
from cairn.files import write_atomically

Weights = Mapping[str, npt.NDArray[np.float32]]

WEIGHTS, CARD, ONNX = "weights.safetensors", "MODEL_CARD.md", "model.onnx"
TOLERANCE = 1e-4  # of Q, absolute and relative, between torch and onnxruntime


@dataclass(frozen=True)
class SiteCard:
    """What a site gave and measured.

    name      as in the federation; "" for a site that wishes not to be named
    scenes    images with a landmark, over all tasks
    measures  by task, named numbers on the site's own validation images: n, mean_mm, median_mm, sdr_2 …
    """

    name: str
    scenes: int
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """What a model card says that the weights do not.

    run, round  which checkpoint this is
    rounds      how many the run had
    strategy    how the sites' weights were joined
    data        a sentence on the images: kind, modality, source
    sites       those that took part
    privacy     settings by name: masking, noise, what left the sites
    licence     of the weights, an SPDX name or a sentence; somebody must have decided it
    """

    run: str
    round: int
    rounds: int
    strategy: str
    data: str
    licence: str
    sites: Sequence[SiteCard] = ()
    privacy: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """Where the files lie, and by how much ONNX's Q differed from torch's at most."""

    weights: Path
    card: Path
    onnx: Path
    difference: float


def export(folder: Path, weights: Weights, config: DqnConfig, card: ModelCard) -> Exported:
    """Write a model's three files into a folder.

    Raises TrainingError when the weights are not of the config's network, or when ONNX computes another Q.
    """
    network = _network(weights, config)
    folder.mkdir(parents=True, exist_ok=True)
    graph = to_onnx(network)
    difference = check_onnx(graph, network)
    made = Exported(folder / WEIGHTS, folder / CARD, folder / ONNX, difference)
    contents = (write_weights(weights, config, card), describe(config, card, difference).encode(), graph)
    for place, content in zip((made.weights, made.card, made.onnx), contents, strict=True):
        with write_atomically(place) as file:
            file.write(content)
    return made


def write_weights(weights: Weights, config: DqnConfig, card: ModelCard) -> bytes:
    """Return a safetensors file whose header holds run, round, settings, architecture and the card, all as text."""
    about = {
        "run": card.run,
        "round": str(card.round),
        "algorithm": "dqn",
        "settings": config.model_dump_json(),
        "architecture": _architecture(config),
        "card": json.dumps(asdict(card)),
    }
    content: bytes = save({name: np.ascontiguousarray(array) for name, array in weights.items()}, about)
    return content


def read_weights(path: Path, config: DqnConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Read the weights of a file that `export` or a round wrote.

    Raises TrainingError for a file that is none, and for one of another architecture than the config's.
    """
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path.name} is no weights file ({error}); give one that `cairn export` wrote") from error
    if "settings" not in about:
        raise TrainingError(f"{path.name} does not say of which network it is; give one that `cairn export` wrote")
    found, expected = _architecture(read_config(about["settings"])), _architecture(config)
    if found != expected:
        raise TrainingError(f"{path.name} is of another architecture: found {found}; expected {expected}")
    _network(weights, config)
    return weights


def to_onnx(network: QNetwork) -> bytes:
    """Return a network as ONNX.

    Its inputs are states uint8[batch, history, *box] and task int64[batch], its output q float32[batch, actions].
    """
    states, task = _examples(network, 2)
    dynamic = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quietly():
        program = torch.onnx.export(
            network.eval(),
            (states, task),
            input_names=["states", "task"],
            output_names=["q"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    graph = model.graph
    for made in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        made.ClearField("metadata_props")  # where on this machine each piece came from
        made.ClearField("doc_string")
    for value in (*graph.value_info, *graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = "batch"
    content: bytes = model.SerializeToString()
    return content


def check_onnx(graph: bytes, network: QNetwork) -> float:
    """Run a graph in onnxruntime beside torch, for batches of 1 and 5; returns the largest difference of Q.

    Raises TrainingError where it is over 1e-4 of max(1, |Q|).
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (1, 5):
        states, task = _examples(network, batch)
        with torch.inference_mode():
            expected = network(states, task).numpy()
        (found,) = session.run(["q"], {"states": states.numpy(), "task": task.numpy()})
        largest = max(largest, float(np.abs(found - expected).max()))
        if not np.allclose(found, expected, TOLERANCE, TOLERANCE):
            raise TrainingError(f"the ONNX model's Q differs from torch's by up to {largest:g}; it was not written")
    return largest


def describe(config: DqnConfig, card: ModelCard, difference: float) -> str:
    """Return the model card in Markdown."""
    tasks = ", ".join(config.tasks)
    order = "[z, y, x]" if config.axes == 3 else "[y, x]"
    shape = ", ".join(map(str, config.state_shape[1:]))
    lines = [
        f"# {card.run}, round {card.round}",
        "",
        f"An agent that moves a box to a landmark ({tasks}): a deep Q-network trained by {len(card.sites)} "
        f"site{'' if len(card.sites) == 1 else 's'} together with Cairn. Images did not leave the sites.",
        "",
        f"- **Licence**: {card.licence}",
        f"- **Data**: {card.data}",
        f"- **Training**: {card.rounds} rounds, joined by {card.strategy}; these are the weights of round {card.round}",
        f"- **Network**: {_architecture(config)}",
        f"- **Input**: `states` uint8[batch, {config.history}, {shape}] with the axes {order} last, the newest crop at "
        "the end; `task` int64[batch], the number of the landmark in the list above, from 0",
        f"- **Output**: `q` float32[batch, {config.actions}] in units of {config.reward_unit_mm:g} mm, of the actions "
        f"{', '.join(('x+', 'x-', 'y+', 'y-', 'z+', 'z-')[: config.actions])}; steps of "
        f"{', then '.join(map(str, config.scales))} px",
        f"- **ONNX**: checked in onnxruntime, Q within {difference:.1e} of torch's",
        "",
        "Not a medical device. It was measured on the sites' images only; measure it on yours before use.",
        "",
        "## Sites",
        "",
        *_table(("Site", "Images"), [(_name(i, site), str(site.scenes)) for i, site in enumerate(card.sites, 1)]),
        "",
        "## Measures on each site's own validation images",
        "",
        *_measures(card.sites),
        "",
        "## Privacy",
        "",
        *([f"- **{name}**: {value}" for name, value in card.privacy.items()] or ["Nothing was stated."]),
        "",
        "## Settings",
        "",
        "```json",
        config.model_dump_json(indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _measures(sites: Sequence[SiteCard]) -> list[str]:
    rows = [(_name(i, s), task, numbers) for i, s in enumerate(sites, 1) for task, numbers in s.measures.items()]
    if not rows:
        return ["None were reported."]
    names = list(dict.fromkeys(name for _, _, numbers in rows for name in numbers))
    cells = [(s, t, *(f"{numbers[n]:.4g}" if n in numbers else "" for n in names)) for s, t, numbers in rows]
    return _table(("Site", "Landmark", *names), cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = (head, ["---"] * len(head), *rows)
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _name(number: int, site: SiteCard) -> str:
    return site.name or f"site {number}"


def _architecture(config: DqnConfig) -> str:
    return architecture(config, config.actions, len(config.tasks))


def _network(weights: Weights, config: DqnConfig) -> QNetwork:
    """Make the network of a config with these weights, on the CPU. Raises TrainingError for weights of another."""
    network = QNetwork(config, config.actions, len(config.tasks))
    try:
        network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    except RuntimeError as error:
        raise TrainingError(f"the weights are not of the network {_architecture(config)}") from error
    return network


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


def _examples(network: QNetwork, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(batch)
    states = rng.integers(0, 256, (batch, *network.config.state_shape), np.uint8)
    return torch.from_numpy(states), torch.from_numpy(rng.integers(0, network.tasks, batch))
