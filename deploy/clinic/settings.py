"""Settings of one deployment: one TOML file, docs/DEPLOY.md. What a person must decide has no default."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from aggregator.settings import FederationName, Public
from cairn.config import Settings, load
from cairn.rpc import NAME

UNITS = {"m": 1 << 20, "g": 1 << 30}
GPU = Literal["no", "auto", "required"]


def _name(text: str) -> str:
    if not NAME.fullmatch(text) or len(text) > 40:
        raise ValueError(f"{text!r} is not a name of lower-case letters, digits and inner hyphens, 40 at most")
    return text


def _image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:@-]*", text) or ":" not in text.rpartition("/")[2]:
        raise ValueError(f"{text!r} is not an image with its version; write cairn-edge:0.2.0")
    return text


def _on_engine(path: PurePosixPath) -> PurePosixPath:
    if not path.is_absolute() or path == PurePosixPath("/"):
        raise ValueError(f"{str(path)!r} is not a whole path of a folder on the engine's machine")
    return path


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,5}[mg]", text):
        raise ValueError(f"{text!r} is no amount of memory; write 4g or 512m")
    return text


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ValueError(f"{text!r} is not a SHA-256 of 64 hexadecimal digits")
    return text.lower()


Name = Annotated[str, AfterValidator(_name)]
Image = Annotated[str, AfterValidator(_image)]
OnEngine = Annotated[PurePosixPath, AfterValidator(_on_engine)]
Memory = Annotated[str, AfterValidator(_memory)]
Digest = Annotated[str, AfterValidator(_digest)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Founding(BaseModel):
    """With what `up` founds a federation where there is none, and the ports that it publishes.

    federation      written into every certificate
    addresses       HOST or HOST:PORT under which sites reach this machine
    pages           port of the dashboard, on the engine's loopback address alone
    training        also publish the SuperLink's port, and train
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: FederationName
    addresses: tuple[Public, ...] = Field(min_length=1)
    listen: Port = 8443
    enrolment: Port = 8444
    pages: Port = 8445
    training: bool = False
    superlink: Port = 8446


class Deployment(Settings):
    """The whole of deployment.toml.

    name            of this deployment; its container and volumes are called cairn-NAME…
    image           with its version
    archive         made by `cairn deploy bundle`, for a machine without a registry; and its SHA-256 as you were told it
    site            the site's settings as they are to be in the container, site.toml
    invitation      file of the one-time invitation; needed until the site is enrolled
    data            name = folder on the engine's machine; in the container it is /data/NAME, and can only be read
    secrets         name = file on this machine; in the container it is /run/secrets/NAME. An aggregator takes
                    `at-rest-key` and `database-url` (else SQLite in the volume); another name is only there
    aggregator      for an aggregator, instead of `site`
    memory, cpus    the most that the container may use
    page            port on the engine's loopback address under which the site's page can be seen
    network         an existing network of the engine to join, instead of its default one
    ready_seconds   how long it may take until it is healthy
    """

    model_config = SettingsConfigDict(env_prefix="CAIRN_DEPLOY_")

    name: Name
    image: Image
    archive: Path | None = None
    archive_sha256: Digest | None = None
    site: Path | None = None
    invitation: Path | None = None
    data: Mapping[Name, OnEngine] = Field(default_factory=dict)
    secrets: Mapping[Name, Path] = Field(default_factory=dict)
    aggregator: Founding | None = None
    gpu: GPU = "no"
    memory: Memory = "4g"
    cpus: float = Field(2.0, gt=0, le=512)
    page: Port | None = None
    network: str | None = None
    ready_seconds: float = Field(180.0, gt=0)

    @model_validator(mode="after")
    def _one_role(self) -> Self:
        if (self.site is None) == (self.aggregator is None):
            raise ValueError('give site = "site.toml" for a clinic, or [aggregator] for the middle; one of the two')
        if self.site and not self.data:
            raise ValueError('[data] is missing; name the folder of images, such as slides = "/srv/slides"')
        if self.aggregator and (self.data or self.invitation or self.page):
            raise ValueError("data, invitation and page are for a clinic; an aggregator has none of them")
        return self

    @property
    def role(self) -> Literal["edge", "aggregator"]:
        """What runs."""
        return "edge" if self.site else "aggregator"

    @property
    def memory_bytes(self) -> int:
        """The limit of memory in bytes."""
        return int(self.memory[:-1]) * UNITS[self.memory[-1]]


def load_deployment(path: Path) -> Deployment:
    """Read deployment.toml. Raises ConfigError."""
    wanted = load(path, Deployment)
    beside = path.parent.resolve()
    return wanted.model_copy(
        update={"secrets": {name: beside / file.expanduser() for name, file in wanted.secrets.items()}}
    )
