"""One TOML file a program, read into one typed tree; an unknown key is an error that names the nearest known one."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cairn.errors import ConfigError


class Settings(BaseSettings):
    """Base of a program's settings: environment variables (CAIRN_SECTION__KEY) go before the file's values."""

    model_config = SettingsConfigDict(
        env_prefix="CAIRN_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file, which is handed in as initial values."""
        file = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        return env_settings, InitSettingsSource(settings_cls, init_kwargs=file)


S = TypeVar("S", bound=Settings)


def load(path: Path, model: type[S]) -> S:
    """Read a program's settings. Raises ConfigError with the first thing that is wrong and what to do.

    Every `Path` in the tree that is not absolute is relative to the folder of the file.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no settings file {path}; make one, or name another with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    _refuse_unknown(values, model, path.name, "")
    try:
        settings = model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{path.name}: {key} is missing; it has no default, only you can decide it") from error
        raise ConfigError(f"{path.name}: {key}: {first['msg']}") from error
    return settings.model_copy(update=_absolute(settings, path.parent.resolve()))


def _refuse_unknown(values: dict[str, Any], model: type[BaseModel], file: str, section: str) -> None:
    if model.model_config.get("extra") == "allow":
        return
    for key, value in values.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, 1, 0.5)
            hint = f"did you mean {section}{near[0]}?" if near else f"known are {', '.join(model.model_fields)}"
            raise ConfigError(f"{file}: there is no setting {section}{key}; {hint}")
        inner = _inner_model(model.model_fields[key].annotation)
        if inner and isinstance(value, dict):
            _refuse_unknown(value, inner, file, f"{section}{key}.")


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _absolute(model: BaseModel, folder: Path) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):
            changed[name] = folder / value.expanduser()
        elif isinstance(value, BaseModel):
            changed[name] = value.model_copy(update=_absolute(value, folder))
    return changed
