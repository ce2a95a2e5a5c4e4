"""Pneumonia or no finding in `cxr_nih224`: four methods, all images or 100 a class, centralised or over three sites.

Divided by patient. All methods pre-train alike and then make the same number of classifier steps: with masks two a
batch, without any two batches. Each learner, be it a site's, makes the same number, so that the machine's load does not
matter. The federation's sites are objects of one process: Flower's transport is left out, which changes no number of
the result.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_practice import ApgaPractice, first_weights
from agent_trainer.classification import count, measures
from agent_trainer.labelled.settings import LabelledFolders
from agent_trainer.labelled.sources import Example, Labelled, load_labelled
from benchmarks.dqn_ceph import average

Line = dict[str, Any]
Examples = tuple[Example, ...]

SITES = 3
TEST_SHARE, HELD_OUT = 0.3, 0.25  # of all patients, to test on; of those to learn from, to choose settings by
DATA = Path(__file__).parents[2] / "shared" / "data" / "dev" / "cxr_nih224"
METHODS = ("none", "cutout", "gradcam", "apga")
PLACES = ("centralised", "federated")
FIGURES = ("accuracy", "balanced_accuracy", "auc")
UPDATES = 150

# What one core learns in half a minute; the paper's own numbers are ApgaConfig's defaults.
SMALL: dict[str, Any] = {
    "classes": ("No_findings", "Pneumonia"),
    "side": 64,
    "channels": 1,
    "classifier": "small",
    "masker": "small",
    "small_norm": "group",
    "learning_rate": 1e-3,
    "pretrain_updates": 200,
    "pretrain_patience": 1000,  # all runs pre-train alike
    "lambda_zeros": 0.001,  # by patients held out; the authors' program has about as little
    "round_updates": 50,
}


def read_cxr(*, validate: bool) -> Labelled:
    """Name the images to learn from and to test on; with `validate` those held out of the first stand for the test."""
    source = LabelledFolders(images=DATA, patient="^([0-9]+)_")
    found = load_labelled((source,), SMALL["classes"], TEST_SHARE)
    if not validate:
        return found
    out = {example.patient for example in found.train if _share("held out", example.patient) < HELD_OUT}
    kept = tuple(example for example in found.train if example.patient not in out)
    return Labelled(kept, tuple(example for example in found.train if example.patient in out))


def few(examples: Examples, shots: int, seed: int) -> Examples:
    """Draw so many of each class; 0 takes all."""
    if not shots:
        return examples
    rng = np.random.default_rng(seed)
    chosen: list[Example] = []
    for label in range(len(SMALL["classes"])):
        of_class = [example for example in examples if example.label == label]
        chosen += [of_class[i] for i in rng.permutation(len(of_class))[:shots]]
    return tuple(chosen)


def deal(examples: Examples, sites: int) -> list[Examples]:
    """Deal patients to sites by their hash."""
    at = [int(_share("site", example.patient) * sites) for example in examples]
    return [tuple(e for e, place in zip(examples, at, strict=True) if place == site) for site in range(sites)]


def _share(what: str, patient: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{what}/{patient}".encode()).digest()[:4], "big") / 2**32


def train(practice: ApgaPractice, updates: int) -> None:
    """Learn from so many batches."""
    for _ in practice.train(updates):
        pass


def trained(config: ApgaConfig, parts: Sequence[Examples], test: Examples, seed: int, updates: int) -> ApgaPractice:
    """Train in rounds over sites, FedAvg by the number of images; one site is centralised.

    Returns the first site's practice, holding the average.
    """
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            ApgaPractice(
                Labelled(part, () if number else test), config, SITES * seed + number, "cpu", Path(folder) / str(number)
            )
            for number, part in enumerate(parts)
        ]
        merged = first_weights(config, seed)
        plan = (config.pretrain_updates, updates * (2 if config.method == "none" else 1))
        rounds = (plan[0] // config.round_updates, updates // config.round_updates)
        for phase, many in zip(plan, rounds, strict=True):
            for _ in range(many):
                for site in sites:
                    site.load(merged)
                    train(site, phase // many)
                merged = average([site.weights() for site in sites], [site.examples for site in sites])
        sites[0].load(merged)
    return sites[0]


def cxr(
    seeds: Sequence[int],
    updates: int,
    methods: Sequence[str],
    shots: Sequence[int],
    places: Sequence[str],
    settings: dict[str, Any],
    *,
    validate: bool = False,
) -> Iterator[Line]:
    """Measure what is wanted on the test's images; of a policy also with its masks at inference."""
    images = read_cxr(validate=validate)
    for seed in seeds:
        for many in shots:
            chosen = few(images.train, many, seed)
            for place in places:
                parts = [chosen] if place == "centralised" else deal(chosen, SITES)
                for method in methods:
                    config = ApgaConfig(**{**SMALL, **settings, "method": method})
                    began = time.process_time()
                    made = trained(config, parts, images.validation, seed, updates)
                    spent = time.process_time() - began
                    name = f"apga/cxr/{place}/{many or 'all'}/{method}"
                    also = {"seed": seed, "updates": updates, "images": len(chosen), "cpu_s": round(spent)}
                    yield from lines(name, config, made, **also)


def lines(name: str, config: ApgaConfig, practice: ApgaPractice, **also: object) -> Iterator[Line]:
    """Measure a site's model on the images that it did not learn from."""
    collapses = {key: value for key, value in practice.figures().items() if key.startswith("masks/")}
    for masked in (False, True) if config.masks else (False,):
        practice.config = config.model_copy(update={"mask_at_inference": masked})
        practice.learner.config = practice.config
        found = measures(count(practice.answers(practice.held_out), practice.held_out_labels), config.classes)
        told = {figure: found[figure] for figure in FIGURES}
        line = f"{name}_masked" if masked else name
        yield {"name": line, "value": found["accuracy"], "unit": "", **told, **collapses, **also}


def table(measured: Sequence[Line]) -> str:
    """Lay lines out: mean ± standard deviation over seeds, in percent."""
    names = list(dict.fromkeys(line["name"] for line in measured))
    rows = ["| | seeds | accuracy | balanced accuracy | AUC |", "|---|---|---|---|---|"]
    for name in names:
        of_name = [line for line in measured if line["name"] == name]
        cells = []
        for figure in FIGURES:
            values = [100 * line[figure] for line in of_name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        rows.append(f"| {name.removeprefix('apga/cxr/')} | {len(of_name)} | {' | '.join(cells)} |")
    return "\n".join(rows)
