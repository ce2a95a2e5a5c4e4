"""`cairn evaluate`: how good a model is on images that lie here."""

from pathlib import Path
from typing import Annotated

import typer

from agent_trainer.commands.fetching import named, validated
from agent_trainer.commands.listed import read_list
from cairn.errors import ConfigError
from cairn.profile import ProfileOption

app = typer.Typer(rich_markup_mode="markdown", context_settings={"allow_interspersed_args": True})


@app.callback(invoke_without_command=True)
def evaluate(
    model: Annotated[str, typer.Argument(help="Name of a run, or a weights file that `cairn export` wrote.")],
    scenes: Annotated[
        Path | None, typer.Option(help="Of a DQN: TOML or JSON file with a list `scenes`, as in site.toml.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Of a classifier: TOML or JSON file with a list `labelled`, as in site.toml.")
    ] = None,
    volumes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Of a segmentation: TOML or JSON file with a list `volumes`, as in site.toml, or a folder of volumes "
            "without labels; repeat it."
        ),
    ] = None,
    profile: ProfileOption = Path("operator"),
    *,
    out: Annotated[
        Path, typer.Option(help="Of a segmentation: folder for labels (NIfTI), pictures and measures.")
    ] = Path("segmented"),
    round_number: Annotated[int, typer.Option("--round", help="Which checkpoint; 0 the best.")] = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the images that training sets aside for validation.")
    ] = False,
    starts: Annotated[int, typer.Option(min=1, help="Of a DQN: searches an image; their median is the answer.")] = 5,
    animate: Annotated[
        Path | None, typer.Option(help="Of a DQN: folder for an animated search of each task, from the first start.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Of a classifier: PNG file for its confusion matrix and calibration.")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="Of a classifier: another that answers with it, RUN, RUN@ROUND or file; repeat it."
        ),
    ] = None,
    vote: Annotated[str, typer.Option(help="How they answer together: average, majority or weighted.")] = "average",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Of each vote, the first model's first; left out, by the runs' own validations."),
    ] = None,
    point: Annotated[
        str, typer.Option(help="Operating point: youden, sensitivity:SHARE, specificity:SHARE or cost:TIMES.")
    ] = "youden",
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Of a classifier: measure its probabilities behind this temperature.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure a model on images that lie here.

    A DQN as ISBI 2015 does: mean and median radial error, and how many lie within 2, 2.5, 3 and 4 mm. A classifier by
    accuracy, balanced accuracy, AUC, calibration, and sensitivity and specificity of each class; with the threshold of
    an operating point for each, and the temperature that would calibrate it. Both are chosen on the images given. A
    segmentation by Dice, 95 % Hausdorff distance and surface Dice of each class, on each volume's own grid.

    * `cairn evaluate sella --scenes test.toml --profile operator`

    * `cairn evaluate weights.safetensors --scenes test.toml --animate pictures --json`

    * `cairn evaluate chest --images test.toml --held-out --plot chest.png`

    * `cairn evaluate chest --images test.toml --point sensitivity:0.95`

    * `cairn evaluate spleen --volumes test.toml --volumes /data/new-scans --out segmented`

    * `cairn evaluate chest@12 --with chest@16 --with other.safetensors --images test.toml --vote majority`
    """
    trained = named(profile, model, round_number)
    if trained.algorithm == "segmentation":
        if not volumes:
            raise ConfigError(
                f"{model} is a model of segmentation; name a file with a list `volumes`, or a folder of volumes, with "
                "--volumes"
            )
        from agent_trainer.commands import evaluate_volumes  # noqa: PLC0415 - each loads what it needs

        evaluate_volumes.evaluate(model, trained, volumes, held_out=held_out, out=out, as_json=as_json)
        return
    if trained.algorithm == "pretrain":
        raise ConfigError(
            f"{model} is an encoder that learned without labels and answers nothing; name it in `transfer.weights` of "
            "a run that learns labels or landmarks, and measure that"
        )
    searches = trained.algorithm == "dqn"
    given = scenes if searches else images
    if given is None:
        option, kind = ("--scenes", "scenes") if searches else ("--images", "labelled")
        raise ConfigError(
            f"{model} is a model of {trained.algorithm}; name a file with a list `{kind}` to measure on with {option}"
        )
    if searches:
        from agent_trainer.commands import evaluate_searches  # noqa: PLC0415 - each loads what it needs

        text = read_list(given, "scenes")
        evaluate_searches.evaluate(
            model, trained, text, given, starts=starts, held_out=held_out, animate=animate, as_json=as_json
        )
    else:
        from agent_trainer.commands import evaluate_classes  # noqa: PLC0415

        text = read_list(given, "labelled")
        members = [(name, named(profile, name, 0)) for name in others or []]
        evaluate_classes.evaluate(
            [(model, trained), *members],
            text,
            given,
            evaluate_classes.Asked(vote, tuple(weight or ()), point, temperature, held_out=held_out),
            accuracy=lambda one: validated(profile, one),
            plot=plot,
            as_json=as_json,
        )
