"""A site's labelled images: all its sources read, those of the run's classes kept, divided by patient."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_trainer.classification import LEAST
from agent_trainer.labelled.rows import Entry, Said, images, named, read_source
from agent_trainer.labelled.settings import LabelledFiles, LabelledSource, Needles, PlainFolder, read_labelled
from agent_trainer.labelled.splitting import divide
from agent_trainer.tables import unit_hash
from cairn.errors import CairnError, ConfigError, ImageError

__all__ = ["Example", "Labelled", "LabelledSource", "load_labelled", "read_labelled"]

WORDS = 5  # unknown words that have a sentence each


@dataclass(frozen=True)
class Example:
    """An image, not yet read, and what it shows.

    name     of the file, for the site's own eyes; never leaves it
    path     for `reading.read_whole` and `patches.open_big`
    label    place in the run's classes
    patient  examples of one patient never lie on both sides of a split; the name where nobody knows
    group    body part, modality …
    """

    name: str
    path: Path
    label: int
    patient: str
    group: str = ""


@dataclass(frozen=True)
class Labelled:
    """What a site learns from and validates on.

    problems  sentences on what could not be used, with file names: for the site's own eyes
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    problems: tuple[str, ...] = ()


def load_labelled(
    sources: Sequence[LabelledSource],
    classes: Sequence[str],
    validation_share: float,
    *,
    groups: Sequence[str] = (),
    shots: int = 0,
    learning: bool = True,
) -> Labelled:
    """Read all sources; what cannot be used gives a problem, and the rest goes on. No image is opened.

    classes   the run's, the same at all sites
    groups    only these; () takes all
    shots     at most so many of each class to learn from, chosen by the hash of their names; 0 takes all
    learning  false when nobody will learn from them: then one image does

    A file's own split goes first; elsewhere `validation_share` of the patients, chosen by the hash of their names,
    validate, so that each class of two patients or more is on both sides as far as that can be.
    Raises ConfigError when the site has no image of the classes, ImageError when it has too few.
    """
    sides: dict[str, list[Example]] = {"train": [], "validation": [], "free": []}
    problems: list[str] = []
    strange: Counter[str] = Counter()
    ungrouped = 0
    for source in sources:
        if isinstance(source, PlainFolder):  # for pre-training
            continue
        try:
            said = read_source(source)
        except CairnError as error:
            problems.append(str(error))
            continue
        problems += [*said.problems, *_nowhere(source, said)]
        word_classes = _word_classes(source, classes)
        for entry in said.entries:
            name = word_classes.get(entry.word) if source.classes is not None else entry.word
            side = side_of(source, entry)
            if name is None or side is None:
                continue  # the settings name the words to take, and the split's, and this is none of them
            if name not in classes:
                strange[name] += 1
            elif groups and entry.group not in groups:
                ungrouped += not entry.group
            else:
                patient = entry.patient or entry.name
                sides[side].append(Example(entry.name, entry.path, classes.index(name), patient, entry.group))
    problems += _strangers(strange, classes)
    if ungrouped:
        problems.append(
            f"{images(ungrouped, 'says', 'say')} no group; left out, as the run takes only {', '.join(groups)}"
        )
    kept, more = _once(sides)
    problems += more
    examples = [example for side in kept.values() for example in side]
    _check(examples, classes, groups, strange, problems, 2 if learning else 1)
    train, validation, more = divide(kept, validation_share)
    problems += [*more, *_lacking(examples, classes)]
    if learning and 0 < len(validation) < LEAST:
        problems.append(
            f"{images(len(validation), 'is', 'are')} set aside to validate on, fewer than {LEAST}; this site tells "
            "nobody how good the classifier is on them"
        )
    if learning and not train:
        raise ImageError("all images of this site are for validation; expected at least one to learn from")
    return Labelled(_few(train, shots), tuple(validation), tuple(dict.fromkeys(problems)))


def _word_classes(source: LabelledSource, classes: Sequence[str]) -> Mapping[str, str]:
    """Give the run's class of each word of a source."""
    return {word: word for word in classes} if source.classes is None else {w: c for c, w in source.classes.items()}


def _nowhere(source: LabelledSource, said: Said) -> Iterator[str]:
    """Tell which words of the settings the source never says: most likely they are misspelt."""
    if said.entries and (lost := sorted(set((source.classes or {}).values()) - {e.word for e in said.entries})):
        place = source.labels.name if isinstance(source, LabelledFiles) else source.kind
        yield f"{place}: no image is called {named(lost)}; check classes in the settings of this source"


def side_of(source: LabelledSource, entry: Entry) -> str | None:
    """Say which side an entry is for: "train", "validation", "free" for either, None for neither."""
    if isinstance(source, Needles | PlainFolder) or entry.split is None:
        return "free"
    if entry.split == source.validation:
        return "validation"
    if entry.split == source.train:
        return "train" if source.validation is not None else "free"
    return None


def _strangers(strange: Mapping[str, int], classes: Sequence[str]) -> Iterator[str]:
    often = sorted(strange.items(), key=lambda item: (-item[1], item[0]))
    for word, count in often[:WORDS]:
        shown = images(count, "is", "are")
        yield f"{shown} of {word!r}, which is none of the run's classes ({', '.join(classes)}); left out"
    if rest := often[WORDS:]:
        shown = images(sum(count for _, count in rest), "is", "are")
        yield f"{shown} of {len(rest)} other words, none of the run's classes; left out"


def _once(sides: Mapping[str, Sequence[Example]]) -> tuple[dict[str, list[Example]], list[str]]:
    """Keep each image once, and none of two labels: nobody knows which of them is right."""
    labels: dict[Path, set[int]] = defaultdict(set)
    for side in sides.values():
        for example in side:
            labels[example.path].add(example.label)
    seen: set[Path] = set()
    again: list[str] = []
    kept: dict[str, list[Example]] = {}
    for name, side in sides.items():
        kept[name] = []
        for example in side:
            if len(labels[example.path]) > 1:
                continue
            if example.path in seen:
                again.append(example.name)
                continue
            seen.add(example.path)
            kept[name].append(example)
    problems = []
    if several := sorted(path.name for path, found in labels.items() if len(found) > 1):
        problems.append(
            f"{images(len(several), 'is', 'are')} of two classes at once ({named(several)}); expected one, left out"
        )
    if again:
        problems.append(f"{images(len(again), 'is', 'are')} named more than once ({named(again)}); taken once")
    return kept, problems


def _check(
    examples: Sequence[Example],
    classes: Sequence[str],
    groups: Sequence[str],
    strange: Mapping[str, int],
    problems: Sequence[str],
    least: int,
) -> None:
    """Refuse a site that cannot take part, and say why."""
    wanted = f"the run's classes ({', '.join(classes)})" + (f" and groups ({', '.join(groups)})" if groups else "")
    first = f"; the first problem: {problems[0]}" if problems else ""
    if not examples:
        here = f"it has {named(sorted(strange))}" if strange else "none could be made of its sources"
        raise ConfigError(f"this site has no image of {wanted}; {here}{first}")
    if len(examples) < least:
        raise ImageError(
            f"this site has one image of {wanted}; expected at least two, one to learn from and one to validate on"
            f"{first}"
        )


def _lacking(examples: Sequence[Example], classes: Sequence[str]) -> Iterator[str]:
    present = {example.label for example in examples}
    absent = [name for place, name in enumerate(classes) if place not in present]
    if absent and len(present) == 1:
        yield (
            f"all images of this site are of the class {classes[min(present)]}; it takes part, but its own figures say "
            "little"
        )
    elif absent:
        yield f"this site has no image of the class {named(absent)}; it takes part with the others"


def _few(train: Sequence[Example], shots: int) -> tuple[Example, ...]:
    """Keep at most `shots` of each class, those whose names have the smallest hashes, in their order."""
    if shots == 0:
        return tuple(train)
    taken: Counter[int] = Counter()
    kept: set[Path] = set()
    for example in sorted(train, key=lambda one: (unit_hash(f"shot/{one.name}"), one.name)):
        if taken[example.label] < shots:
            taken[example.label] += 1
            kept.add(example.path)
    return tuple(example for example in train if example.path in kept)
