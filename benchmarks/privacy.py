"""What privacy costs a study: ε against recall, mass and clusters of the heavy hitters, and what a curious reader gets.

    python -m benchmarks privacy                              prints the figures
    python -m benchmarks.privacy docs/pictures/privacy.png    draws them too

Three sites hold 1,200 simulated images together, four of each patient; real images are in `benchmarks.privacy_real`.
The quantiser is the exact study's, so that keys can be compared; the counts and their verification have the noise of
their stages in a study of that ε. All of a unit's clipping is on.
"""

import hashlib
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
PER_PATIENT = 4  # images, which follow one another
EPSILONS = (1.0, 4.0, 16.0)
SEEDS = (1, 2, 3)  # of the embedding, for how far two maps of the same counts agree
CLIP = {"pixel": 1, "image": 20, "patient": 40}
Levels = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Case:
    """Images and a study of them.

    spec        the exact study
    sites       the images of each
    clip        of each unit that is tried
    together    images that follow one another and are one patient's
    kept        counts, which are the same for every ε
    """

    name: str
    spec: StudySpec
    sites: Sequence[Sequence[Levels]]
    clip: Mapping[str, int]
    brightest: int
    together: int = 1
    kept: dict[Any, Tables] = field(default_factory=dict)

    @property
    def images(self) -> list[Levels]:
        """All images, site by site."""
        return [image for site in self.sites for image in site]

    def promise(self, unit: str, epsilon: float) -> StudySpec:
        """Return the same study with a promise."""
        terms = {"unit": unit, "epsilon": epsilon, "delta": 1e-6, "clip": self.clip[unit], "brightest": self.brightest}
        return self.spec.model_copy(update={"privacy": StudyPrivacy.model_validate(terms)})


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
    ordered = [image for n in range(IMAGES // PER_PATIENT) for image in images[n :: IMAGES // PER_PATIENT]]
    third = IMAGES // SITES
    case = Case("simulated", wanted(), [ordered[n * third :][:third] for n in range(SITES)], CLIP, 3000, PER_PATIENT)
    counts = yield from curve(case)
    yield from read_back(case, counts, case.sites[0])


def curve(case: Case, seeds: Sequence[int] = SEEDS) -> Generator[dict[str, Any], None, Plan]:
    """Measure recall, mass and clusters against ε for each of a case's units; returns the exact study's counts plan."""
    name = "privacy" if case.name == "simulated" else f"privacy_{case.name}"
    plan = fitted(case)
    truth, exact_map = exact_study(case, plan)
    top = case.spec.top_k
    yield {"name": f"{name}/exact/keys", "value": len(truth.keys), "unit": "keys", "ratio": None, "against": None}
    yield {"name": f"{name}/exact/mass", "value": truth.mass(top), "unit": "share", "ratio": None, "against": None}
    for seed in seeds:
        rand = other_seed(case, plan, truth, exact_map, seed)
        line = f"{name}/exact/seed_{seed}/rand"
        yield {"name": line, "value": rand, "unit": "index", "ratio": rand, "against": "seed_0"}
    for unit in case.clip:
        for epsilon in EPSILONS:
            found = private_study(case, unit, epsilon, plan, truth, exact_map)
            for what, value, measure, exact in (
                ("recall", found.recall, "share", 1.0),
                ("mass", found.mass, "share", truth.mass(top)),
                ("rand", found.rand, "index", 1.0),
                ("shown", found.shown, "keys", float(top)),
            ):
                line = f"{name}/{unit}/{epsilon:g}/{what}"
                yield {"name": line, "value": value, "unit": measure, "ratio": value / exact, "against": "exact"}
    return plan


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


def wanted() -> StudySpec:
    """Return the study: 6 bands, 6 components in 16 bins (24 bits), one sketch of 9 x 50,000 over 20 dense bits."""
    return StudySpec(
        name="curve", bands=tuple("abcdef"), min_sites=SITES, dimensions=6, radix=16, depth=9, width=50_000,
        top_k=TOP, clusters=8, n_neighbors=15, range_quantile=0.01,
    )  # fmt: skip


def counted(stage: PixelStage, images: Sequence[Levels], plan: Plan | None = None, together: int = 1) -> Tables:
    """Count images, unit by unit where the plan says so."""
    terms = plan.privacy if plan else None
    if terms is None or terms.unit == "pixel":
        counter = Counter(stage, NUMBA, 1, terms)
        for image in images:
            with counter.image():
                counter.add([Tile(0, 0, 0, image)])
        return counter.tables()
    units, size = UnitCounter(stage, NUMBA, terms, bytes(32)), together if terms.unit == "patient" else 1
    for first in range(0, len(images), size):
        with units.unit():
            for number, image in enumerate(images[first : first + size], first):
                with units.image(str(number)):
                    units.add([Tile(0, 0, 0, image)])
    return units.tables()


def fitted(case: Case) -> Plan:
    """Return the exact study's counts plan."""
    plan = studies.moments_plan(case.spec)
    while not isinstance(plan.stage, CountsPlan):
        following = steps.after_merge(case.spec, plan, {}, counted(plan.stage, case.images)).plan  # type: ignore[arg-type]
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


def exact_study(case: Case, plan: Plan) -> tuple[Truth, dict[int, int]]:
    """Return the true counts, and the cluster of each of the top keys."""
    assert isinstance(plan.stage, CountsPlan)
    keys = np.concatenate([plan.stage.quantiser.keys(image.reshape(len(image), -1), NUMBA) for image in case.images])
    names, counts = np.unique(keys[keys != BACKGROUND], return_counts=True)
    order = np.lexsort((names, -counts))
    truth, top = Truth(names[order], counts[order]), case.spec.top_k
    return truth, clusters_of(case.spec, plan, truth.keys[:top], truth.counts[:top])


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


def other_seed(case: Case, plan: Plan, truth: Truth, exact_map: dict[int, int], seed: int) -> float:
    """Return the Rand index of the exact study's clusters and another seed's: what a noisy one can be held to."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - seconds to import

    top = case.spec.top_k
    ours = clusters_of(case.spec, plan, truth.keys[:top], truth.counts[:top], seed)
    return float(adjusted_rand_score([exact_map[key] for key in ours], list(ours.values())))


def merged(case: Case, spec: StudySpec, plan: Plan) -> tuple[Plan, Tables]:
    """Let the sites count a plan, add their noise, and sum."""
    plan = studies.as_published(spec, plan)
    terms = plan.privacy
    assert terms is not None
    whole: Tables = {}
    for site, images in enumerate(case.sites):
        name = (terms.unit, site, plan.stage.stage, terms.epsilon if plan.stage.stage == "recovery" else 0)
        if name not in case.kept:
            case.kept[name] = counted(plan.stage, images, plan, case.together)  # type: ignore[arg-type]
        exact = case.kept[name]
        bits = np.random.Generator(np.random.PCG64([site, len(exact), int(terms.epsilon * 1000)]))
        found = noised(plan, Tally(bytes(32), exact), bits.bytes).tables
        if whole:
            add(whole, found)
        else:
            whole = found
    return plan, whole


def private_study(
    case: Case, unit: str, epsilon: float, counts: Plan, truth: Truth, exact_map: dict[int, int]
) -> Found:
    """Run the counts, the search, the verification and the map of one private study."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - seconds to import

    spec, top, sites = case.promise(unit, epsilon), case.spec.top_k, len(case.sites)
    assert isinstance(counts.stage, CountsPlan)
    plan, tables = merged(case, spec, counts)
    try:
        noise = table_noise(plan, sites)["dense"]
        found = recovery.candidates(tables, counts.stage, top, NUMBA, 1, noise)
        plan, tables = merged(case, spec, studies.recovery_plan(counts, found.keys))
        assert isinstance(plan.stage, RecoveryPlan)
        shown = recovery.verified(tables, plan.stage, top, 1, table_noise(plan, sites)["count"])
    except StudyError:
        return Found(0, 0.0, 0.0, 0.0)
    first = min(top, len(truth.counts))
    real = truth.of(shown.keys)
    recall, mass = float((real >= truth.counts[first - 1]).sum()) / first, float(real.sum() / truth.counts.sum())
    if len(shown.keys) <= spec.n_neighbors:  # too few for a map
        return Found(len(real), recall, mass, 0.0)
    ours = clusters_of(spec, counts, shown.keys, shown.counts)
    both = [key for key in ours if key in exact_map]
    rand = adjusted_rand_score([exact_map[key] for key in both], [ours[key] for key in both]) if len(both) > 1 else 0.0
    return Found(len(real), recall, mass, float(rand))


def read_back(case: Case, counts: Plan, images: Sequence[Levels]) -> Iterator[dict[str, Any]]:
    """Read one site's own tally as whoever holds the seeds can: the share of its exact counts that come out right."""
    stage = counts.stage
    assert isinstance(stage, CountsPlan)
    keys = np.concatenate([stage.quantiser.keys(image.reshape(len(image), -1), NUMBA) for image in images])
    names, true = np.unique(keys[keys != BACKGROUND], return_counts=True)
    asked_of = {"plain": case.spec, "pixel/8": case.promise("pixel", 8.0), "image/8": case.promise("image", 8.0)}
    for what, asked in asked_of.items():
        plan = studies.as_published(asked, counts) if asked.privacy else counts
        tables = counted(stage, images, plan)
        if plan.privacy is not None:
            whole = replace(plan, privacy=replace(plan.privacy, sites=1, sharers=1), secrecy=None)
            seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "little")
            tables = noised(whole, Tally(bytes(32), tables), np.random.default_rng(seed).bytes).tables
        read = NUMBA.estimate(tables[f"sketch_{stage.sketch_bits[-1]}"], names, stage.sketch.seeds())
        right = float(np.mean(read == true))
        yield {"name": f"privacy/read_back/{what}", "value": right, "unit": "share", "ratio": right, "against": "all"}


COLOURS = {"pixel": "#2b6cb0", "image": "#c05621", "patient": "#2f855a"}


def draw(lines: list[dict[str, Any]], path: Path, prefix: str = "privacy", top: int = TOP) -> None:
    """Draw the curves."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - seconds to import

    values = {line["name"]: line["value"] for line in lines}
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    titles = {
        "recall": f"true top {top:,} that are shown",
        "mass": "foreground pixels in what is shown",
        "rand": "clusters as in the exact study (Rand)",
    }
    for panel, (what, title) in zip(panels, titles.items(), strict=True):
        for unit, colour in COLOURS.items():
            if f"{prefix}/{unit}/1/{what}" in values:
                points = [values[f"{prefix}/{unit}/{epsilon:g}/{what}"] for epsilon in EPSILONS]
                panel.plot(EPSILONS, points, "o-", color=colour, label=f"each {unit}")
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log", base=2)
        panel.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
        panel.set_xlabel("ε of the whole study, δ = 10⁻⁶")
        panel.set_ylim(-0.03, 1.03)
        panel.grid(alpha=0.3)
    again = float(np.mean([value for name, value in values.items() if name.startswith(f"{prefix}/exact/seed_")]))
    panels[2].axhline(again, color="#718096", linestyle="--", linewidth=1)
    panels[2].text(16, again + 0.02, "exact, another seed", fontsize=8, color="#718096", ha="right")
    figure.legend(*panels[0].get_legend_handles_labels(), title="protects", loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    import json

    measured = []
    for one in run():
        print(json.dumps(one), flush=True)
        measured.append(one)
    if sys.argv[1:]:
        draw(measured, Path(sys.argv[1]))
