"""What privacy costs a study of real images: the curve of `benchmarks.privacy` for the top 20,000 of two data sets.

    python -m benchmarks.privacy_real FOLDER [PICTURE-PREFIX]      FOLDER: the folder of mibi41 and bccd

mibi   four fields of breast tissue of four patients, 41 channels of 1024 x 1024, a site each; the study's defaults: 8
       components in 22 bins (36 bits), 16 x 200,000 over 20 dense bits. A field is an image and a patient: four units
smear  blood smears of 640 x 480 in three colours, dealt to three sites; 3 components in 64 bins, all 18 bits dense
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.privacy import Case, Levels, curve, draw
from cairn.study import StudySpec

TOP = 20_000


def cases(folder: Path) -> Iterator[Case]:
    """Read the data sets, one after another."""
    fields = [tissue(field) for field in sorted((folder / "mibi41").iterdir()) if field.is_dir()]
    bands = tuple(f"band{number}" for number in range(len(fields[0])))
    spec = StudySpec(name="mibi", bands=bands, min_sites=len(fields), top_k=TOP)
    yield Case("mibi", spec, [[field] for field in fields], {"pixel": 1, "image": 200}, 100)
    smears = [smear(path) for path in sorted((folder / "bccd").rglob("*.jpg"))]
    spec = StudySpec(name="smear", bands=("red", "green", "blue"), min_sites=3, dimensions=3, radix=64, top_k=TOP)
    yield Case("smear", spec, [smears[site::3] for site in range(3)], {"pixel": 1, "image": 100}, 440)


def tissue(folder: Path) -> Levels:
    """Read a field, a file a channel; uint16[channels, 1024, 1024]."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.tif*"))]).astype(np.uint16)


def smear(path: Path) -> Levels:
    """Read a smear; uint16[3, 480, 640]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.uint16)


def main(folder: Path, pictures: str = "") -> None:
    """Measure each case, print a line a figure, and draw it."""
    for case in cases(folder):
        lines: list[dict[str, Any]] = []
        for line in curve(case, (1,)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            lines.append(line)
        if pictures:
            keys = int(lines[0]["value"])
            draw(lines, Path(f"{pictures}-{case.name}.png"), f"privacy_{case.name}", min(TOP, keys))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
