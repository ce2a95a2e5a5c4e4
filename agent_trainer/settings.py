"""Settings read from JSON: a run's own into its algorithm's typed config, and a site's sources of data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from agent_trainer.classification import LONGEST_NAME, MOST_CLASSES
from cairn.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
ClassName: TypeAlias = Annotated[str, Field(max_length=LONGEST_NAME)]
Classes: TypeAlias = Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=MOST_CLASSES)]
"""The classes of a run, no more than a site's figures have room for."""
# Two settings of every learner. At their defaults they are not written down: a site that does not know them yet takes
# part, and goes on from a state that it saved.
Precision: TypeAlias = Annotated[Literal["float32", "mixed"], Field(exclude_if=lambda value: value == "float32")]
Compile: TypeAlias = Annotated[bool, Field(exclude_if=lambda value: not value)]


def read_settings(model: type[M], text: str, algorithm: str) -> M:
    """Read settings of a config's type. Raises ConfigError with the first thing that is wrong.

    algorithm  what people call it, for the sentence
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(_holder(model, first["loc"][:-1]).model_fields))
        hint = f"; known are {known}" if first["type"] == "extra_forbidden" else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the run's {algorithm} settings: {place + ': ' if place else ''}{message}{hint}") from error


def _holder(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Find the table in which an unknown key stands."""
    for name in path:
        field = model.model_fields.get(str(name))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return model
        model = inner
    return model


def read_list(sources: TypeAdapter[tuple[M, ...]], text: str, folder: Path, name: str, what: str) -> tuple[M, ...]:
    """Read a list of sources of data; paths are relative to the folder. Raises ConfigError.

    name, what  for the sentence: the list's name in the settings, and what its sources are of
    """
    try:
        found = sources.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} {place}: {first['msg'].removeprefix('Value error, ')}") from error
    if not found:
        raise ConfigError(f"no source of {what} is set; name at least one, so that there is something to learn from")
    return tuple(
        one.model_copy(update={name: folder / path.expanduser() for name, path in one if isinstance(path, Path)})
        for one in found
    )
