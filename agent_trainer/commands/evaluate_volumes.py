"""Volumes that lie here segmented by a model: labels as NIfTI, measures as a table, pictures of the outlines."""

import csv
import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from agent_trainer.commands.watching import print_json
from agent_trainer.rounds.models import Model
from agent_trainer.segmentation.config import SegmentationConfig
from agent_trainer.segmentation.learner import Learner
from agent_trainer.segmentation.measures import KINDS, add, means
from agent_trainer.segmentation.pictures import draw_outline
from agent_trainer.segmentation.whole import Outline, outline
from agent_trainer.volumes.nifti import stem, write_labels
from agent_trainer.volumes.settings import VolumeFiles, read_volume_sources
from agent_trainer.volumes.sources import Case, load_volumes, volume_files
from cairn.errors import ConfigError, ImageError
from cairn.files import write_atomically

TABLE: Final = "measures.csv"
SUMMARY: Final = "measures.json"
HEADINGS: Final = {"dice": "Dice", "hd95_mm": "HD95 mm", "surface_dice": "surface Dice, 1 mm"}


def evaluate(name: str, trained: Model, given: Sequence[Path], *, held_out: bool, out: Path, as_json: bool) -> None:
    """Segment the volumes of files of sources, and of folders without labels; write and print what was found.

    Raises ConfigError when there is none, or none can be read.
    """
    config: SegmentationConfig = trained.config
    learner = Learner(config, seed=0, device="cuda" if torch.cuda.is_available() else "cpu")
    learner.load(trained.weights)
    cases = [(case, labelled) for path in given for case, labelled in _cases(path, config, held_out=held_out)]
    if not cases:
        raise ConfigError(
            f"{', '.join(map(str, given))}: there is no volume to segment; with --held-out some must be set aside for "
            "validation"
        )
    out.mkdir(parents=True, exist_ok=True)
    made: list[Outline] = []
    for place, (case, labelled) in zip(_places([case for case, _ in cases]), cases, strict=True):
        try:
            one = outline(learner, case, labelled=labelled)
        except ImageError as error:
            typer.echo(f"left out: {error}", err=True)
            continue
        write_labels(out / f"{place}.nii.gz", one.found, one.scan)
        draw_outline(out / f"{place}.png", one, config.classes, config.modality)
        made.append(one)
    if not made:
        raise ConfigError(f"none of the {len(cases)} volumes can be read; see the sentences above")
    told = {"model": name, "round": trained.number, "classes": list(config.classes), **_summary(made, config.classes)}
    _write(out, told)
    if as_json:
        print_json({**told, "folder": str(out)})
        return
    if told["measures"]:
        Console().print(_table(told["measures"], config.classes))
    typer.echo(f"{len(made)} volumes segmented; labels, pictures and {TABLE} are in {out}")


def _cases(path: Path, config: SegmentationConfig, *, held_out: bool) -> Iterator[tuple[Case, bool]]:
    """List a folder's volumes, without labels, or the cases of a file's sources, with theirs."""
    if path.is_dir():
        source = VolumeFiles(
            images=path,
            labels=path,
            modality=config.modality,
            classes={name: (k,) for k, name in enumerate(config.classes, 1)},
        )
        for file in volume_files(path):
            yield Case(stem(file), source, stem(file), file), False
        return
    sources = read_volume_sources(_list(path), path.parent)
    found = load_volumes(sources, config.classes, config.modality, config.validation_share, learning=False)
    for problem in found.problems:
        typer.echo(f"left out: {problem}", err=True)
    for case in found.validation if held_out else (*found.train, *found.validation):
        yield case, True


def _list(path: Path) -> str:
    """Return the list `volumes` in a file as JSON. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.dumps((json.loads(text) if path.suffix == ".json" else tomllib.loads(text))["volumes"])
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); name a folder of volumes, or a file with a list `volumes`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has no list `volumes`; write [[volumes]] tables as in site.toml") from error


def _places(cases: Sequence[Case]) -> list[str]:
    """Name the files of each case; of two with one name the later gets a number."""
    taken: dict[str, None] = {}
    for case in cases:
        numbered = (case.name if n == 1 else f"{case.name}-{n}" for n in range(1, len(cases) + 1))
        taken[next(name for name in numbered if name not in taken)] = None
    return list(taken)


def _summary(made: Sequence[Outline], classes: Sequence[str]) -> dict[str, Any]:
    """Say the measures of all volumes together, and of each; null where a class is in neither."""
    known = [one.measured for one in made if one.measured is not None]
    volumes = []
    for one in made:
        of_class = {
            name: {
                kind: None if one.measured is None or math.isnan(value := float(one.measured[k, at])) else value
                for at, kind in enumerate(KINDS)
            }
            for k, name in enumerate(classes)
        }
        counted = np.bincount(one.found.ravel(), minlength=len(classes) + 1)[1:] * math.prod(one.scan.spacing) / 1000
        for name, millilitres in zip(classes, counted.tolist(), strict=True):
            of_class[name]["found_ml"] = millilitres
        volumes.append({"name": one.name, "classes": of_class})
    return {"measures": means(add(known, len(classes)), classes), "volumes": volumes}


def _write(out: Path, told: dict[str, Any]) -> None:
    with write_atomically(out / SUMMARY) as file:
        file.write(json.dumps(told, indent=2).encode())
    with (out / TABLE).open("w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["volume", "class", *KINDS, "found_ml"])
        for volume in told["volumes"]:
            for name, values in volume["classes"].items():
                cells = ("" if values[kind] is None else f"{values[kind]:.6g}" for kind in (*KINDS, "found_ml"))
                rows.writerow([volume["name"], name, *cells])


def _table(measured: dict[str, float], classes: Sequence[str]) -> Table:
    table = Table("class", *HEADINGS.values())
    for name in classes:
        values = (measured.get(f"{kind}/{name}") for kind in KINDS)
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    table.add_row(
        f"mean, {measured['n']:.0f} volumes", *(f"{measured[kind]:.3f}" if kind in measured else "–" for kind in KINDS)
    )
    return table
