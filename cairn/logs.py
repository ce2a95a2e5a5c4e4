"""A service's log: one JSON object a line, to standard error or into files that are turned over.

Ids that lines share: `study`, `stage`, `window` and `plan` (the fingerprint in hex) of a study's work, `run` and
`round` of a training run's, `site` of a member's. No line ever holds a pixel value, a file name or a patient's name.
"""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from cairn.errors import ConfigError

Log = structlog.typing.FilteringBoundLogger


class LogFile(BaseModel):
    """Where the log goes; without a file to standard error, which systemd or a container's engine keeps.

    megabytes  of a file, before the next one is begun
    keep       files from before, FILE.1 the newest
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = None
    megabytes: float = Field(10.0, gt=0, le=4096)
    keep: int = Field(5, ge=1, le=1000)


class Stream(Protocol):
    """What a log is written to."""

    def write(self, text: str, /) -> object:
        """Take a line with its end."""

    def flush(self) -> object:
        """Hand on what was taken."""


class TurningFile:
    """A file that is renamed when it is full, and as many older ones as are kept. A full disk costs lines, no service.

    Raises ConfigError when it cannot be written at the beginning.
    """

    def __init__(self, settings: LogFile) -> None:
        assert settings.file is not None  # who makes one names the file
        try:
            settings.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            settings.file.touch(0o600)
            self._handler = RotatingFileHandler(
                settings.file, maxBytes=int(settings.megabytes * 1e6), backupCount=settings.keep, encoding="utf-8"
            )
        except OSError as error:
            raise ConfigError(f"log.file {settings.file} cannot be written: {error.strerror}") from error

    def write(self, text: str) -> None:
        """Add a line."""
        self._handler.handle(logging.LogRecord("cairn", logging.INFO, "", 0, text.rstrip("\n"), None, None))

    def flush(self) -> None:
        """Do nothing: every line was handed on."""

    def close(self) -> None:
        """Let the file go."""
        self._handler.close()


def open_stream(settings: LogFile, otherwise: Stream) -> Stream:
    """Open what the settings name; `otherwise` when they name no file. Raises ConfigError."""
    return otherwise if settings.file is None else TurningFile(settings)


def make_log(stream: Stream, *, quotes: bool) -> Log:
    """Make a logger that writes one JSON object a line: time in UTC, level, event, and what the caller binds.

    quotes  write what exceptions say too; False where a library's words may name the file that it stumbled over
    """
    log: Log = structlog.wrap_logger(
        structlog.WriteLogger(stream),  # type: ignore[arg-type]  # it writes and flushes, and asks no more of a file
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            # No local variables: they could hold tables or tokens, and where it happened is enough.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
            ),
            *([] if quotes else [_without_quotes]),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return log


def _without_quotes(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for one in event.get("exception", ()):
        one.pop("exc_value", None)
        one.pop("exc_notes", None)
    return event
