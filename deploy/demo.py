"""`cairn demo`: a whole federation on this machine, from images to one map of tissue states, and what it cost."""

import contextlib
import json
import shutil
import sys
import time
import webbrowser
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from cairn.errors import ConfigError
from cairn.flower import missing_packages
from cairn.images import find_images
from deploy.dealing import common_bands, deal
from deploy.federation import federation
from deploy.study_run import run_study
from deploy.summary import print_summary, summarise
from deploy.tissue import COMPOSITE_BANDS, STATE_RULES, make_tissue
from deploy.training_run import STATE, site_training, train

app = typer.Typer(
    help="Run a whole federation on this machine.\n\n"
    "Examples:\n\n"
    "* `cairn demo --out demo-out` makes tissue images and runs three sites\n"
    "* `cairn demo --data FOLDER --sites 4 --out DIR --json result.json` takes your own images\n"
    "* `cairn demo --make-data --out DIR` only makes the images"
)


@app.callback(invoke_without_command=True)
def demo(
    out: Annotated[Path, typer.Option(help="A new or empty folder for everything.")] = Path("demo-out"),
    data: Annotated[Path | None, typer.Option(help="A folder of images; without it, tissue is generated.")] = None,
    sites: Annotated[int, typer.Option(min=1, max=64, help="Sites to deal the images' folders to.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary to this file as JSON.")] = None,
    make_data: Annotated[bool, typer.Option("--make-data", help="Only generate the tissue images.")] = False,  # noqa: FBT002
    top_k: Annotated[int, typer.Option(min=1, help="Heavy hitters to recover.")] = 20_000,
    keep: Annotated[
        bool | None, typer.Option("--keep/--no-keep", help="Keep the dashboard up afterwards. Default: on a terminal.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the dashboard in a browser.")] = False,  # noqa: FBT002
    images: Annotated[int, typer.Option(min=1, help="Generated images a site.")] = 3,
    side: Annotated[int, typer.Option(min=64, help="Their side in pixels.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Their seed.")] = 0,
) -> None:
    """Deal images to sites, run every stage, compare with exact counts, draw, and say what it cost."""
    console = Console()
    out = out.resolve()
    prepare(out)
    if make_data and data is not None:
        raise ConfigError("--make-data generates images and --data names some that exist; give one of them")
    states, composite = ({}, ()) if data else (STATE_RULES, COMPOSITE_BANDS)
    data = data.resolve() if data else generated(out / "data", Recipe(sites, images, side, seed), console)
    if make_data:
        console.print(f"images  {data}\ntruth   {data.with_name('truth')}", highlight=False, soft_wrap=True)
        return
    bands = common_bands(data)
    hands = deal(find_images(data), sites)
    training = site_training() if STATE in states and can_train(console) else None
    with federation(out / "federation", hands, training) as running:
        finished = run_study(running, bands, states, min_sites=sites, top_k=top_k, console=console)
        with console.status("counting exactly, for comparison, and drawing"):
            summary = summarise(running, hands, finished, composite, out / "pictures")
        if training:
            trained = train(running, min_sites=sites, console=console, pictures=out / "pictures")
            summary = replace(summary, training=trained)
        print_summary(summary, console)
        for path in (out / "summary.json", json_file):
            if path is not None:
                path.write_text(json.dumps(asdict(summary)) + "\n", encoding="utf-8")
        if open_page:
            webbrowser.open(summary.dashboard)
        if keep or (keep is None and sys.stdin.isatty() and sys.stdout.isatty()):
            console.print("The dashboard stays up until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                while all(program.alive() for program in running.programs):
                    time.sleep(1)


def can_train(console: Console) -> bool:
    """Tell whether what training needs is installed; a person is told when it is not."""
    missing = missing_packages()
    if missing:
        console.print(
            f"No training: {' and '.join(missing)} are not installed. pip install 'cairn-federation\\[train]'"
        )
    return not missing


def prepare(out: Path) -> None:
    """Make the output folder; an earlier demo's is replaced, anything else is left alone. Raises ConfigError."""
    ours = {"data", "federation", "pictures", "summary.json"}
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if found - ours:
        raise ConfigError(f"{out} holds {sorted(found - ours)[0]}, which is no demo's; name another folder with --out")
    for name in found - {"data"}:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Recipe:
    """What the generated tissue is made from."""

    folders: int
    images_per_folder: int
    size: int
    seed: int


def generated(folder: Path, recipe: Recipe, console: Console) -> Path:
    """Make tissue by a recipe, or take what an earlier demo made by the same one; returns the folder of images."""
    made = folder / "recipe.json"
    written = json.dumps(asdict(recipe))
    if not (made.is_file() and made.read_text(encoding="utf-8") == written):
        shutil.rmtree(folder, ignore_errors=True)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("making tissue images")
            make_tissue(folder, **asdict(recipe), progress=lambda n, of: bar.update(task, completed=n, total=of))
        made.write_text(written, encoding="utf-8")
    return folder / "images"
