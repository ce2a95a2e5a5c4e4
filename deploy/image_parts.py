"""`python deploy/image_parts.py`: which packages each image holds, and which part of Cairn; for deploy/Dockerfile.

Needs nothing but Python, as it runs before anything is installed.
"""

import argparse
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any, Final

EXTRAS: Final = {"train": ("train",), "aggregator": ("train", "postgresql", "s3"), "gpu": ("train", "gpu")}
EVERYWHERE: Final = "otel"  # traces, where the settings ask for them
PARTS: Final = {
    "edge-sketch": ("cairn", "edge_node"),
    "edge": ("cairn", "edge_node", "agent_trainer"),
    "aggregator": ("cairn", "edge_node", "agent_trainer", "aggregator", "deploy"),
}
_ENTRY = re.compile(r'\w+ = "(?P<package>\w+)\.[\w.]+:app"')


def lists(project: Path, out: Path) -> None:
    """Write a requirements file for each layer: edge-sketch.txt, train.txt, aggregator.txt, gpu.txt."""
    known: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8"))
    wanted, extras = known["project"]["dependencies"], known["project"]["optional-dependencies"]
    absent = known["tool"]["cairn"]["images"]["not-at-the-edge"]
    if unknown := sorted(set(absent) - set(wanted)):
        raise SystemExit(f"{project}: tool.cairn.images.not-at-the-edge names {unknown[0]}, which is no dependency")
    layers = {"edge-sketch": [name for name in wanted if name not in absent] + extras[EVERYWHERE]}
    layers |= {layer: [one for extra in named for one in extras[extra]] for layer, named in EXTRAS.items()}
    layers["aggregator"] += absent
    out.mkdir(parents=True, exist_ok=True)
    for layer, names in layers.items():
        (out / f"{layer}.txt").write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


def cut(source: Path, part: str, out: Path) -> None:
    """Copy what an image needs of the sources, and of the commands those that are there then."""
    kept = PARTS[part]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for package in kept:
        shutil.copytree(source / package, out / package, ignore=shutil.ignore_patterns("wheels*", "__pycache__"))
    shutil.copy(source / "README.md", out)
    lines = (source / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    entries = ((line, _ENTRY.fullmatch(line)) for line in lines)
    left = [line for line, entry in entries if entry is None or entry["package"] in kept]
    (out / "pyproject.toml").write_text("\n".join(left) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("lists")
    listing.add_argument("project", type=Path)
    listing.add_argument("out", type=Path)
    cutting = commands.add_parser("cut")
    cutting.add_argument("source", type=Path)
    cutting.add_argument("part", choices=sorted(PARTS))
    cutting.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "lists":
        lists(given.project, given.out)
    else:
        cut(given.source, given.part, given.out)


if __name__ == "__main__":
    main()
