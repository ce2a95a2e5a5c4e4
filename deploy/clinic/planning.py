"""What would run: containers, volumes, ports, and what leaves. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy.clinic.checks import DATA, STATE, USER
from deploy.clinic.settings import Deployment
from edge_node.settings import SiteSettings

LABEL = "cairn.deployment"
SPEC = "cairn.spec"
SETTINGS, SECRETS = "/etc/cairn", "/run/secrets"
TMP = "/tmp"  # noqa: S108 # nosec B108
DRAIN_S = 45  # a service that is asked to stop ends what is under way within this
PAGE = 8447  # of a site, inside the container
# Secrets that the aggregator reads from a file, and by which variable it hears of it.
READ = {"at-rest-key": "CAIRN_AT_REST__KEY_FILE", "database-url": "CAIRN_DATABASE_FILE"}
LOOPBACK = "127.0.0.1"
ANYWHERE = "0.0.0.0"  # noqa: S104 - sites come from outside


@dataclass(frozen=True)
class Planned:
    """One container and what belongs to it.

    volumes   name = where; read-only ends in ":ro"
    folders   folder of the engine's machine = where; all read-only
    ports     container's port = (address, port) of the engine's machine
    """

    container: str
    image: str
    command: tuple[str, ...]
    volumes: Mapping[str, str]
    folders: Mapping[str, str]
    ports: Mapping[int, tuple[str, int]]
    environment: Mapping[str, str]
    memory: int
    cpus: float
    network: str
    gpu: str

    @property
    def state(self) -> str:
        """The volume of the state."""
        return f"{self.container}-state"

    @property
    def settings(self) -> str:
        """The volume of the settings."""
        return f"{self.container}-settings"

    @property
    def secrets(self) -> str:
        """The volume of the secrets."""
        return f"{self.container}-secrets"

    @property
    def before(self) -> str:
        """What the container is called that an upgrade has stopped and may come back."""
        return f"{self.container}-before"


def plan(wanted: Deployment) -> Planned:
    """Say what would run."""
    name = f"cairn-{wanted.name}"
    volumes = {f"{name}-state": str(STATE)}
    environment: dict[str, str] = {}
    ports: dict[int, tuple[str, int]] = {}
    if wanted.secrets:
        volumes[f"{name}-secrets"] = f"{SECRETS}:ro"
    if wanted.aggregator:
        command: tuple[str, ...] = ("aggregator", "serve", "--dir", str(STATE))
        ours = wanted.aggregator
        listens = {"LISTEN": ours.listen, "ENROLMENT_LISTEN": ours.enrolment, "DASHBOARD_LISTEN": ours.pages}
        if ours.training:
            listens["TRAINING__SUPERLINK_LISTEN"] = ours.superlink
        # Outside the same ports as inside: invitations hold them.
        environment = {f"CAIRN_{key}": f"{ANYWHERE}:{port}" for key, port in listens.items()}
        ports = {port: (LOOPBACK if port == ours.pages else ANYWHERE, port) for port in listens.values()}
        environment |= {variable: f"{SECRETS}/{name}" for name, variable in READ.items() if name in wanted.secrets}
    else:
        command = ("edge", "run", "--config", f"{SETTINGS}/site.toml")
        volumes[f"{name}-settings"] = f"{SETTINGS}:ro"
        if wanted.page:
            environment = {"CAIRN_LOCAL__PAGE": f"{ANYWHERE}:{PAGE}", "CAIRN_LOCAL__IN_CONTAINER": "true"}
            ports = {PAGE: (LOOPBACK, wanted.page)}
    return Planned(
        container=name,
        image=wanted.image,
        command=command,
        volumes=volumes,
        folders={str(folder): str(DATA / key) for key, folder in wanted.data.items()},
        ports=ports,
        environment=environment,
        memory=wanted.memory_bytes,
        cpus=wanted.cpus,
        network=wanted.network or "bridge",
        gpu=wanted.gpu,
    )


def spec(planned: Planned, files: Mapping[str, bytes]) -> str:
    """Digest all that a container is made of, so that `up` knows whether it must be made anew."""
    digest = hashlib.sha256(json.dumps(asdict(planned), sort_keys=True).encode())
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def hardened(planned: Planned, *, gpu: bool) -> dict[str, Any]:
    """Say it as the SDK's `containers.create` takes it; the same hardening for every container that works."""
    from docker.types import DeviceRequest, LogConfig, Mount  # noqa: PLC0415 - a plan needs no SDK

    mounts = [
        Mount(where.removesuffix(":ro"), name, type="volume", read_only=where.endswith(":ro"))
        for name, where in planned.volumes.items()
    ]
    mounts += [Mount(where, folder, type="bind", read_only=True) for folder, where in planned.folders.items()]
    return {
        "image": planned.image,
        "command": list(planned.command),
        "name": planned.container,
        "hostname": planned.container,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": {TMP: "size=1g,mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 2048,
        "init": True,
        "mem_limit": planned.memory,
        "nano_cpus": round(planned.cpus * 1e9),
        "network": planned.network,
        "ports": dict(planned.ports),
        "environment": dict(planned.environment),
        "mounts": mounts,
        "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpu else None,
        "restart_policy": {"Name": "unless-stopped"},
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "5"}),
        "labels": {LABEL: planned.container.removeprefix("cairn-")},
    }


def leaves(site: SiteSettings | None) -> list[str]:
    """Say in sentences what may leave, as the settings allow it."""
    if site is None:
        return ["plans, merged tables and model weights, to members of the federation; an aggregator holds no images"]
    said = ["whether the site takes part in a plan, progress, and kinds of problems: to the aggregator, always"]
    allowed, policy = site.approval, site.policy
    studies = [f"of studies named {', '.join(allowed.studies)}"] if allowed.studies else []
    studies += [f"of {len(allowed.fingerprints)} exact plans"] if allowed.fingerprints else []
    if studies and "pixels" in policy.streams:
        least = site.masking.least
        said.append(f"tallies of pixels, sums over all images, {' and '.join(studies)}; masked sums need {least} sites")
    else:
        said.append("no tallies of pixels")
    if site.training and site.training.runs and "updates" in policy.streams:
        said.append(f"model updates of runs named {', '.join(site.training.runs)}")
        if "replay" in policy.streams:
            said.append("tallies of the agent's steps in those runs")
    else:
        said.append("no model updates")
    if policy.approvers:
        said.append(f"nothing before {' or '.join(policy.approvers)} has approved it")
    if policy.hours:
        said.append(f"only in the hours {', '.join(span.text for span in policy.hours)}")
    if policy.bytes_per_day:
        said.append(f"at most {policy.bytes_per_day:,} bytes a day")
    return [*said, "never: images, label images, labels, names of files or patients"]
