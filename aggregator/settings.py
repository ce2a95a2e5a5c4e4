"""The aggregator's settings: one TOML file, docs/OPERATING.md. What a person must decide has no default."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cairn.config import Settings, load
from cairn.errors import ConfigError
from cairn.health import ADDRESSES
from cairn.logs import LogFile
from cairn.rpc import NAME
from cairn.tracing import Telemetry

FILE = "aggregator.toml"
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def split_address(address: str) -> tuple[str, int | None]:
    """Split HOST, HOST:PORT or [IPV6]:PORT. Raises ValueError."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([^:\[\]]+)(?::(\d{1,5}))?", address)
    if not found:
        raise ValueError(f"{address!r} is not HOST:PORT; an IPv6 address is written in brackets")
    host, port = found[1] or found[3], found[2] or found[4]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOSTNAME.fullmatch(host) or len(host) > 253:
            raise ValueError(f"{host!r} is neither a host name nor an IP address") from None
    if port is not None and int(port) > 65535:
        raise ValueError(f"{port} is not a port; ports end at 65535")
    return host, None if port is None else int(port)


def join_address(host: str, port: int) -> str:
    """Write host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _public(address: str) -> str:
    split_address(address)
    return address


def _listening(address: str) -> str:
    if split_address(address)[1] is None:
        raise ValueError(f"{address!r} names no port; write {address}:PORT, 0 for any free port")
    return address


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name of lower-case letters, digits and inner hyphens, 63 at most")
    return text


Public = Annotated[str, AfterValidator(_public)]
Listening = Annotated[str, AfterValidator(_listening)]
FederationName = Annotated[str, AfterValidator(_name)]


class Limits(BaseModel):
    """What one aggregator takes on.

    threads           calls open at once; every connected site holds one
    calls_a_second    that one member may begin, as a rule; in a burst 1,000
    upload_bytes      the largest tally file, and the largest file of weights that a run begins with
    failed_enrolments from one address within a minute, and as many failed logins
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=1024, ge=8, le=8192)
    calls_a_second: float = Field(default=100.0, ge=1)
    upload_bytes: int = Field(default=1 << 30, ge=1 << 20)
    failed_enrolments: int = Field(default=10, ge=1)


class Training(BaseModel):
    """Where sites' SuperNodes find the SuperLink; without this section the federation does not train.

    superlink_address  HOST or HOST:PORT as the sites reach it; the first address' host when not set
    here               false: of several processes of this aggregator another one runs SuperLink and trainer
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    superlink_listen: Listening = "0.0.0.0:8446"
    superlink_address: Public | None = None
    here: bool = True

    @model_validator(mode="after")
    def _found(self) -> Self:
        if not self.here and (self.superlink_address is None or split_address(self.superlink_address)[1] is None):
            raise ValueError("here = false needs superlink_address = HOST:PORT, where the sites reach the SuperLink")
        return self


class AtRest(BaseModel):
    """What seals blobs and checkpoints on the disk.

    key_file  key-encryption keys, 64 hexadecimal digits a line, the one in use first; none: CAIRN_AT_REST_KEY of the
              environment, and without that nothing is sealed
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_file: Path | None = None


class Retention(BaseModel):
    """What is dropped so many days after it has served its purpose; None keeps it for ever.

    site_tallies_days  what single sites sent for a plan, after its sum was made; sums stay
    checkpoints_days   of a run, after it is done; the best and the last stay
    run_log_days       lines of a run's log, after it is done
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site_tallies_days: int | None = Field(None, ge=1)
    checkpoints_days: int | None = Field(None, ge=1)
    run_log_days: int | None = Field(None, ge=1)


class AggregatorSettings(Settings):
    """The whole of aggregator.toml.

    addresses      HOST or HOST:PORT under which sites reach the aggregator; the first one is written into invitations
    database_file  a file of which the first line is the database's URL, with its password: a secret, not a setting
    """

    federation: FederationName
    addresses: tuple[Public, ...] = Field(min_length=1)
    enrolment_address: Public | None = None
    listen: Listening = "0.0.0.0:8443"
    enrolment_listen: Listening = "0.0.0.0:8444"
    dashboard_listen: Listening = "127.0.0.1:8445"
    state_dir: Path = Path()
    pki_dir: Path = Path("pki")
    database: str | None = None
    database_file: Path | None = None
    blobs: str | None = None
    limits: Limits = Limits()
    at_rest: AtRest = AtRest()
    training: Training | None = None
    retention: Retention = Retention()
    log: LogFile = LogFile()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="after")
    def _one_database(self) -> Self:
        if self.database and self.database_file:
            raise ValueError("database and database_file both name a database; keep one of them")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        listens = [self.listen, self.enrolment_listen, self.dashboard_listen]
        which = "listen, enrolment_listen and dashboard_listen need three different ports"
        if self.training and self.training.here:
            listens.append(self.training.superlink_listen)
            which = "listen, enrolment_listen, dashboard_listen and superlink_listen need four different ports"
        fixed = [port for port in (split_address(address)[1] for address in listens) if port]
        if len(set(fixed)) < len(fixed):
            raise ValueError(which)
        return self

    @property
    def trains_here(self) -> bool:
        """Whether this process runs SuperLink and trainer."""
        return self.training is not None and self.training.here

    @property
    def database_url(self) -> str:
        """The database's URL; SQLite in the state folder when none is set. Raises ConfigError."""
        if self.database_file:
            return read_database_file(self.database_file)
        return self.database or f"sqlite:///{self.state_dir / 'cairn.db'}"

    @property
    def blobs_url(self) -> str:
        """The blobs' URL; a folder in the state folder when none is set."""
        return self.blobs or f"file://{(self.state_dir / 'blobs').resolve()}"

    @property
    def spool(self) -> Path:
        """Where files wait on their way into the store; on a disk of this machine."""
        return self.state_dir / "spool"

    @property
    def runs(self) -> Path:
        """Folder of the runs' checkpoints, one folder a run."""
        return self.state_dir / "runs"

    @property
    def addresses_file(self) -> Path:
        """Where the running server announces its actual addresses."""
        return self.state_dir / ADDRESSES


def read_database_file(path: Path) -> str:
    """Read a database's URL out of a file. Raises ConfigError, without the URL."""
    try:
        url = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"database_file {path} cannot be read; it holds the database's URL alone") from error
    if not url or len(url.split()) > 1:
        raise ConfigError(f"database_file {path} does not hold one URL; postgresql+psycopg://… is expected")
    return url


def load_settings(path: Path) -> AggregatorSettings:
    """Read aggregator.toml. Raises ConfigError."""
    return load(path, AggregatorSettings)
