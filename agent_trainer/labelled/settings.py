"""Where a site's labelled images come from: a list of sources, each of one of four kinds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from agent_trainer.settings import read_list

Column = Literal["image", "label", "split", "patient", "group"]


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    if groups < 1:
        raise ValueError(f"{text!r} has no group; put what is looked for into parentheses, such as ^([0-9]+)_")
    return text


def _apart(classes: Mapping[str, str]) -> Mapping[str, str]:
    words = list(classes.values())
    if twice := {word for word in words if words.count(word) > 1}:
        raise ValueError(f"two classes are called {min(twice)}; expected a word of its own for each")
    return classes


Pattern = Annotated[str, AfterValidator(_pattern)]
Words = Annotated[Mapping[str, str], AfterValidator(_apart)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelledFiles(_Section):
    """Images, and a file that says what each shows.

    labels      a CSV file or a JSON list of objects: a row an image, with the columns image and label and, if wanted,
                split, patient and group
    images      the folder of images; a row names one by its path in there or by its file name, with or without ending
    columns     what these columns are called in the file, where it has other names
    classes     the run's class = the file's word; words not named here are left out; None takes the file's words
    patient     a regular expression, searched in the file name and then in the path: its group 1 is the patient
    group       the same, in the path: body part, modality …
    train       of a file with a column split: its value in the rows to learn from
    validation  … and in those to validate on; None takes some of the rows to learn from
    """

    kind: Literal["files"] = "files"
    labels: Path
    images: Path
    columns: Mapping[Column, str] = Field(default_factory=dict)
    classes: Words | None = None
    patient: Pattern | None = None
    group: Pattern | None = None
    train: str = "train"
    validation: str | None = None


class LabelledFolders(_Section):
    """Images in folders, one a class; a folder's name is its class's word.

    train       if there are folders of this name and of that of `validation` above those of the classes, they are the
    validation  split; None: the folders of the classes lie in `images` itself
    Others as in `LabelledFiles`.
    """

    kind: Literal["folders"] = "folders"
    images: Path
    classes: Words | None = None
    patient: Pattern | None = None
    group: Pattern | None = None
    train: str = "train"
    validation: str | None = None


class Needles(_Section):
    """Made images, each with a small thing that tells the class (`labelled.needles`): rows, columns or checks.

    images       how many
    size         pixels a side
    needle       pixels a side of what is to be found
    seed         the same seed makes the same images
    backgrounds  folder of real images that backgrounds are made of; None makes them up
    folder       where they are written, once; None takes one in the system's folder for temporary files
    """

    kind: Literal["needles"] = "needles"
    images: int = Field(100, ge=2)
    size: int = Field(1024, ge=64, le=16384)
    needle: int = Field(16, ge=4)
    seed: int = Field(0, ge=0)
    backgrounds: Path | None = None
    folder: Path | None = None
    classes: Words | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Needles":
        if self.needle > self.size // 2:
            raise ValueError(f"a needle of {self.needle} pixels is no needle in {self.size}; expected at most half")
        return self


class PlainFolder(_Section):
    """Images of which nobody says what they show, for pre-training alone; others pass it over.

    images  the folder, with those below it
    Others as in `LabelledFiles`.
    """

    kind: Literal["plain"] = "plain"
    images: Path
    patient: Pattern | None = None
    group: Pattern | None = None
    classes: None = None


LabelledSource = Annotated[LabelledFiles | LabelledFolders | Needles | PlainFolder, Field(discriminator="kind")]
"""One source of labelled images; `kind` says which."""

_SOURCES: TypeAdapter[tuple[LabelledSource, ...]] = TypeAdapter(tuple[LabelledSource, ...])


def read_labelled(text: str, folder: Path) -> tuple[LabelledSource, ...]:
    """Read a list of sources from JSON; paths are relative to the folder. Raises ConfigError."""
    return read_list(_SOURCES, text, folder, "labelled", "labelled images")
