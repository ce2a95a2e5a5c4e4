"""Which patients validate: always the same ones, whatever others there are, with each class on both sides. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from agent_trainer.tables import unit_hash


class Patients(Protocol):
    """What a split looks at."""

    @property
    def patient(self) -> str:
        """Whose it is."""

    @property
    def label(self) -> int:
        """The class."""


T = TypeVar("T", bound=Patients)
ANY = -1  # a class that all are of


def divide(sides: Mapping[str, Sequence[T]], share: float) -> tuple[list[T], list[T], list[str]]:
    """Divide examples into those to learn from and those to validate on; and sentences on what could not be kept.

    sides  "train" and "validation" are as their source says; of "free" a share of the patients validates, each with
           all examples: those whose hash, in [0, 1), is under it, but for moves that bring a class of two patients or
           more to a side where it has none. With a share of 0 none is moved.
    A patient who is on both sides by the sources validates.
    """
    bound = {example.patient: True for example in sides["train"]}
    both = {example.patient for example in sides["validation"] if example.patient in bound}
    bound |= {example.patient: False for example in sides["validation"]}
    free = {example.patient for example in sides["free"]} - bound.keys()
    learns = bound | {patient: share == 0 or unit_hash(patient) >= share for patient in free}
    if len(learns) == 1:
        learns |= dict.fromkeys(free, True)
    everyone = [example for side in sides.values() for example in side]
    bare = _balance(everyone, learns, free) if share > 0 else 0
    problems = []
    if both:
        problems.append(
            f"patients on both sides of the split that the sources give: {len(both)}; their images validate only"
        )
    if bare:
        problems.append(f"classes that could not be put on both sides of the split by patient: {bare}")
    if share > 0 and len(learns) == 1:
        problems.append("all images of this site are of one patient; none is left to validate on")
    train = [example for side in ("train", "free") for example in sides[side] if learns[example.patient]]
    validation = [example for side in ("validation", "free") for example in sides[side] if not learns[example.patient]]
    return train, validation, problems


def _balance(examples: Sequence[Patients], learns: dict[str, bool], free: set[str]) -> int:
    """Move patients so that each class of two or more is on both sides; returns how many classes are not."""
    classes: dict[int, set[str]] = defaultdict(set)
    of_patient: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        for label in (ANY, example.label):
            classes[label].add(example.patient)
            of_patient[example.patient].add(label)
    # How many patients of each class are on each side.
    sides = {label: Counter(learns[patient] for patient in patients) for label, patients in classes.items()}
    bare = 0
    for label, patients in sorted(classes.items()):
        if len(patients) < 2:
            continue
        for to in (False, True):
            if sides[label][to]:
                continue
            # The nearest to the border of the share goes, unless that leaves another class bare.
            candidates = sorted(patients & free, key=unit_hash, reverse=to)
            movable = (
                p
                for p in candidates
                if all(sides[other][not to] > 1 or len(classes[other]) < 2 for other in of_patient[p])
            )
            patient = next(movable, None)
            if patient is None:
                bare += label != ANY
                continue
            learns[patient] = to
            for other in of_patient[patient]:
                sides[other][not to] -= 1
                sides[other][to] += 1
    return bare
