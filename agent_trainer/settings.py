"""A run's own settings, read from JSON into an algorithm's typed config."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cairn.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def read_settings(model: type[M], text: str, algorithm: str) -> M:
    """Read settings of a config's type. Raises ConfigError with the first thing that is wrong.

    algorithm  what people call it, for the sentence
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(model.model_fields))
        hint = f"; known are {known}" if first["type"] == "extra_forbidden" else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the run's {algorithm} settings: {place + ': ' if place else ''}{message}{hint}") from error
