"""Look at everything before anything is changed: settings, secrets, engine, image, data, network, clock."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from docker.types import Mount

from cairn.errors import CairnError
from cairn.invitation import Invitation
from deploy.clinic import checks, probe
from deploy.clinic.archive import Contents, read_archive
from deploy.clinic.checks import DATA, STATE, Findings
from deploy.clinic.containers import find, find_image, has_volume, look_inside, state_mount
from deploy.clinic.engine import Engine, Target, spoken
from deploy.clinic.planning import Planned, plan
from deploy.clinic.settings import Deployment
from edge_node.settings import SiteSettings, load_settings


@dataclass
class Seen:
    """What was found.

    image       attributes of the image on the engine; None when it is still to come
    container   of the deployment, None when there is none
    holds       names in the state's volume
    identity    of an enrolled site: who, until when, where its aggregator is
    """

    planned: Planned
    findings: Findings = field(default_factory=Findings)
    site: SiteSettings | None = None
    invited: Invitation | None = None
    archive: Contents | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    version: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] | None = None
    container: Any = None
    holds: list[str] = field(default_factory=list)
    identity: Mapping[str, Any] | None = None

    @property
    def gpu(self) -> bool:
        """Tell whether the container gets a GPU."""
        return self.planned.gpu != "no" and checks.has_gpu(self.info)


def look_here(wanted: Deployment) -> Seen:
    """Look at what is on this machine: settings, secrets, the archive."""
    seen = Seen(plan(wanted))
    found = seen.findings
    if wanted.site:
        site = wanted.site
        seen.site = checks.attempt(found, lambda: load_settings(site))
        if seen.site:
            found.add(checks.check_site(seen.site, wanted))
    if wanted.invitation and wanted.invitation.exists():
        seen.invited = checks.attempt(found, lambda: checks.read_invitation(wanted.invitation, "site"))
    found.add(checks.check_secrets(wanted))
    return seen


def look(engine: Engine, target: Target, wanted: Deployment, seen: Seen) -> None:
    """Look at the engine; nothing is changed on it."""
    found = seen.findings
    with spoken("asking the engine"):
        seen.version, seen.info = engine.version(), engine.info()
    found.add(checks.check_engine(seen.version))
    if found.faults:
        return
    found.add(checks.check_memory(seen.info, wanted))
    found.add(checks.check_gpu(seen.info, wanted))
    if wanted.network and not _has_network(engine, wanted.network):
        found.faults.append(
            f"the engine has no network {wanted.network}; `docker network create {wanted.network}` makes it"
        )
    seen.container = find(engine, seen.planned.container)
    image = find_image(engine, wanted.image)
    seen.image = image.attrs if image else None
    if seen.image is None and wanted.archive:
        archive = wanted.archive
        seen.archive = checks.attempt(found, lambda: read_archive(archive, "images", wanted.archive_sha256))
        if seen.archive and wanted.image not in seen.archive.about["images"]:
            there = ", ".join(seen.archive.about["images"])
            found.faults.append(f"{archive} holds {there} and no {wanted.image}; set `image` to one of them")
    elif seen.image is None:
        found.warnings.append(f"the image {wanted.image} is not on the engine; it will be pulled from its registry")
    if seen.image is None:
        _look_from_outside(target, wanted, seen)
    else:
        look_with_image(engine, wanted, seen)


def look_with_image(engine: Engine, wanted: Deployment, seen: Seen) -> None:
    """Look as the service will: as its user, on its network, with its mounts."""
    found, planned = seen.findings, seen.planned
    there = has_volume(engine, planned.state)
    mounts = [Mount(where, folder, type="bind", read_only=True) for folder, where in planned.folders.items()]
    mounts += [state_mount(planned)] if there else []
    asked: dict[str, Any] = {"state": str(STATE), "enrolled": wanted.role == "edge", **_newcomer(seen)}
    asked["data"] = {name: str(DATA / name) for name in wanted.data}
    try:
        looked = look_inside(engine, planned, asked, mounts, planned.network)
        ours = _ports_of(seen.container)
        wished = [port for port in planned.ports.values() if port not in ours]
        if wished:
            taken = look_inside(engine, planned, {"ports": wished}, [], "host")["ports"]
            found.add(checks.check_ports(taken))
    except CairnError as error:
        found.faults.append(_about_folder(str(error)))
        return
    seen.holds, seen.identity = looked["state"]["holds"], looked["identity"]
    if seen.invited and seen.identity and seen.identity["expires"] <= looked["time"]:
        seen.identity = None
        found.warnings.append(
            "the site's certificate has ended; it enrols again with the invitation, and keeps its key"
        )
    found.add(checks.check_state(planned.state, looked["state"]))
    found.add(checks.check_disk(looked["state"]["free"], 0))
    for name, folder in wanted.data.items():
        found.add(checks.check_data(name, folder, looked["data"][name]))
    _judge_aggregator(wanted, seen, looked["reached"], looked["time"])


def _newcomer(seen: Seen) -> dict[str, Any]:
    if not seen.invited:
        return {}
    return {
        "ca": seen.invited.ca_pem,
        "reach": [seen.invited.enrolment_address],
        "knock": [seen.invited.address],
    }


def _judge_aggregator(wanted: Deployment, seen: Seen, reached: list[dict[str, Any]], engine_time: float) -> None:
    if wanted.role == "aggregator":
        return
    found = seen.findings
    found.add(checks.check_certificate(seen.identity, datetime.now(UTC)))
    if seen.identity is None:
        checks.attempt(found, lambda: checks.read_invitation(wanted.invitation, "site"))
    for one in reached:
        found.add(checks.check_reached(one))
    if times := [one["time"] for one in reached if one["step"] == "done" and one["time"] is not None]:
        found.add(checks.check_clock(engine_time, times[-1]))
    elif any(one["step"] == "done" for one in reached):
        found.add(checks.check_clock(engine_time, None))


def _look_from_outside(target: Target, wanted: Deployment, seen: Seen) -> None:
    """Look as well as it can be done before the image is there; the rest follows once it is, before anything starts."""
    found = seen.findings
    free = None
    if target.local:
        root = Path(str(seen.info.get("DockerRootDir", "/")))
        free = shutil.disk_usage(root if root.exists() else "/").free
        for name, folder in wanted.data.items():
            looked = probe.look_at_data(str(folder))
            if looked["error"] or not looked["entries"]:
                found.add(checks.check_data(name, folder, looked))
        ours = _ports_of(seen.container)
        taken = [address for address in seen.planned.ports.values() if address not in ours and probe.taken(*address)]
        found.add(checks.check_ports(taken))
    found.add(checks.check_disk(free, seen.archive.about["bytes"] if seen.archive else 0))
    if seen.invited and target.local:
        newcomer = _newcomer(seen)
        reached = [probe.reach(address, newcomer["ca"]) for address in newcomer["reach"]]
        reached += [probe.reach(address, None) for address in newcomer["knock"]]
        _judge_aggregator(wanted, seen, reached, time.time())
    elif seen.invited:
        found.warnings.append("whether the aggregator can be reached is only known once the image is on the engine")
    elif wanted.role == "edge" and seen.container is not None:
        found.warnings.append("whether the site is enrolled is only known once the image is on the engine")


def _has_network(engine: Engine, name: str) -> bool:
    with spoken("asking the engine for its networks"):
        return any(network.name == name for network in engine.networks.list(names=[name]))


def _ports_of(container: Any) -> set[tuple[str, int]]:
    """Say which addresses of the machine a running container of ours holds already."""
    if container is None or container.status != "running":
        return set()
    bindings = (container.attrs["HostConfig"].get("PortBindings") or {}).values()
    return {(one["HostIp"], int(one["HostPort"])) for some in bindings for one in some or ()}


def _about_folder(sentence: str) -> str:
    missing = sentence.partition("bind source path does not exist:")[2].strip()
    return f"the engine's machine has no folder {missing}; correct [data], or mount it there" if missing else sentence
