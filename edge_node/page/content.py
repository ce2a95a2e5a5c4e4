"""What stands on the page, in words."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge_node.audit import Line

STAGES = {
    "moments": "sums and products of the bands' values over all pixels",
    "ranges": "histograms of brightness and colour direction",
    "counts": "how often each kind of pixel occurs, as a count sketch",
    "recovery": "exact counts of the kinds that the federation already found",
    "codebook": "pixel counts and mean values of each cluster",
    "replay_ranges": "how often each grey level occurs in the coarse cells that the agent sees",
    "replay": "how often each kind of step of the agent occurs, as a count sketch",
}


@dataclass(frozen=True)
class Picture:
    """A label image's picture.

    path  below the labels' folder, with forward slashes
    """

    path: str
    study: str
    name: str
    made: datetime


def departures(path: Path) -> Callable[[], tuple[list[Line], int]]:
    """Return a function that reads what was added to the audit log since it was last called.

    It gives all lines, newest first, and the bytes of all tallies that left.
    """
    seen: list[Line] = []
    offset = 0

    def read() -> tuple[list[Line], int]:
        nonlocal offset
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                for raw in file:
                    if not raw.endswith(b"\n"):
                        break
                    seen.append(Line(**json.loads(raw)))
                    offset += len(raw)
        return seen[::-1], sum(line.size for line in seen if line.event != "acknowledged")

    return read


def label_pictures(folder: Path) -> list[Picture]:
    """List the pictures of label images, newest first."""
    found = [(path.stat().st_mtime, path) for path in _pngs(folder)]
    pictures = []
    for made, path in sorted(found, key=lambda one: (-one[0], one[1])):
        below = path.relative_to(folder)
        study = below.parts[0]
        name = Path(*below.parts[1:]).as_posix().removesuffix(".png").removesuffix(".states")
        pictures.append(Picture(below.as_posix(), study, name, datetime.fromtimestamp(made).astimezone()))
    return pictures


def _pngs(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".zarr")]
        if Path(root) != folder:
            yield from (Path(root) / name for name in files if name.endswith(".png") and not name.startswith("."))


def size_words(size: int) -> str:
    """Write a number of bytes for a person: 12.3 MB."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def time_words(time: str | datetime) -> str:
    """Write a time in the site's own clock: 3 Feb 14:05."""
    local = (datetime.fromisoformat(time) if isinstance(time, str) else time).astimezone()
    return f"{local.day} {local:%b %H:%M}"


def stage_words(stage: str) -> str:
    """Say what a stage's tally holds."""
    return STAGES.get(stage, stage)


def figure_words(value: float) -> str:
    """Write a figure of a round for a person: four digits at most."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}".replace(",", " ")
