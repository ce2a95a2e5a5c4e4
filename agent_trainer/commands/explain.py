"""`cairn explain`: a picture of what a classifier's answer to each image rests on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from agent_trainer.commands.fetching import named
from agent_trainer.commands.listed import read_list
from agent_trainer.commands.watching import print_json
from cairn.errors import CairnError, ConfigError, ImageError
from cairn.profile import ProfileOption

app = typer.Typer(rich_markup_mode="markdown", context_settings={"allow_interspersed_args": True})
MOST = 1000  # pictures of a folder


@app.callback(invoke_without_command=True)
def explain(
    model: Annotated[str, typer.Argument(help="RUN, RUN@ROUND, or a weights file that `cairn export` wrote.")],
    images: Annotated[
        list[Path],
        typer.Option(help="An image, a folder of images, or a TOML file with a list `labelled`; repeat it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    profile: ProfileOption = Path("operator"),
    *,
    labels: Annotated[
        list[Path] | None, typer.Option(help="Folder of a codebook's label images, for a run with a prior of tissue.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=MOST, help="Pictures at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a PNG for each image: the classes' probabilities and where in the image they come from.

    Of APGA Grad-CAM over the image, and the mask; of attention sampling the places looked at, the attention, and
    Grad-CAM inside the patches.

    * `cairn explain chest --images xray.png --out pictures`

    * `cairn explain chest@12 --images folder --out pictures --most 50`

    * `cairn explain weights.safetensors --images test.toml --out pictures --json`
    """
    trained = named(profile, model, 0)
    found = list(_found(images, trained.config.classes))[:most]
    if not found:
        raise ConfigError(f"there is no image in {', '.join(map(str, images))}; name an image, a folder or a TOML file")
    from agent_trainer.explanation import ready  # noqa: PLC0415 - torch takes seconds
    from agent_trainer.explanation_pictures import draw  # noqa: PLC0415

    explainer = ready(trained, tuple(labels or ()))
    out.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    for path, label in found:
        try:
            explanation = explainer(path)
        except ImageError as error:
            typer.echo(f"left out: {error}", err=True)
            continue
        target = _free(out, path, [Path(one["picture"]) for one in told])
        draw(target, explanation, label)
        answer = {
            name: float(p) for name, p in zip(explanation.classes, explanation.probabilities.tolist(), strict=True)
        }
        told.append({"image": str(path), "label": label, "picture": str(target), "probabilities": answer})
        if not as_json:
            typer.echo(target)
    if not told:
        raise ConfigError("none of the images could be read; see what was left out")
    if as_json:
        print_json({"model": model, "round": trained.number, "explained": told})


def _found(places: list[Path], classes: tuple[str, ...]) -> Iterator[tuple[Path, str | None]]:
    """List images and, where it is known, what they show. Raises ConfigError."""
    from agent_trainer.labelled.settings import read_labelled  # noqa: PLC0415
    from agent_trainer.labelled.sources import load_labelled  # noqa: PLC0415
    from cairn.images import find_images  # noqa: PLC0415

    for place in places:
        if place.suffix in (".toml", ".json"):
            sources = read_labelled(read_list(place, "labelled"), place.parent)
            data = load_labelled(sources, classes, 0.0, learning=False)
            yield from ((example.path, classes[example.label]) for example in data.train)
        elif place.is_dir():
            try:
                yield from ((image.paths[0], None) for image in find_images(place))
            except CairnError as error:
                raise ConfigError(f"{place} has no images: {error}") from error
        elif place.exists():
            yield place, None
        else:
            raise ConfigError(f"{place} is not there; name an image, a folder, or a TOML file with a list `labelled`")


def _free(out: Path, image: Path, taken: list[Path]) -> Path:
    """Return a picture's path that no other picture of this call has."""
    names = [f"{image.stem}.explained.png", f"{image.parent.name}-{image.stem}.explained.png"]
    names += [f"{image.stem}-{number}.explained.png" for number in range(2, len(taken) + 3)]
    return next(out / name for name in names if out / name not in taken)
