"""Numbers of several sites made into one of each, by name. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

SUMMED = {"examples", "updates"}
LARGEST = {"seconds"}
PREFIX = "validation/"
MEANS = ("mean_mm", "sdr_")  # of which a mean over images is a mean of means, weighted by images; not so a median


def merged_metrics(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the numbers of a round's training: sums, the largest time, and else means weighted by examples."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for metrics in sites:
        for name, value in metrics.items():
            if not name.startswith(PREFIX):
                found[name].append((value, metrics.get("examples", 0.0)))
    return {name: _merge(name, values) for name, values in sorted(found.items())}


def _merge(name: str, values: Sequence[tuple[float, float]]) -> float:
    if name in SUMMED:
        return sum(value for value, _ in values)
    if name in LARGEST:
        return max(value for value, _ in values)
    weight = sum(examples for _, examples in values)
    return sum(value * examples for value, examples in values) / weight if weight else 0.0


def merged_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge validations: of each task n, mean error and success rates over all sites' images, and the mean over all.

        validation/mean_mm = Σ n·mean_mm / Σ n      over sites and tasks

    Empty when no site has validated.
    """
    images: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    for metrics in sites:
        for name, n in metrics.items():
            task = name.removeprefix(PREFIX).removesuffix("/n")
            if not (name.startswith(PREFIX) and name.endswith("/n")) or n <= 0:
                continue
            images[task] += n
            for other, value in metrics.items():
                measure = other.removeprefix(f"{PREFIX}{task}/")
                if other != measure and measure.startswith(MEANS):
                    sums[f"{task}/{measure}"] += n * value
    total = sum(images.values())
    if not total:
        return {}
    found = {f"{PREFIX}{name}": value / images[name.rpartition("/")[0]] for name, value in sums.items()}
    found |= {f"{PREFIX}{task}/n": n for task, n in images.items()}
    found[f"{PREFIX}mean_mm"] = sum(sums[f"{task}/mean_mm"] for task in images) / total
    return dict(sorted(found.items()))
