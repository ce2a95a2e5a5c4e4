"""What the counts of all sites tell of a classifier beyond its measures: operating points, a temperature. Pure."""

from collections.abc import Mapping, Sequence

from agent_trainer.classification import merge_counts, merge_validation
from agent_trainer.craft.calibration import fit_temperature, scaled_error
from agent_trainer.craft.thresholds import OperatingPoint, Rule, operating_points
from cairn.figures import VALIDATION

TEMPERATURE, SCALED = f"{VALIDATION}temperature", f"{VALIDATION}ece_scaled"
POINT = {name: f"{VALIDATION}point_{name}/" for name in ("threshold", "sensitivity", "specificity")}


def merge(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Measure all sites' validations together; {} when nobody validated.

    Besides the measures: temperature, ece_scaled of two classes, and of each class the operating point of most
    sensitivity + specificity: point_threshold/CLASS, point_sensitivity/CLASS, point_specificity/CLASS. They are chosen
    on the images that they are told of, so that on others they do a little worse.
    """
    found, counts = merge_validation(sites), merge_counts(sites)
    if counts is None:
        return found
    summed, classes = counts
    temperature = fit_temperature(summed)
    if temperature is not None:
        found[TEMPERATURE] = temperature
        error = scaled_error(summed, temperature)
        found |= {} if error is None else {SCALED: error}
    for name, point in operating_points(summed, classes, Rule()).items():
        found |= {f"{prefix}{name}": getattr(point, what) for what, prefix in POINT.items()}
    return found


def points_of(metrics: Mapping[str, float]) -> dict[str, OperatingPoint]:
    """Read the operating points of a merged validation back, by class."""
    start = POINT["threshold"]
    names = [name.removeprefix(start) for name in metrics if name.startswith(start)]
    return {
        name: OperatingPoint(**{what: metrics[f"{prefix}{name}"] for what, prefix in POINT.items()})
        for name in sorted(names)
        if all(f"{prefix}{name}" in metrics for prefix in POINT.values())
    }
