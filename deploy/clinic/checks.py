"""What must be so before anything is changed, in plain words. Pure: facts come in, findings go out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from cairn.errors import BadToken, CairnError, ConfigError
from cairn.invitation import Invitation, parse
from deploy.clinic.settings import Deployment
from edge_node.settings import PATHS, SiteSettings

OLDEST_API = (1, 41)  # Docker 20.10
ROOM = 2 << 30  # bytes free beside what the image takes
CLOCK_OFF = timedelta(minutes=5)  # certificates are dated; hours in which a site sends are of its own clock
SOON = timedelta(days=30)
STATE = PurePosixPath("/var/lib/cairn")
DATA = PurePosixPath("/data")
USER = 10001


@dataclass
class Findings:
    """Sentences. `faults` keep everything from being changed, `warnings` do not."""

    fine: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Take over another's."""
        self.fine += other.fine
        self.warnings += other.warnings
        self.faults += other.faults


def fine(sentence: str) -> Findings:
    """Find that something is as it should be."""
    return Findings(fine=[sentence])


def warning(sentence: str) -> Findings:
    """Find something that a person should know."""
    return Findings(warnings=[sentence])


def fault(sentence: str) -> Findings:
    """Find something that must be mended first."""
    return Findings(faults=[sentence])


def check_engine(version: Mapping[str, Any]) -> Findings:
    """Judge whether the engine is young enough, and runs containers of this kind."""
    said, api = version.get("Version", "?"), str(version.get("ApiVersion", "0.0"))
    if tuple(int(part) for part in api.split(".")[:2]) < OLDEST_API:
        return fault(f"the Docker engine is {said} (API {api}); 20.10 (API 1.41) or newer is needed, so upgrade it")
    if version.get("Os", "linux") != "linux":
        return fault(f"the Docker engine runs {version['Os']} containers; Cairn's are for Linux")
    return fine(f"Docker engine {said}")


def check_memory(info: Mapping[str, Any], wanted: Deployment) -> Findings:
    """Judge whether there is as much memory as the container may use."""
    there = int(info.get("MemTotal", 0))
    if there < wanted.memory_bytes:
        return fault(
            f'the engine\'s machine has {in_gib(there)} of memory and memory = "{wanted.memory}" may be used; '
            "lower `memory` or take a larger machine"
        )
    if int(info.get("NCPU", 0)) < wanted.cpus:
        return fault(f"the engine's machine has {info.get('NCPU')} processors and cpus = {wanted.cpus:g}; lower `cpus`")
    return fine(f"memory {in_gib(there)}, of which {wanted.memory} may be used; {info.get('NCPU')} processors")


def check_disk(free: int | None, image_bytes: int) -> Findings:
    """Judge whether there is room for the image, where it is still to come, and for tallies and label images."""
    if free is None:
        return warning("how much disk is free is only known once the image is on the engine")
    if free < image_bytes + ROOM:
        return fault(
            f"{in_gib(free)} are free on the engine's disk; {in_gib(image_bytes + ROOM)} are needed, free some"
        )
    return fine(f"{in_gib(free)} free on the engine's disk")


def check_gpu(info: Mapping[str, Any], wanted: Deployment) -> Findings:
    """Judge whether the engine can give a GPU, where one is wanted."""
    if wanted.gpu == "no":
        return Findings()
    if has_gpu(info):
        return fine("the engine can give NVIDIA GPUs")
    without = "the engine has no NVIDIA runtime"
    if wanted.gpu == "required":
        return fault(f'{without}, and gpu = "required"; install the NVIDIA Container Toolkit, or set gpu = "auto"')
    return warning(f"{without}; everything is done on the CPU")


def has_gpu(info: Mapping[str, Any]) -> bool:
    """Tell whether the engine says that it can give an NVIDIA GPU."""
    return "nvidia" in (info.get("Runtimes") or {}) or any(
        "nvidia.com/gpu" in str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()
    )


def check_clock(engine: float, aggregator: float | None) -> Findings:
    """Judge whether the engine's machine has the aggregator's time; both in seconds since 1970."""
    if aggregator is None:
        return warning("the aggregator does not tell its time; the clock was not compared")
    off = timedelta(seconds=round(engine - aggregator))
    if abs(off) > CLOCK_OFF:
        way = "ahead of" if off > timedelta() else "behind"
        return fault(
            f"the clock of the engine's machine is {abs(off)} {way} the aggregator's; "
            "set it (`timedatectl set-ntp true`), as certificates are dated"
        )
    return fine(f"the clock is within {max(1, abs(off).seconds)} s of the aggregator's")


def check_certificate(identity: Mapping[str, Any] | None, now: datetime) -> Findings:
    """Judge whether this site's certificate still holds."""
    if identity is None:
        return Findings()
    ends = datetime.fromtimestamp(identity["expires"], UTC)
    if ends <= now:
        return fault(f"the site's certificate ended on {ends:%Y-%m-%d}; ask for an invitation and enrol again")
    if ends - now < SOON:
        return warning(f"the site's certificate ends on {ends:%Y-%m-%d}; the running service renews it")
    return fine(f"enrolled as {identity['who']}; the certificate holds until {ends:%Y-%m-%d}")


def check_data(name: str, folder: PurePosixPath, looked: Mapping[str, Any]) -> Findings:
    """Judge whether the service's user can read what is in a data folder."""
    if looked["error"] == "Permission denied":
        return fault(
            f"the data folder {folder} cannot be read by user {USER}, as which the service runs; "
            f"`chmod o+rx {folder}` or `setfacl -R -m u:{USER}:rX {folder}` on the engine's machine allows it"
        )
    if looked["error"]:
        return fault(f"the data folder {folder} cannot be read: {looked['error']}")
    if not looked["entries"]:
        return fault(f"the data folder {folder} is empty; name the folder of images under [data] {name}")
    if looked["unreadable"]:
        return warning(
            f"{looked['unreadable']} of the {looked['entries']} entries of {folder} looked at cannot be read by user "
            f"{USER}; they will be left out (`setfacl -R -m u:{USER}:rX {folder}` allows it)"
        )
    return fine(f"the data folder {folder} can be read")


def check_state(volume: str, looked: Mapping[str, Any]) -> Findings:
    """Judge whether the service's user can write into the volume of its state."""
    if looked["writable"]:
        return Findings()
    return fault(
        f"the volume {volume} cannot be written by user {USER} ({looked['error']}); "
        "was it made by something else? Rename the deployment, or give the volume to that user"
    )


def check_ports(taken: Iterable[Sequence[Any]]) -> Findings:
    """Judge whether the ports that are to be published are free."""
    found = Findings()
    for host, port in taken:
        found.faults.append(f"port {port} of {host} on the engine's machine is taken; free it, or choose another")
    return found


def check_reached(reached: Mapping[str, Any]) -> Findings:
    """Say in words whether the aggregator was reached, and what was in the way."""
    address, step, why = reached["address"], reached["step"], reached["error"]
    if why is None:
        return fine(f"the aggregator answers at {address}")
    host, _, port = address.rpartition(":")
    if "not yet valid" in why or "has expired" in why:
        return fault(
            f"by the clock of the engine's machine the certificate of {address} does not hold ({why}); "
            "set the clock (`timedatectl set-ntp true`), and if it is right ask the operator"
        )
    return fault(
        {
            "name": f"the name {host} cannot be found from a container; check the address and the machine's DNS",
            "port": f"nothing answers at {address} ({why}); open TCP to port {port} of {host} in the firewall",
            "tls": f"what answers at {address} does not show a certificate of this federation ({why}); "
            "a proxy that opens TLS must let this address through, else ask the operator",
            "answer": f"the aggregator at {address} does not answer as it should ({why}); ask its operator",
        }[step]
    )


def read_invitation(path: Path | None, wanted: str) -> Invitation:
    """Read the invitation that a site needs to enrol. Raises ConfigError, BadToken."""
    if path is None:
        raise ConfigError('the site is not enrolled yet; set invitation = "invitation.txt" in deployment.toml')
    try:
        invited = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the invitation {path} cannot be read; ask the operator for one and save its line there"
        ) from error
    if invited.role != wanted:
        raise BadToken(f"the invitation {path} is for the role {invited.role}; ask for one for the role {wanted}")
    return invited


def check_site(site: SiteSettings, wanted: Deployment) -> Findings:
    """Judge whether the site's settings fit the container: state in the volume, all paths under what is mounted."""
    found = Findings()
    if PurePosixPath(site.state_dir) != STATE:
        found.faults.append(f'site.toml: state_dir is {site.state_dir}; in the container it must be "{STATE}"')
    mounted = [DATA / name for name in wanted.data]
    for key, path in _paths(site):
        if not any(path.is_relative_to(folder) for folder in (*mounted, STATE)):
            there = " and ".join(str(folder) for folder in mounted)
            found.faults.append(f"site.toml: {key} is {path}, which is not in the container; mounted is {there}")
    return found


def _paths(site: SiteSettings) -> list[tuple[str, PurePosixPath]]:
    named = [("images.folder", PurePosixPath(site.images.folder))]
    if site.labels.folder:
        named.append(("labels.folder", PurePosixPath(site.labels.folder)))
    for kind, tables in site.training.tables.items() if site.training else ():
        named += [
            (f"training.{kind}.{number}.{key}", PurePosixPath(str(table[key])))
            for number, table in enumerate(tables)
            for key in sorted(PATHS & table.keys())
        ]
    return named


def check_secrets(wanted: Deployment) -> Findings:
    """Judge whether the secrets are there, for their owner alone, and what they should be."""
    found = Findings()
    for name, path in wanted.secrets.items():
        try:
            text, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
        except (OSError, UnicodeDecodeError):
            found.faults.append(
                f"the secret {name} cannot be read from {path}; put it there, for you alone (chmod 600)"
            )
            continue
        if not text:
            found.faults.append(f"the secret {name} in {path} is empty")
        elif name == "at-rest-key" and not all(re.fullmatch("[0-9a-fA-F]{64}", line) for line in text.splitlines()):
            found.faults.append(
                f"{path} holds no at-rest key of 64 hexadecimal digits; `cairn aggregator at-rest key` makes one"
            )
        if mode & 0o077:
            found.warnings.append(f"others on this machine may read the secret {name}: chmod 600 {path}")
    return found


def attempt(of: "Findings", what: Any) -> Any:
    """Call something that raises a sentence; keep the sentence as a fault."""
    try:
        return what()
    except CairnError as error:
        of.faults.append(str(error))
        return None


def in_gib(count: int) -> str:
    """Write bytes for a person."""
    return f"{count / (1 << 30):.1f} GiB"
