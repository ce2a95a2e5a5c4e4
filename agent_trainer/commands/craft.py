"""`cairn craft …`: more images from few, by augmented copies and by a generative network."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from agent_trainer.commands.watching import print_json
from cairn.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="More images from few: augmented copies, and a generative network. All of it on this machine.\n\n"
    "Examples: `cairn craft augment chest chest-more --copies 4 --set rotate=0.5 --set noise=0.5` · "
    "`cairn craft gan train chest chest-gan`",
)
gan = typer.Typer(no_args_is_help=True, help="A small conditional GAN: images of a class where there are few.")
app.add_typer(gan, name="gan")

ImagesArgument = Annotated[Path, typer.Argument(help="Folder of the images.")]
LabelsOption = Annotated[
    Path | None, typer.Option(help="CSV or JSON with image and label; left out: a folder a class.", show_default=False)
]
PatientOption = Annotated[
    str | None, typer.Option(help="Regular expression whose group 1 is the patient in a file's name.")
]
ClassOption = Annotated[list[str] | None, typer.Option("--class", help="Only these classes; repeat it.")]
ShareOption = Annotated[
    float, typer.Option(min=0, max=0.9, help="Of the patients, who are left out: the run's validation_share.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="The same seed makes the same images.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def augment(
    images: ImagesArgument,
    out: Annotated[Path, typer.Argument(help="New folder for the copies, or one that was begun.")],
    *,
    labels: LabelsOption = None,
    volume_labels: Annotated[
        Path | None, typer.Option(help="The images are NIfTI volumes, and their labels lie in this folder.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks with the images' names.")] = None,
    copies: Annotated[int, typer.Option(min=1, max=1000, help="Of each image.")] = 4,
    seed: SeedOption = 0,
    side: Annotated[int, typer.Option(min=0, max=4096, help="Pixels a side of each copy; 0: as the image.")] = 0,
    patient: PatientOption = None,
    classes: ClassOption = None,
    validation_share: ShareOption = 0.2,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with a table augmentation, such as a search's best.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of augmentation's settings; repeat it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write augmented copies of the images that a run would learn from, each with its patient.

    Patients who would validate get no copies; masks move with their images; nothing is overwritten, and what was cut
    short goes on. docs/craft/augmentation.md says when this is wise.

    * `cairn craft augment chest chest-more --copies 4 --patient '^([0-9]+)_' --set flip=0.5 --set noise=0.5`

    * `cairn craft augment images more --volume-labels labels --config best.toml`
    """
    from agent_trainer.craft.augmentation import Augmentation  # noqa: PLC0415 - torch takes seconds
    from agent_trainer.craft.offline import Copied, Order, check_apart, summary, write_copies  # noqa: PLC0415
    from agent_trainer.craft.originals import of_labelled, of_volumes  # noqa: PLC0415
    from agent_trainer.settings import read_settings  # noqa: PLC0415

    found = read_settings(Augmentation, json.dumps(_asked(config, settings or [])), "augmentation")
    if found.off:
        raise ConfigError("nothing would happen to the copies; give at least one probability, such as --set rotate=0.5")
    check_apart(out, *(folder for folder in (images, masks, volume_labels) if folder is not None))
    if volume_labels is not None:
        originals, problems = of_volumes(images, volume_labels, patient, validation_share)
    else:
        source = _source(images, labels, patient)
        originals, problems = of_labelled(source, classes or (), validation_share, masks)
    last = Copied(0, 0, 0)
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        bar = progress.add_task(f"{copies} copies each", total=len(originals))
        for last in write_copies(originals, out, Order(found, copies, seed, side)):
            progress.update(bar, completed=last.originals)
    problems = (*problems, *last.problems)
    _tell(problems, as_json, summary(last))
    if as_json:
        return
    typer.echo(f"{last.written} copies of {last.originals} images written, {last.there} were there")
    if volume_labels is not None:
        pattern = patient or "^(.+)[.][0-9]+$"
        typer.echo(f'to learn from them: a source of volumes with images, labels (its masks) and patient = "{pattern}"')
    else:
        typer.echo(f'to learn from them: a labelled source of kind "files" with {out.name}/labels.csv and its images')


@gan.command()
def train(
    images: ImagesArgument,
    out: Annotated[Path, typer.Argument(help="File for the generator, such as chest-gan.safetensors.")],
    *,
    labels: LabelsOption = None,
    patient: PatientOption = None,
    classes: ClassOption = None,
    validation_share: ShareOption = 0.2,
    updates: Annotated[int, typer.Option(min=1, help="Of both networks.")] = 3000,
    seed: SeedOption = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the GAN's settings.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn to make images of each class, from those that a run would learn from.

    Patients who would validate are not learned from. docs/craft/gan.md says when not to do this, which is often.

    * `cairn craft gan train chest chest-gan.safetensors --patient '^([0-9]+)_' --set side=32`
    """
    from agent_trainer.craft.gan import Gan, GanConfig, save  # noqa: PLC0415 - torch takes seconds
    from agent_trainer.craft.originals import of_labelled, read_pictures  # noqa: PLC0415
    from agent_trainer.settings import read_settings  # noqa: PLC0415

    if out.exists():
        raise ConfigError(f"{out} is there; nothing is overwritten, name a new file")
    originals, problems = of_labelled(_source(images, labels, patient), classes or (), validation_share, None)
    words = sorted({original.word for original in originals})
    asked = {**_settings(settings or []), "classes": words, "updates": updates}
    config = read_settings(GanConfig, json.dumps(asked), "GAN")
    pixels, places, broken = read_pictures(originals, words, config.side, config.channels)
    learner = Gan(config, seed)
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as shown:
        bar = shown.add_task("training", total=updates)
        for last in learner.train(pixels, places):
            shown.update(bar, completed=last.update)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(learner, out, {"seed": str(seed), "images": str(len(pixels))})
    _tell((*problems, *broken), as_json, {"images": len(pixels), "classes": words, "updates": last.update})
    if not as_json:
        typer.echo(f"{out} written, from {len(pixels)} images of {', '.join(words)}")


@gan.command(name="sample")
def sample_(
    model: Annotated[Path, typer.Argument(help="File that `cairn craft gan train` wrote.")],
    out: Annotated[Path, typer.Argument(help="New folder for the images, a folder a class.")],
    *,
    each: Annotated[int, typer.Option(min=1, max=100_000, help="Images of each class.")] = 100,
    classes: ClassOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Make images of each class, for learning only: never validate on them.

    * `cairn craft gan sample chest-gan.safetensors chest-made --each 200 --class Pneumonia`
    """
    from agent_trainer.craft.gan import load, write_samples  # noqa: PLC0415 - torch takes seconds

    made, config, _ = load(model)
    written = write_samples(made, config, out, classes or config.classes, each, seed)
    if as_json:
        print_json({"images": written})
    else:
        typer.echo(
            f"{written} images written; to learn from them, and never to validate on them: a labelled source of kind "
            f'"files" with {out.name}/labels.csv, its images, and validation = "none"'
        )


def _tell(problems: tuple[str, ...], as_json: bool, told: dict[str, Any]) -> None:  # noqa: FBT001
    if as_json:
        print_json({**told, "problems": list(problems)})
        return
    for problem in problems:
        typer.echo(problem, err=True)


def _source(images: Path, labels: Path | None, patient: str | None) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415

    from agent_trainer.labelled.settings import LabelledFiles, LabelledFolders  # noqa: PLC0415

    if not images.is_dir():
        raise ConfigError(f"{images} is no folder; name the one in which the images lie")
    try:
        if labels is None:
            return LabelledFolders(images=images, patient=patient)
        return LabelledFiles(labels=labels, images=images, patient=patient)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _asked(config: Path | None, settings: list[str]) -> dict[str, Any]:
    """Read the table augmentation of a file, and options before it."""
    table: dict[str, Any] = {}
    if config is not None:
        try:
            read = tomllib.loads(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{config} cannot be read ({error.strerror}); name a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} is no TOML file: {error}") from error
        read = read.get("settings", read)  # as a search writes it, and a run's file has it
        table = read.get("augmentation", {}) if isinstance(read, dict) else {}
        if not table:
            raise ConfigError(f"{config} has no table augmentation; expected one with probabilities")
    return table | _settings(settings)


def _settings(settings: list[str]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        try:
            if not equals:
                raise ConfigError(f"--set {setting}: expected NAME=VALUE, such as rotate=0.5")
            read[name] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE in TOML, such as rotate=0.5") from error
    return read
