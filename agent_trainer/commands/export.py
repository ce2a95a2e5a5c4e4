"""`cairn export`: a trained model as files for others."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_trainer.commands.fetching import fetched
from agent_trainer.commands.watching import print_json, show
from cairn.profile import ProfileOption, operator_channel
from cairn.v1 import training_pb2

if TYPE_CHECKING:
    from agent_trainer.export import SiteCard

app = typer.Typer(rich_markup_mode="markdown", context_settings={"allow_interspersed_args": True})
PRIVACY = {
    "images, landmarks and transitions": "did not leave the sites",
    "model updates": "went to the aggregator as they are, without masking or noise",
    "replay counts": "went to the aggregator as count sketches, without masking or noise",
}


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
    """Write weights (safetensors), an ONNX graph that was run beside the weights, and a model card.

    * `cairn export sella --out model --licence CC-BY-4.0 --data "lateral cephalograms, 1 mm a pixel, three clinics"`
    """
    from agent_trainer.export import ModelCard  # noqa: PLC0415 - torch and onnxruntime take seconds
    from agent_trainer.export import export as write  # noqa: PLC0415

    trained = fetched(profile, run, round_number)
    with operator_channel(profile) as channel:
        shown = show(channel, run)
    card = ModelCard(
        run=run,
        round=trained.number,
        rounds=shown.summary.round,
        strategy=shown.spec.strategy,
        data=data,
        licence=licence,
        sites=[_site(number, site, named=name_sites) for number, site in enumerate(_sites(shown, trained.number), 1)],
        privacy=PRIVACY,
    )
    made = write(out, trained.weights, trained.config, card)
    if as_json:
        files = {"weights": str(made.weights), "card": str(made.card), "onnx": str(made.onnx)}
        print_json({**files, "round": trained.number, "onnx_difference": made.difference})
        return
    for path in (made.weights, made.onnx, made.card):
        typer.echo(f"{path}  {path.stat().st_size:,} bytes")


def _sites(shown: training_pb2.ShowRunResponse, number: int) -> list[training_pb2.SiteRound]:
    """Return what the sites did in a round; nothing when it is not known any more."""
    return next((list(one.sites) for one in shown.rounds if one.round == number), [])


def _site(number: int, site: training_pb2.SiteRound, *, named: bool) -> "SiteCard":
    from agent_trainer.export import SiteCard  # noqa: PLC0415

    measures: dict[str, dict[str, float]] = defaultdict(dict)
    for metric, value in site.metrics.items():
        match metric.split("/"):
            case ["validation", task, name]:
                measures[task][name] = value
    return SiteCard(site.site if named else f"site {number}", round(site.metrics.get("examples", 0)), dict(measures))
