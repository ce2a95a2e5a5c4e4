"""`cairn demo`: a whole federation on this machine, from images to one map of tissue states, and what it cost."""

import json
import shutil
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cairn.errors import ConfigError
from cairn.images import find_images
from deploy.dealing import common_bands, deal
from deploy.federation import federation
from deploy.study_run import run_study
from deploy.summary import Summary, print_summary, summarise

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
    seed: Annotated[int, typer.Option(min=0, help="Of the generated tissue.")] = 0,
) -> None:
    """Deal images to sites, run every stage, compare with exact counts, draw, and say what it cost."""
    console = Console()
    out = out.resolve()
    prepare(out)
    states: dict[str, tuple[str, ...]] = {}
    if data is None:
        data, states = generate(out / "data", sites, seed, console)
        if make_data:
            console.print(f"Images: {data}\nTruth:  {data.parent / 'truth'}")
            return
    elif make_data:
        raise ConfigError("--make-data generates images and --data names some that exist; give one of them")
    data = data.resolve()
    bands = common_bands(data)
    hands = deal(find_images(data), sites)
    with federation(out / "federation", hands) as running:
        finished = run_study(running, bands, states, min_sites=sites, top_k=top_k, console=console)
        summary = summarise(running, hands, finished, out / "pictures", console)
        print_summary(summary, console)
        (out / "summary.json").write_text(json.dumps(summary.json(), indent=1), encoding="utf-8")
        if json_file is not None:
            json_file.write_text(json.dumps(summary.json()), encoding="utf-8")
        if open_page:
            webbrowser.open(summary.dashboard)
        if keep or (keep is None and sys.stdin.isatty() and sys.stdout.isatty()):
            wait_for_a_person(summary, console)


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
