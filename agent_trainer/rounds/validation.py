"""Numbers of a round's training at several sites made into one of each, by name. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cairn.figures import IMAGES, VALIDATION

SUMMED = {"examples", "updates", "masks/collapses", "masks/restarts"}
LARGEST = {"seconds"}


def merged_metrics(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the numbers of a round's training: sums, the largest time, and else means weighted by examples if told."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for metrics in sites:
        for name, value in metrics.items():
            if not name.startswith(VALIDATION):
                found[name].append((value, metrics.get("examples", 0.0)))
    return {name: _merge(name, values) for name, values in sorted(found.items())}


def _merge(name: str, values: Sequence[tuple[float, float]]) -> float:
    if name in SUMMED or name.startswith(IMAGES):
        return sum(value for value, _ in values)
    if name in LARGEST:
        return max(value for value, _ in values)
    weight = sum(examples for _, examples in values)
    if not weight:  # of a masked run: no site tells its examples
        return sum(value for value, _ in values) / len(values)
    return sum(value * examples for value, examples in values) / weight
