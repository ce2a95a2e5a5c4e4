"""A site's settings: one TOML file, docs/EDGE.md. What a person must decide has no default."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cairn.config import Settings, load
from cairn.errors import ConfigError
from cairn.images.image import RawLayout
from cairn.kernels import best
from cairn.logs import LogFile
from cairn.tracing import Telemetry
from edge_node.privacy.settings import PrivacySettings


def _loopback(address: str) -> str:
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not (colon and inside and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{address!r} is not host:port on this machine itself; write 127.0.0.1:PORT, 0 for any port")
    return address


def _full_fingerprint(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ValueError(f"{text!r} is not a plan's fingerprint of 64 hexadecimal digits")
    return text.lower()


def _inside(address: str) -> str:
    """Take an address on this machine itself, or every one of a container's own, which `Local` looks at again."""
    return address if EVERY_ADDRESS.fullmatch(address) else _loopback(address)


EVERY_ADDRESS = re.compile(r"0\.0\.0\.0:(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])")
Loopback = Annotated[str, AfterValidator(_loopback)]
Inside = Annotated[str, AfterValidator(_inside)]
Fingerprint = Annotated[str, AfterValidator(_full_fingerprint)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Raw(_Section):
    """Shape of raw files that have no header, such as `.im3`-style planar uint16."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    bands: int = Field(ge=1, le=128)
    bands_last: bool
    dtype: str = "<u2"

    def layout(self) -> RawLayout:
        """Say it as the readers take it."""
        return RawLayout(self.height, self.width, self.bands, self.bands_last, self.dtype)


class Images(_Section):
    """Where the images are and what their bands are called here.

    bands  wanted name = name or index in this site's files; names that agree need no entry
    raw    only for raw files
    """

    folder: Path
    bands: Mapping[str, str | int] = Field(default_factory=dict)
    raw: Raw | None = None


class Labels(_Section):
    """Where label images are written; `state_dir/labels` unless a folder is named."""

    folder: Path | None = None
    format: Literal["ome-tiff", "ome-zarr"] = "ome-tiff"


class Approval(_Section):
    """What this site takes part in: patterns of study names, or exact plans, or both. Empty lists approve nothing."""

    studies: tuple[str, ...] | None = None
    fingerprints: tuple[Fingerprint, ...] | None = None

    @model_validator(mode="after")
    def _decided(self) -> "Approval":
        if self.studies is None and self.fingerprints is None:
            raise ValueError(
                'only you can decide what may leave: give studies = ["name-*"] or fingerprints = ["…"], [] for nothing'
            )
        return self


class Local(_Section):
    """Where the site's own people look: gRPC status and the read-only page, on this machine only.

    in_container  the service has a network of its own, of which others see what the container's engine publishes, and
                  that on the machine's 127.0.0.1: then, and only then, may the page listen on 0.0.0.0
    """

    listen: Loopback = "127.0.0.1:0"
    page: Inside = "127.0.0.1:0"
    in_container: bool = False

    @model_validator(mode="after")
    def _nobody_else(self) -> "Local":
        if EVERY_ADDRESS.fullmatch(self.page) and not self.in_container:
            raise ValueError(
                f"page {self.page!r} would let everybody on the network read it; write 127.0.0.1:PORT, or in a "
                "container in_container = true, and publish the port on 127.0.0.1 alone"
            )
        return self


Table = Mapping[str, Any]
PATHS = frozenset({"images", "landmarks", "labels", "backgrounds", "folder"})  # in a table of training's data


class Training(_Section):
    """Which runs this site trains in, and on what; without this section it trains in none.

    runs      patterns of run names
    scenes    tables of images with landmarks; the trainer knows what may stand in them
    labelled  tables of images with labels; the same
    volumes   tables of volumes with labels; the same
    processes  that may learn one network together, each with so many threads
    """

    runs: tuple[str, ...]
    scenes: tuple[Table, ...] = ()
    labelled: tuple[Table, ...] = ()
    volumes: tuple[Table, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(2, ge=1, le=256)
    processes: int = Field(1, ge=1, le=64)

    @model_validator(mode="after")
    def _something(self) -> "Training":
        if not any(self.tables.values()):
            raise ValueError(
                "there is nothing to learn from; give a table [[training.scenes]] (images with landmarks), "
                "[[training.labelled]] (images with labels) or [[training.volumes]] (volumes with labels)"
            )
        return self

    @property
    def tables(self) -> dict[str, tuple[Table, ...]]:
        """All data by kind, as the trainer is told of it."""
        return {"scenes": self.scenes, "labelled": self.labelled, "volumes": self.volumes}


Stream = Literal["pixels", "replay", "updates"]


class Masking(_Section):
    """With whom this site is ready to be summed.

    least     sites in a sum, itself among them; with fewer it sends nothing
    peers     patterns of names; None allows every site that the federation's CA has certified
    required  streams that leave in masked sums alone, whatever is approved
    """

    least: int = Field(3, ge=3)
    peers: tuple[str, ...] | None = None
    required: tuple[Stream, ...] = ()


@dataclass(frozen=True)
class Span:
    """Hours of some days; `begin` after `end` goes over midnight.

    text        as it was written
    days        0 is Monday
    begin, end  minutes since midnight, 0 to 1440
    """

    text: str

    days: frozenset[int]
    begin: int
    end: int


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")


def read_span(text: object) -> object:
    """Read hours such as 20:00-06:00 or mon-fri 18:00-24:00, by the site's own clock. Raises ValueError."""
    if not isinstance(text, str):
        return text
    found = _SPAN.fullmatch(text.strip().lower())
    numbers = [int(number) for number in found.groups()[2:]] if found else []
    named = [day for day in found.groups()[:2] if day] if found else []
    known = all(day in _DAYS for day in named) and all(minutes < 60 for minutes in numbers[1::2])
    begin, end = (60 * numbers[0] + numbers[1], 60 * numbers[2] + numbers[3]) if numbers else (0, 0)
    if not (found and known and begin < 1440 and 0 < end <= 1440 and begin != end):
        raise ValueError(f"{text!r} are no hours; write 20:00-06:00, or mon-fri 18:00-24:00")
    first, last = (_DAYS.index(named[0]), _DAYS.index(named[-1])) if named else (0, 6)
    return Span(text, frozenset((first + step) % 7 for step in range((last - first) % 7 + 1)), begin, end)


Hours = Annotated[Span, BeforeValidator(read_span)]


class Policy(_Section):
    """What may leave at all, whatever is approved; without this section the approval alone decides.

    streams        tallies of pixels, tallies of replay, model updates
    approvers      people one of whom must approve every plan by `cairn edge approve`; none: the patterns are enough
    bytes_per_day  of all tallies and updates, in a day of the site's own clock
    hours          in which they leave; none: at any time
    runs           exact runs, by the digest that the site's page and the run's page name; None: those that fit a name
    apps           digests of the trainer's program, `cairn edge policy app`; None: the one that is installed
    """

    streams: tuple[Stream, ...] = ("pixels", "replay", "updates")
    approvers: tuple[str, ...] = ()
    bytes_per_day: int | None = Field(None, ge=1)
    hours: tuple[Hours, ...] = ()
    runs: tuple[Fingerprint, ...] | None = None
    apps: tuple[Fingerprint, ...] | None = None

    def said(self) -> dict[str, Any]:
        """Give the policy in plain words and numbers, for a person."""
        return {
            "streams": list(self.streams),
            "approvers": list(self.approvers) or None,
            "bytes_per_day": self.bytes_per_day,
            "hours": [span.text for span in self.hours] or None,
            "runs": None if self.runs is None else list(self.runs),
            "apps": None if self.apps is None else list(self.apps),
        }


class Scale(_Section):
    """By whom images are counted; without this section by threads of the service's counting child.

    workers    processes that are started on this machine
    scheduler  address of the site's own Dask cluster, whose workers see the folder of images under the same path
    """

    workers: int | None = Field(None, ge=1, le=1024)
    scheduler: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Scale":
        if (self.workers is None) == (self.scheduler is None):
            raise ValueError("give workers = NUMBER for processes of this machine, or scheduler = ADDRESS, one of both")
        return self


class SiteSettings(Settings):
    """The whole of site.toml."""

    state_dir: Path
    images: Images
    approval: Approval
    training: Training | None = None
    masking: Masking = Masking()
    policy: Policy = Policy()
    privacy: PrivacySettings = PrivacySettings()
    labels: Labels = Labels()
    local: Local = Local()
    scale: Scale | None = None
    backend: Literal["auto", "numpy", "numba", "cupy"] = "auto"
    threads: int = Field(2, ge=1, le=256)
    rescan_seconds: float = Field(60.0, gt=0)
    log: LogFile = LogFile()
    telemetry: Telemetry = Telemetry()

    @property
    def labels_folder(self) -> Path:
        """Where label images go."""
        return self.labels.folder or self.state_dir / "labels"

    @property
    def kernels(self) -> Literal["numpy", "numba", "cupy"]:
        """The backend that counts."""
        return best()[0] if self.backend == "auto" else self.backend

    @property
    def identity_folder(self) -> Path:
        """Where the key and the certificate are."""
        return self.state_dir / "identity"

    @property
    def training_folder(self) -> Path:
        """Where everything of the training is."""
        return self.state_dir / "training"

    @property
    def replay_folder(self) -> Path:
        """Where the trainer puts the keys of its transitions, to be tallied."""
        return self.training_folder / "replay"


def load_settings(path: Path) -> SiteSettings:
    """Read site.toml. Raises ConfigError."""
    settings = load(path, SiteSettings)
    if settings.training:
        beside = path.parent.resolve()
        whole = {
            kind: tuple(_in_full(table, beside) for table in tables)
            for kind, tables in settings.training.tables.items()
        }
        _name_labels(whole["scenes"], settings.labels_folder)
        training = settings.training.model_copy(update=whole)
        settings = settings.model_copy(update={"training": training})
    if settings.labels_folder.resolve().is_relative_to(settings.images.folder.resolve()):
        raise ConfigError(
            f"label images would go to {settings.labels_folder}, inside images.folder, and be taken for images; "
            "set labels.folder or state_dir to a place outside"
        )
    return settings


def _in_full(table: Table, beside: Path) -> dict[str, Any]:
    """Say a table's relative paths in full."""
    return {
        key: str(beside / Path(value).expanduser()) if key in PATHS and isinstance(value, str) else value
        for key, value in table.items()
    }


def _name_labels(scenes: Sequence[dict[str, Any]], labels: Path) -> None:
    """Write where label images of a study are, which are this site's own."""
    for number, scene in enumerate(scenes):
        if scene.get("kind") == "labels" and "folder" not in scene:
            study = scene.pop("study", None)
            if not isinstance(study, str):
                raise ConfigError(
                    f"site.toml: training.scenes.{number}.study is missing; name the study whose label images are "
                    "searched, or set folder"
                )
            scene["folder"] = str(labels / study)
