"""Augmentation on real images, with equal updates: pneumonia in `cxr_nih224`, and the hippocampus in three dimensions.

    python -m benchmarks.craft_augmentation classify --seeds 0 1 2 3 4 > FILE.jsonl
    python -m benchmarks.craft_augmentation segment --seeds 0 1 2 3 4 >> FILE.jsonl
    python -m benchmarks.craft_augmentation table FILE.jsonl
    python -m benchmarks.craft_augmentation picture docs/pictures/craft-augmentation.png
    python -m benchmarks.craft_augmentation gan-picture docs/pictures/craft-gan.png

One thread; a seed is that of the weights, the order, the changes, and which few images are learned from.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.classification import count, measures
from agent_trainer.craft.augmentation import Augmentation, augment
from agent_trainer.craft.gan import Gan, GanConfig, sample
from agent_trainer.labelled.sources import Labelled
from benchmarks.apga_cxr import few, read_cxr, train
from benchmarks.craft_domains import scanned, write

Line = dict[str, Any]
VOLUMES: Final = Path(__file__).parents[2] / "shared" / "data" / "dev" / "hippocampus"
PATCH, BATCH, LEARNED, TESTED = 32, 4, 6, 16  # voxels a side, patches an update, volumes to learn from and to test on

MOVED: Final = {"rotate": 0.5, "zoom": 0.5, "shift": 0.5}
TONED: Final = {"sharpen": 0.5, "smooth": 0.5, "noise": 0.5, "contrast": 0.5, "intensity_shift": 0.5}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "moved": {**MOVED, "flip": 0.5, "flip_axes": (1,)},  # of a chest, left and right
    "toned": TONED,
    "all": {**MOVED, **TONED, "elastic": 0.5, "flip": 0.5, "flip_axes": (1,)},
}
IN_SPACE: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "moved": {**MOVED, "elastic": 0.5},
    "all": {**MOVED, **TONED, "elastic": 0.5},  # no flip: a left hippocampus is no mirror image of a right one here
}


def classify(seeds: Sequence[int], shots: Sequence[int], updates: int) -> Iterator[Line]:
    """Train the small classifier with each recipe; test it as it is, and on what another scanner might make."""
    found = read_cxr(validate=False)
    with tempfile.TemporaryDirectory() as folder:
        learn, test = (
            write(some, "A", Path(folder) / name) for some, name in ((found.train, "learn"), (found.validation, "test"))
        )
        for number, (seed, many, recipe) in enumerate(itertools.product(seeds, shots, RECIPES)):
            yield _classified(
                Labelled(few(learn, many, seed), test), many, recipe, seed, updates, Path(folder) / str(number)
            )


def _classified(labelled: Labelled, many: int, recipe: str, seed: int, updates: int, folder: Path) -> Line:
    config = ApgaConfig(
        classes=("No_findings", "Pneumonia"),
        method="none",
        side=64,
        channels=1,
        classifier="small",
        learning_rate=1e-3,
        pretrain_updates=0,
        augmentation=Augmentation(**RECIPES[recipe]),
    )
    practice = ApgaPractice(labelled, config, seed, "cpu", folder)
    began = time.process_time()
    train(practice, updates)
    cpu = time.process_time() - began
    rng = np.random.default_rng(0)
    other = np.stack([scanned(image[0], "C", rng)[None] for image in practice.held_out])
    told = {
        where: measures(count(practice.answers(pixels), practice.held_out_labels), config.classes)["auc"]
        for where, pixels in (("here", practice.held_out), ("elsewhere", other))
    }
    name = f"augmentation/cxr/{many} a class/{recipe}"
    return {"name": name, "value": told["here"], "unit": "AUC", **told, "seed": seed, "cpu_s": round(cpu, 1)}


def segment(seeds: Sequence[int], updates: int, recipes: Sequence[str]) -> Iterator[Line]:
    """Train a small U-Net on patches of a few volumes with each recipe; test on whole volumes of others."""
    names = sorted(path.name for path in (VOLUMES / "images").iterdir())
    for seed in seeds:
        chosen = np.random.default_rng(seed).permutation(len(names))[: LEARNED + TESTED]
        cases = [_volume(names[i]) for i in chosen]
        for recipe in recipes:
            began = time.process_time()
            model = _learned(cases[:LEARNED], Augmentation(**IN_SPACE[recipe]), seed, updates)
            cpu = time.process_time() - began
            dice = statistics.mean(_dice(model, *case) for case in cases[LEARNED:])
            name = f"augmentation/hippocampus/{LEARNED} volumes/{recipe}"
            yield {"name": name, "value": dice, "unit": "Dice", "seed": seed, "cpu_s": round(cpu, 1)}


def _volume(name: str) -> tuple[Tensor, Tensor]:
    """Read a volume, its 5th and 95th percentile 0 and 1, and its labels; padded to a multiple of 4 and a patch."""
    image = np.asarray(nibabel.load(VOLUMES / "images" / name).dataobj, np.float32)
    labels = np.asarray(nibabel.load(VOLUMES / "labels" / name).dataobj).astype(np.int64)
    low, high = np.percentile(image, (5, 95))
    image = np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
    pad = [(0, max(PATCH, -(-n // 4) * 4) - n) for n in image.shape]
    return torch.from_numpy(np.pad(image, pad)), torch.from_numpy(np.pad(labels, pad))


def _learned(cases: Sequence[tuple[Tensor, Tensor]], settings: Augmentation, seed: int, updates: int) -> Any:
    from monai.losses.dice import DiceCELoss  # noqa: PLC0415 - takes seconds
    from monai.networks.nets.unet import UNet  # noqa: PLC0415

    torch.manual_seed(seed)
    model = UNet(3, 1, 3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    adam, loss = torch.optim.Adam(model.parameters(), 1e-2), DiceCELoss(to_onehot_y=True, softmax=True)
    rng = np.random.default_rng(seed)
    for _ in range(updates):
        images, masks = [], []
        for place in rng.integers(len(cases), size=BATCH):
            image, labels = cases[place]
            at = [int(rng.integers(n - PATCH + 1)) for n in image.shape]
            cut = tuple(slice(a, a + PATCH) for a in at)
            images.append(image[cut])
            masks.append(labels[cut])
        x, y = augment(torch.stack(images)[:, None], torch.stack(masks), settings, rng)
        assert y is not None
        adam.zero_grad()
        loss(model(x), y[:, None]).backward()
        adam.step()
    return model.eval()


def _dice(model: Any, image: Tensor, labels: Tensor) -> float:
    """Return the mean Dice of the front and the back of the hippocampus."""
    with torch.inference_mode():
        found = model(image[None, None])[0].argmax(0)
    scores = []
    for label in (1, 2):
        a, b = found == label, labels == label
        scores.append(float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1)))
    return statistics.mean(scores)


def table(lines: Sequence[Line]) -> str:
    """Lay lines out: mean ± standard deviation over seeds, and the gain over nothing seed by seed."""
    rows = ["| | seeds | here | gain | other scanner | gain | CPU s |", "|---|---|---|---|---|---|---|"]
    of_name: dict[str, dict[int, Line]] = {}
    for line in lines:
        of_name.setdefault(line["name"], {})[line["seed"]] = line
    for name, of in of_name.items():
        base = of_name[f"{name.rsplit('/', 1)[0]}/none"]
        cells = []
        for figure in ("value", "elsewhere"):
            told = {seed: 100 * line[figure] for seed, line in of.items() if figure in line}
            gains = [value - 100 * base[seed][figure] for seed, value in told.items() if seed in base]
            cells += [_spread(list(told.values())), _spread(gains)] if told else ["", ""]
        cpu = statistics.mean(line["cpu_s"] for line in of.values())
        rows.append(f"| {name.removeprefix('augmentation/')} | {len(of)} | {' | '.join(cells)} | {cpu:.0f} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def slice_with_mask(side: int = 128, seed: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make up a section through a body with two kidneys, one with a mass: float32[side, side], and labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]

    def inside(cy: float, cx: float, ry: float, rx: float, tilt: float = 0.0) -> npt.NDArray[np.bool_]:
        u, v = y - cy, x - cx
        u, v = u * np.cos(tilt) - v * np.sin(tilt), u * np.sin(tilt) + v * np.cos(tilt)
        return np.asarray((u / ry) ** 2 + (v / rx) ** 2 < 1)

    image = np.full((side, side), 0.02)
    image[inside(0, 0, 0.72, 0.92)] = 0.30
    image[inside(0, 0, 0.66, 0.86)] = 0.42
    image[inside(0.42, 0, 0.16, 0.14)] = 0.85  # spine
    image[inside(-0.22, 0.1, 0.22, 0.4, 0.3)] = 0.5
    kidneys = inside(0.15, -0.5, 0.26, 0.15, 0.3) | inside(0.15, 0.5, 0.26, 0.15, -0.3)
    mass = inside(0.02, 0.58, 0.12, 0.11)
    image[kidneys], image[mass] = 0.66, 0.56
    labels = np.where(mass, 2, np.where(kidneys, 1, 0))
    grain = functional.avg_pool2d(torch.from_numpy(rng.normal(0, 0.12, (1, 1, side, side))), 3, 1, 1)[0, 0].numpy()
    return (image + grain).clip(0, 1).astype(np.float32), labels.astype(np.int64)


def picture(path: Path) -> None:
    """Draw a made-up section with its labels' outline as it is, and after each change, stronger than usual."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    image, labels = slice_with_mask()
    shown: list[tuple[str, dict[str, Any]]] = [
        ("as it is", {}),
        ("flip", {"flip": 1, "flip_axes": (1,)}),
        ("rotate", {"rotate": 1, "rotate_degrees": 25}),
        ("zoom", {"zoom": 1, "zoom_factor": 1.4}),
        ("shift", {"shift": 1, "shift_share": 0.15}),
        ("crop", {"crop": 1, "crop_share": 0.6}),
        ("elastic", {"elastic": 1, "elastic_amount": 0.035, "elastic_smoothness": 0.1}),
        ("smooth", {"smooth": 1, "smooth_sigma": 2.5}),
        ("sharpen", {"sharpen": 1, "sharpen_amount": 4}),
        ("contrast", {"contrast": 1, "contrast_gamma": 2.5}),
        ("intensity shift", {"intensity_shift": 1, "intensity_amount": 0.3}),
        ("noise", {"noise": 1, "noise_deviation": 0.12}),
    ]
    figure = Figure((9.6, 7.4), 90, layout="constrained", facecolor="white")
    for axes, (title, settings) in zip(figure.subplots(3, 4).flat, shown, strict=True):
        x, y = augment(
            torch.from_numpy(image)[None, None],
            torch.from_numpy(labels)[None],
            Augmentation(**settings),
            np.random.default_rng(6 if title == "contrast" else 20),
        )
        assert y is not None
        axes.imshow(x[0, 0].numpy(), "gray", vmin=0, vmax=1)
        axes.contour((y[0] == 1).numpy(), [0.5], colors="#56b4e9", linewidths=1.2)
        axes.contour((y[0] == 2).numpy(), [0.5], colors="#e69f00", linewidths=1.2)
        axes.set_title(title, size=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path, metadata={"Software": None})


def shapes(many: int, side: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Make up discs and upright bars of any place and brightness on noise: uint8[n, 1, side, side], and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(many) % 2
    y, x = np.mgrid[:side, :side]
    images = rng.normal(40, 10, (many, 1, side, side))
    for image, label in zip(images, labels, strict=True):
        cy, cx = rng.integers(side // 3, side - side // 3, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < side
        bar = (np.abs(x - cx) < side / 16) & (np.abs(y - side / 2) < 0.44 * side)
        image[0][bar if label else disc] += rng.uniform(120, 180)
    return images.clip(0, 255).astype(np.uint8), labels


def gan_picture(path: Path, updates: int) -> None:
    """Train a GAN on made-up shapes and draw real ones and its own, untrained, halfway and trained."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    config = GanConfig(
        classes=("disc", "bar"), side=16, latent=16, width=16, learning_rate=5e-4, discriminator_rate=2e-3, average=0.98
    )
    images, labels = shapes(120, 16, 0)
    gan, asked = Gan(config, 0), np.repeat([0, 1], 8)
    real = np.concatenate([images[labels == label][:8] for label in (0, 1)])
    rows = {"real": real, "made, before learning": sample(gan.made, config, asked, 0)}
    for progress in gan.train(images, labels, updates):
        if progress.update in (updates // 4, updates):
            rows[f"made, after {progress.update} updates"] = sample(gan.made, config, asked, 0)
    figure = Figure((10, 3.4), 130, layout="constrained", facecolor="white")
    for axes, (title, shown) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(np.concatenate(np.pad(shown[:, 0], ((0, 0), (1, 1), (1, 1)), constant_values=255), 1), "gray")
        axes.set_ylabel(title.replace(", ", ",\n"), rotation=0, ha="right", va="center", size=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Measure, or lay out what was measured, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classify", "segment", "table", "picture", "gan-picture"))
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--shots", type=int, nargs="+", default=[50])
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--recipes", nargs="+", default=list(IN_SPACE), help="of segment")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    match asked.what:
        case "table":
            print(table([json.loads(line) for line in asked.path.read_text(encoding="utf-8").splitlines()]))
        case "picture":
            picture(asked.path)
        case "gan-picture":
            gan_picture(asked.path, asked.updates)
        case what:
            measured = (
                classify(asked.seeds, asked.shots, asked.updates)
                if what == "classify"
                else segment(asked.seeds, asked.updates, asked.recipes)
            )
            for line in measured:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
