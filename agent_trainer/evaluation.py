"""Searches for real, by the greedy policy, and how far from the landmarks they end: the measures of ISBI 2015."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig
from agent_trainer.ending import SearchEnd
from agent_trainer.environment import Searches
from agent_trainer.scenes.scene import Pixels, Place, Scene
from cairn.figures import VALIDATION

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
QValues: TypeAlias = Callable[[Pixels, Ints], npt.NDArray[np.float32]]
"""(states uint8[k, history, …], task numbers int64[k]) -> float32[k, actions]; `Learner.q_values` is one."""

STARTS = 5
AT_ONCE = 256  # searches whose states are in memory and in one call of the network
RADII_MM = (2.0, 2.5, 3.0, 4.0)  # within which a detection counts; Wang et al. 2016, §2.4
MEANS = ("mean_mm", "sdr_")  # of which a mean over images is a mean of means, weighted by images; not so a median


@dataclass(frozen=True)
class Visit:
    """Where some of the searches are, and what they see in each action. Arrays of one length.

    agents        int64[k]
    positions_px  int64[k, axes], before the step
    q             float32[k, actions]
    scales        int64[k], pixels of the step
    ended         bool[k], whether the search is over
    ends_px       int64[k, axes], where; of those that go on, where they are
    """

    agents: Ints
    positions_px: Ints
    q: npt.NDArray[np.float32]
    scales: Ints
    ended: Flags
    ends_px: Ints


def greedy(searches: Searches, q_values: QValues) -> Iterator[Visit]:
    """Walk by the greedy policy until all searches are over, a step of all that are not at a time.

    A scale ends by `SearchEnd`; the search with its finest scale, or at the step limit, where it then is.

    searches  just reset, made with in_use=True
    """
    active = np.arange(len(searches.which))
    ending = SearchEnd(len(active), searches.axes)
    tasks = searches.tasks
    while len(active):
        places, scales = searches.positions_px[active], searches.scales[active]
        q = q_values(searches.states(active), tasks[active])
        circling, ends = ending.visit(active, places, q.max(axis=1))
        ended = np.zeros(len(active), bool)
        if circling.any():
            ended[circling] = searches.settle(active[circling], ends[circling])
            ending.forget(active[circling])
        going = ~circling
        step = searches.step(q[going].argmax(axis=1), active[going])
        ended[going] = step.truncated
        ends[going] = searches.positions_px[active[going]]
        yield Visit(active, places, q, scales, ended, ends)
        active = active[~ended]


def find(
    scenes: Sequence[Scene], config: DqnConfig, q_values: QValues, starts: int = STARTS
) -> npt.NDArray[np.float64]:
    """Search each scene's landmark; float64[scenes, axes], in px.

    From `starts` fixed points (`starting_points`) each; the result is the median of their ends, axis by axis, so that a
    minority that lost its way does not matter. The same scenes and network give the same result.
    """
    found = np.empty((len(scenes), config.axes))
    per_call = max(1, AT_ONCE // starts)
    for first in range(0, len(scenes), per_call):
        part = scenes[first : first + per_call]
        searches = Searches(part, config, np.random.default_rng(0), in_use=True)
        which = np.repeat(np.arange(len(part)), starts)
        searches.reset(
            which, np.concatenate([starting_points(scene.size, starts, config.start_margin) for scene in part])
        )
        ends = np.empty((len(which), config.axes))
        for visit in greedy(searches, q_values):
            ends[visit.agents[visit.ended]] = visit.ends_px[visit.ended]
        found[first : first + len(part)] = np.median(ends.reshape(len(part), starts, config.axes), axis=1)
    return found


def starting_points(size: Sequence[int], count: int, margin: float) -> Ints:
    """Return points spread evenly over the inner part of an image, int64[count, axes] in px; always the same.

    x_i = frac(½ + i·α), α_j = φ^-(j+1), φ the root of φ^(axes+1) = φ + 1       Roberts 2018, the R sequence
    """
    axes = len(size)
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (axes + 1))
    unit = (0.5 + np.arange(count)[:, None] * root ** -np.arange(1.0, axes + 1)) % 1
    last = np.array(size) - 1
    low = np.floor(last * margin)
    return np.asarray(np.rint(low + unit * (last - 2 * low)), np.int64)


@dataclass(frozen=True)
class Measures:
    """Radial errors of one task over n images (Wang et al. 2016, §2.4).

    mean_mm, median_mm, sd_mm  of the errors; the standard deviation with n - 1, 0 for one image
    success                    share of images with an error of at most each of RADII_MM, in [0, 1]
    """

    n: int
    mean_mm: float
    median_mm: float
    sd_mm: float
    success: tuple[float, ...]

    def numbers(self) -> dict[str, float]:
        """Say it as named numbers: n, mean_mm, median_mm, sd_mm, sdr_2, sdr_2.5, sdr_3, sdr_4."""
        rates = {f"sdr_{radius:g}": rate for radius, rate in zip(RADII_MM, self.success, strict=True)}
        return {"n": self.n, "mean_mm": self.mean_mm, "median_mm": self.median_mm, "sd_mm": self.sd_mm, **rates}


def measures(errors_mm: npt.NDArray[np.floating]) -> Measures:
    """Measure errors float[n], n ≥ 1."""
    errors = errors_mm.astype(np.float64)
    return Measures(
        len(errors),
        float(errors.mean()),
        float(np.median(errors)),
        float(errors.std(ddof=1)) if len(errors) > 1 else 0.0,
        tuple(float((errors <= radius).mean()) for radius in RADII_MM),
    )


def errors_mm(scenes: Sequence[Scene], found_px: npt.NDArray[np.floating]) -> Floats:
    """Return how far each finding lies from its scene's landmark, float64[scenes]; NaN where nobody knows."""
    known = [np.full(scene.axes, np.nan) if scene.landmark_mm is None else scene.landmark_mm for scene in scenes]
    spacing = [scene.spacing_mm for scene in scenes]
    return np.asarray(np.linalg.norm(found_px * np.array(spacing) - np.array(known), axis=1))


def evaluate(
    scenes: Sequence[Scene], config: DqnConfig, q_values: QValues, starts: int = STARTS
) -> dict[str, Measures]:
    """Search the scenes whose landmark is known and measure each task's errors, by the task's name."""
    known = [scene for scene in scenes if scene.landmark_mm is not None]
    return by_task(known, errors_mm(known, find(known, config, q_values, starts))) if known else {}


def by_task(scenes: Sequence[Scene], errors: Floats) -> dict[str, Measures]:
    """Measure each task's errors float64[scenes] apart."""
    of_task: dict[str, list[float]] = defaultdict(list)
    for scene, error in zip(scenes, errors.tolist(), strict=True):
        of_task[scene.task].append(error)
    return {task: measures(np.array(of_task[task])) for task in sorted(of_task)}


def mean_positions(train: Sequence[Scene]) -> dict[str, Place]:
    """Return each task's mean landmark in mm: what an agent must beat, for it looks at no image."""
    of_task: dict[str, list[Place]] = defaultdict(list)
    for scene in train:
        if scene.landmark_mm is not None:
            of_task[scene.task].append(scene.landmark_mm)
    return {task: np.mean(places, axis=0) for task, places in of_task.items()}


def evaluate_mean_positions(train: Sequence[Scene], test: Sequence[Scene]) -> dict[str, Measures]:
    """Measure the baseline that answers with the mean position of the training landmarks, by task."""
    means = mean_positions(train)
    known = [scene for scene in test if scene.task in means and scene.landmark_mm is not None]
    if not known:
        return {}
    return by_task(known, errors_mm(known, np.array([means[scene.task] / scene.spacing_mm for scene in known])))


def named(found: Mapping[str, Measures]) -> dict[str, float]:
    """Write each task's measures as a site tells them: validation/<task>/<measure>."""
    return {
        f"{VALIDATION}{task}/{name}": float(value)
        for task, measured in found.items()
        for name, value in measured.numbers().items()
    }


def merge_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the sites' measures: of each task n, mean error and success rates over all images, and the mean over all.

        validation/mean_mm = Σ n·mean_mm / Σ n      over sites and tasks

    Empty when no site has validated.
    """
    images: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    for metrics in sites:
        for name, n in metrics.items():
            task = name.removeprefix(VALIDATION).removesuffix("/n")
            if not (name.startswith(VALIDATION) and name.endswith("/n")) or n <= 0:
                continue
            images[task] += n
            for other, value in metrics.items():
                measure = other.removeprefix(f"{VALIDATION}{task}/")
                if other != measure and measure.startswith(MEANS):
                    sums[f"{task}/{measure}"] += n * value
    total = sum(images.values())
    if not total:
        return {}
    found = {f"{VALIDATION}{name}": value / images[name.rpartition("/")[0]] for name, value in sums.items()}
    found |= {f"{VALIDATION}{task}/n": n for task, n in images.items()}
    found[f"{VALIDATION}mean_mm"] = sum(sums[f"{task}/mean_mm"] for task in images) / total
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Trace:
    """One search, step by step, for people to look at.

    positions_px  int64[t, axes]
    q             float32[t, actions], what the agent saw in each action there
    scales        int64[t], pixels of the step
    end_px        int64[axes]
    """

    positions_px: Ints
    q: npt.NDArray[np.float32]
    scales: Ints
    end_px: Ints


def trace(scene: Scene, start_px: Sequence[int], config: DqnConfig, q_values: QValues) -> Trace:
    """Search one landmark from one start and keep the way. Raises ImageError for a start outside the image."""
    searches = Searches([scene], config, np.random.default_rng(0), in_use=True)
    searches.reset(np.zeros(1, np.int64), np.array([start_px], np.int64))
    visits = list(greedy(searches, q_values))
    return Trace(
        np.concatenate([visit.positions_px for visit in visits]),
        np.concatenate([visit.q for visit in visits]),
        np.concatenate([visit.scales for visit in visits]),
        visits[-1].ends_px[0],
    )
