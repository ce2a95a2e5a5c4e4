"""`cairn export`: a trained model as files for others."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_trainer.commands.fetching import fetched
from agent_trainer.commands.watching import print_json, show
from cairn.figures import IMAGES, VALIDATION, told
from cairn.profile import ProfileOption, operator_channel
from cairn.v1 import training_pb2

if TYPE_CHECKING:
    from agent_trainer.exports.card import SiteCard

app = typer.Typer(rich_markup_mode="markdown", context_settings={"allow_interspersed_args": True})
PRIVACY = {
    "images": "did not leave the sites, nor did what is known of each",
    "model updates": "went to the aggregator as they are, without masking or noise",
}
COUNTED = {"replay counts": "went to the aggregator as count sketches, without masking or noise"}
CLASSIFIED = {
    "validations": "went to the aggregator as counts of right and wrong answers, without masking or noise",
    "numbers of images": "of each class went to the aggregator",
}

OUTLINED = {
    "validations": "went to the aggregator as sums of each class's measures over a site's volumes, without noise",
    "numbers of images": "with each class went to the aggregator",
}
UNLABELLED = {"validations": "went to the aggregator as a site's mean loss, without masking or noise"}
COUNTS = {"dqn": COUNTED, "segmentation": OUTLINED, "pretrain": UNLABELLED}


@app.callback(invoke_without_command=True)
def export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    licence: Annotated[str, typer.Option(help="Of the weights: an SPDX name or a sentence.")],
    data: Annotated[str, typer.Option(help="One sentence on the images: kind, modality, source.")],
    profile: ProfileOption,
    *,
    round_number: Annotated[int, typer.Option("--round", help="Which checkpoint; 0 the best.")] = 0,
    name_sites: Annotated[
        bool, typer.Option("--name-sites/--no-name-sites", help="Write the sites' names into the model card.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write weights (safetensors), ONNX graphs that were run beside the weights, and a model card.

    * `cairn export sella --out model --licence CC-BY-4.0 --data "lateral cephalograms, 1 mm a pixel, three clinics"`

    * `cairn export chest --out model --licence CC-BY-4.0 --data "frontal chest X-rays, three clinics" --name-sites`
    """
    from agent_trainer.craft.validation import points_of  # noqa: PLC0415
    from agent_trainer.exports.card import ModelCard  # noqa: PLC0415 - torch and onnxruntime take seconds
    from agent_trainer.exports.files import export as write  # noqa: PLC0415

    trained = fetched(profile, run, round_number)
    with operator_channel(profile) as channel:
        shown = show(channel, run)
    last = next((one for one in shown.rounds if one.round == trained.number), training_pb2.Round())
    card = ModelCard(
        run=run,
        round=trained.number,
        rounds=shown.summary.round,
        strategy=shown.spec.strategy,
        data=data,
        licence=licence,
        sites=[_site(number, site, named=name_sites) for number, site in enumerate(last.sites, 1)],
        pooled=_measures(last.metrics),
        privacy={**PRIVACY, **COUNTS.get(trained.algorithm, CLASSIFIED)},
        points={name: asdict(point) for name, point in points_of(last.metrics).items()},
        calibration=_calibration(last.metrics),
    )
    made = write(out, trained.algorithm, trained.weights, trained.config, card)
    if as_json:
        files = {"weights": str(made.weights), "card": str(made.card), "onnx": [str(path) for path in made.onnx]}
        print_json({**files, "round": trained.number, "onnx_difference": made.difference})
        return
    for path in (made.weights, *made.onnx, made.card):
        typer.echo(f"{path}  {path.stat().st_size:,} bytes")


def _site(number: int, site: training_pb2.SiteRound, *, named: bool) -> "SiteCard":
    from agent_trainer.exports.card import SiteCard  # noqa: PLC0415

    classes = {
        name.removeprefix(IMAGES): round(n) for name, n in sorted(site.metrics.items()) if name.startswith(IMAGES)
    }
    images = round(site.metrics.get("examples", 0))
    return SiteCard(site.site if named else f"site {number}", images, _measures(site.metrics), classes)


def _calibration(metrics: Mapping[str, float]) -> dict[str, float]:
    """Find what a merged validation tells of a temperature."""
    names = {"temperature": "temperature", "error": "ece", "behind it": "ece_scaled"}
    return {name: metrics[f"{VALIDATION}{key}"] for name, key in names.items() if f"{VALIDATION}{key}" in metrics}


def _measures(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Sort the figures of a validation: validation/TASK/NAME by task, and a classifier's under the task ""."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for metric, value in sorted(told(metrics).items()):
        match metric.split("/", 2):
            case ["validation", "temperature" | "ece_scaled"] | ["validation", "point_threshold", _]:
                pass  # they have sections of their own
            case ["validation", "point_sensitivity" | "point_specificity", _]:
                pass
            case ["validation", name]:
                found[""][name] = value
            case ["validation", "sensitivity" | "specificity" | "dice" | "hd95_mm" | "surface_dice" as name, of]:
                found[""][f"{name} of {of}"] = value
            case ["validation", task, name]:
                found[task][name] = value
    return dict(found)
