"""What privacy costs a study: ε against recall, mass and clusters of the heavy hitters, and what a curious reader gets.

    python -m benchmarks privacy                              prints the figures
    python -m benchmarks.privacy docs/pictures/privacy.png    draws them too

Three sites hold 1,200 simulated images together. The quantiser is the exact study's, so that keys can be compared; the
counts and their verification have the noise of their stages in a study of that ε. All of a unit's clipping is on.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aggregator.study import embedding, recovery, steps, studies
from aggregator.study.layout import Asked, lay_out
from aggregator.study.noise import table_noise
from cairn import kernels
from cairn.errors import StudyError
from cairn.images import Tile
from cairn.pixels import BACKGROUND
from cairn.plan import CountsPlan, PixelStage, Plan, RecoveryPlan
from cairn.study import StudyPrivacy, StudySpec
from cairn.tally import Tables, Tally, add
from edge_node.counting import Counter
from edge_node.privacy.noised import noised
from edge_node.privacy.units import UnitCounter

NUMBA = kernels.load("numba")
SITES, IMAGES, SIDE, TOP = 3, 1200, 40, 200
EPSILONS = (1.0, 4.0, 16.0)
SEEDS = (1, 2, 3)  # of the embedding, for how far two maps of the same counts agree
CLIP = {"pixel": 1, "image": 20}
Levels = npt.NDArray[np.uint16]
KEPT: dict[Any, Tables] = {}  # counts, which are the same for every ε


@dataclass(frozen=True)
class Found:
    """What a study of one ε shows, against the exact one.

    recall  share of the true top keys that are shown
    mass    share of the foreground pixels whose keys are shown
    rand    adjusted Rand index of the clusters over keys that both show
    """

    shown: int
    recall: float
    mass: float
    rand: float


def run() -> Iterator[dict[str, Any]]:
    """Measure the curve for each unit, then what can be read back of one site's tally."""
    images = simulated()
    spec = wanted(None)
    quantiser_plan = fitted(spec, images)
    truth, exact_map = exact_study(spec, quantiser_plan, images)
    for seed in SEEDS:
        rand = other_seed(spec, quantiser_plan, truth, exact_map, seed)
        name = f"privacy/exact/seed_{seed}/rand"
        yield {"name": name, "value": rand, "unit": "index", "ratio": rand, "against": "seed_0"}
    for unit in CLIP:
        for epsilon in EPSILONS:
            found = private_study(unit, epsilon, quantiser_plan, images, truth, exact_map)
            name = f"privacy/{unit}/{epsilon:g}"
            yield {
                "name": f"{name}/recall",
                "value": found.recall,
                "unit": "share",
                "ratio": found.recall,
                "against": "exact",
            }
            yield {
                "name": f"{name}/mass",
                "value": found.mass,
                "unit": "share",
                "ratio": found.mass / truth.mass(TOP),
                "against": "exact",
            }
            yield {
                "name": f"{name}/rand",
                "value": found.rand,
                "unit": "index",
                "ratio": found.rand,
                "against": "exact",
            }
            yield {
                "name": f"{name}/shown",
                "value": found.shown,
                "unit": "keys",
                "ratio": found.shown / TOP,
                "against": "exact",
            }
    yield from read_back(quantiser_plan, images[: IMAGES // SITES])


def simulated(seed: int = 1) -> list[Levels]:
    """Make images: glass, and patches of 24 kinds of cells in mixtures that differ from image to image."""
    rng = np.random.default_rng(seed)
    kinds = rng.gamma(0.8, 700, (24, 6)) + 60
    share = 1 / np.arange(1, 25)
    made = []
    for _ in range(IMAGES):
        mixture = rng.dirichlet(share * 2)
        cells = rng.choice(24, (SIDE // 8, SIDE // 8), p=mixture)
        kind = np.kron(cells, np.ones((8, 8), np.int64))
        light = np.clip(kinds[kind].transpose(2, 0, 1) * rng.gamma(200, 1 / 200, (6, SIDE, SIDE)), 1, 6000)
        light[:, : SIDE // 5] = 20.0  # glass
        made.append(rng.poisson(light).astype(np.uint16))
    return made


def wanted(privacy: StudyPrivacy | None) -> StudySpec:
    """Return the study: 6 bands, 6 components in 16 bins (24 bits), one sketch of 9 x 50,000 over 20 dense bits."""
    return StudySpec(
        name="curve", bands=tuple("abcdef"), min_sites=SITES, dimensions=6, radix=16, depth=9, width=50_000,
        top_k=TOP, clusters=8, n_neighbors=15, range_quantile=0.01, privacy=privacy,
    )  # fmt: skip


def promise(unit: str, epsilon: float) -> StudySpec:
    """Return the same study with a promise."""
    return wanted(
        StudyPrivacy.model_validate(
            {"unit": unit, "epsilon": epsilon, "delta": 1e-6, "clip": CLIP[unit], "brightest": 3000}
        )
    )


def counted(stage: PixelStage, images: list[Levels], plan: Plan | None = None) -> Tables:
    """Count images, unit by unit where the plan says so."""
    terms = plan.privacy if plan else None
    if terms is None or terms.unit == "pixel":
        counter = Counter(stage, NUMBA, 1, terms)
        with counter.image():
            counter.add([Tile(0, 0, 0, np.concatenate(images, axis=1))])
        return counter.tables()
    units = UnitCounter(stage, NUMBA, terms, bytes(32))
    for number, image in enumerate(images):
        with units.unit(), units.image(str(number)):
            units.add([Tile(0, 0, 0, image)])
    return units.tables()


def fitted(spec: StudySpec, images: list[Levels]) -> Plan:
    """Return the exact study's counts plan."""
    plan = studies.moments_plan(spec)
    while not isinstance(plan.stage, CountsPlan):
        following = steps.after_merge(spec, plan, {}, counted(plan.stage, images)).plan  # type: ignore[arg-type]
        assert following is not None
        plan = following
    return plan


@dataclass(frozen=True)
class Truth:
    """Every foreground key and its count, the most frequent first."""

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]

    def mass(self, k: int) -> float:
        """Return the share of the pixels that the top k keys hold."""
        return float(self.counts[:k].sum() / self.counts.sum())

    def of(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the counts of keys."""
        order = np.argsort(self.keys)
        at = order[np.minimum(np.searchsorted(self.keys, keys, sorter=order), len(order) - 1)]
        return np.where(self.keys[at] == keys, self.counts[at], 0)


def exact_study(spec: StudySpec, plan: Plan, images: list[Levels]) -> tuple[Truth, dict[int, int]]:
    """Return the true counts, and the cluster of each of the top keys."""
    assert isinstance(plan.stage, CountsPlan)
    keys = np.concatenate([plan.stage.quantiser.keys(image.reshape(6, -1), NUMBA) for image in images])
    names, counts = np.unique(keys[keys != BACKGROUND], return_counts=True)
    order = np.lexsort((names, -counts))
    truth = Truth(names[order], counts[order])
    return truth, clusters_of(spec, plan, truth.keys[:TOP], truth.counts[:TOP])


def clusters_of(
    spec: StudySpec, plan: Plan, keys: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], seed: int = 0
) -> dict[int, int]:
    """Lay keys out and cluster them, as a study does."""
    assert isinstance(plan.stage, CountsPlan)
    made = embedding.make_map(
        plan.stage.quantiser.keyspace.decode(keys), counts, plan.stage.quantiser,
        Asked(spec.n_neighbors, spec.clusters, "kmeans", seed), {}, lay_out,
    )  # fmt: skip
    return dict(zip(keys.tolist(), made.clusters.tolist(), strict=True))


def other_seed(spec: StudySpec, plan: Plan, truth: Truth, exact_map: dict[int, int], seed: int) -> float:
    """Return the Rand index of the exact study's clusters and another seed's: what a noisy one can be held to."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - seconds to import

    ours = clusters_of(spec, plan, truth.keys[:TOP], truth.counts[:TOP], seed)
    return float(adjusted_rand_score([exact_map[key] for key in ours], list(ours.values())))


def merged(spec: StudySpec, plan: Plan, images: list[Levels]) -> tuple[Plan, Tables]:
    """Let the sites count a plan, add their noise, and sum."""
    plan = studies.as_published(spec, plan)
    assert plan.privacy is not None
    whole: Tables = {}
    for site in range(SITES):
        name = (
            plan.privacy.unit,
            site,
            plan.stage.stage,
            plan.privacy.epsilon if plan.stage.stage == "recovery" else 0,
        )
        if name not in KEPT:
            KEPT[name] = counted(plan.stage, images[site::SITES], plan)  # type: ignore[arg-type]
        exact = KEPT[name]
        bits = np.random.Generator(np.random.PCG64([site, len(exact), int(plan.privacy.epsilon * 1000)]))
        found = noised(plan, Tally(bytes(32), exact), bits.bytes).tables
        if whole:
            add(whole, found)
        else:
            whole = found
    return plan, whole


def private_study(
    unit: str, epsilon: float, counts: Plan, images: list[Levels], truth: Truth, exact_map: dict[int, int]
) -> Found:
    """Run the counts, the search, the verification and the map of one private study."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - seconds to import

    spec = promise(unit, epsilon)
    assert isinstance(counts.stage, CountsPlan)
    plan, tables = merged(spec, counts, images)
    try:
        noise = table_noise(plan, SITES)["dense"]
        found = recovery.candidates(tables, counts.stage, TOP, NUMBA, 1, noise)
        plan, tables = merged(spec, studies.recovery_plan(counts, found.keys), images)
        assert isinstance(plan.stage, RecoveryPlan)
        shown = recovery.verified(tables, plan.stage, TOP, 1, table_noise(plan, SITES)["count"])
    except StudyError:
        return Found(0, 0.0, 0.0, 0.0)
    last = truth.counts[TOP - 1]
    real = truth.of(shown.keys)
    ours = clusters_of(spec, counts, shown.keys, shown.counts)
    both = [key for key in ours if key in exact_map]
    rand = adjusted_rand_score([exact_map[key] for key in both], [ours[key] for key in both]) if len(both) > 1 else 0.0
    return Found(len(real), float((real >= last).sum()) / TOP, float(real.sum() / truth.counts.sum()), float(rand))


def read_back(counts: Plan, images: list[Levels]) -> Iterator[dict[str, Any]]:
    """Read one site's own tally as whoever holds the seeds can: the share of its exact counts that come out right."""
    stage = counts.stage
    assert isinstance(stage, CountsPlan)
    keys = np.concatenate([stage.quantiser.keys(image.reshape(6, -1), NUMBA) for image in images])
    names, true = np.unique(keys[keys != BACKGROUND], return_counts=True)
    spec = replace_promises()
    for what, asked in spec.items():
        plan = studies.as_published(asked, counts) if asked.privacy else counts
        tables = counted(stage, images, plan)
        if plan.privacy is not None:
            whole = replace(plan, privacy=replace(plan.privacy, sites=1, sharers=1), secrecy=None)
            seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "little")
            tables = noised(whole, Tally(bytes(32), tables), np.random.default_rng(seed).bytes).tables
        read = NUMBA.estimate(tables[f"sketch_{stage.sketch_bits[-1]}"], names, stage.sketch.seeds())
        right = float(np.mean(read == true))
        yield {"name": f"privacy/read_back/{what}", "value": right, "unit": "share", "ratio": right, "against": "all"}


def replace_promises() -> dict[str, StudySpec]:
    """Name the tallies that are read: exact, and noised by the site alone."""
    return {"plain": wanted(None), "pixel/8": promise("pixel", 8.0), "image/8": promise("image", 8.0)}


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - seconds to import

    values = {line["name"]: line["value"] for line in lines}
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    titles = {
        "recall": f"true top {TOP} that are shown",
        "mass": "foreground pixels in what is shown",
        "rand": "clusters as in the exact study (Rand)",
    }
    for panel, (what, title) in zip(panels, titles.items(), strict=True):
        for unit, colour in (("pixel", "#2b6cb0"), ("image", "#c05621")):
            curve = [values[f"privacy/{unit}/{epsilon:g}/{what}"] for epsilon in EPSILONS]
            panel.plot(EPSILONS, curve, "o-", color=colour, label=f"each {unit}")
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log", base=2)
        panel.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
        panel.set_xlabel("ε of the whole study, δ = 10⁻⁶")
        panel.set_ylim(-0.03, 1.03)
        panel.grid(alpha=0.3)
    again = sum(values[f"privacy/exact/seed_{seed}/rand"] for seed in SEEDS) / len(SEEDS)
    panels[2].axhline(again, color="#718096", linestyle="--", linewidth=1)
    panels[2].text(16, again + 0.02, "exact, another seed", fontsize=8, color="#718096", ha="right")
    panels[0].legend(title="protects", loc="lower right", fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    import json

    measured = []
    for one in run():
        print(json.dumps(one), flush=True)
        measured.append(one)
    if sys.argv[1:]:
        draw(measured, Path(sys.argv[1]))
