"""How a deployment stands, and what of that a support bundle takes along."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cairn.errors import CairnError, ConfigError
from deploy.clinic import probe
from deploy.clinic.checks import STATE, check_certificate, in_gib
from deploy.clinic.containers import edge_status, find
from deploy.clinic.engine import Engine, spoken
from deploy.clinic.planning import Planned, plan
from deploy.clinic.settings import Deployment
from deploy.clinic.support import about_container, about_edge, about_engine, write_support


def existing(engine: Engine, wanted: Deployment) -> Any:
    """Find the deployment's container. Raises ConfigError when there is none."""
    name = plan(wanted).container
    container = find(engine, name)
    if container is None:
        raise ConfigError(f"there is no container {name} on this engine; `cairn deploy up` makes it")
    return container


def standing(engine: Engine, wanted: Deployment) -> dict[str, Any]:
    """Say how it stands, for a person and for --json."""
    planned = plan(wanted)
    container = find(engine, planned.container)
    cut_off = "an upgrade was cut off; `cairn deploy up` brings back what ran before it"
    if container is None:
        note = {"note": cut_off} if find(engine, planned.before) else {}
        return {"container": planned.container, "state": "absent", **note}
    state = container.attrs["State"]
    found: dict[str, Any] = {
        "container": container.name,
        "state": container.status,
        "health": (state.get("Health") or {}).get("Status", "unknown"),
        "image": container.attrs["Config"]["Image"],
        "since": state["StartedAt"] if container.status == "running" else state["FinishedAt"],
        "restarts": container.attrs["RestartCount"],
    }
    if found["image"] != wanted.image:
        found["note"] = f"the settings name {wanted.image}; `cairn deploy upgrade` changes to it"
    if find(engine, planned.before):
        found["note"] = cut_off
    if container.status == "running":
        found |= _inside(container, planned)
    return found


def _inside(container: Any, planned: Planned) -> dict[str, Any]:
    looked = _probed(container)
    found: dict[str, Any] = {}
    if looked:
        found["free disk"] = in_gib(looked["state"]["free"])
        certificate = check_certificate(looked["identity"], datetime.now(UTC))
        if said := [*certificate.fine, *certificate.warnings, *certificate.faults]:
            found["certificate"] = said[0]
    if planned.command[0] == "edge":
        now = edge_status(container)
        if not now:
            return found | {"connected": False, "problems": ["the service does not answer yet"]}
        found |= {key: now[key] for key in ("connected", "version", "outbox", "bytes_sent", "problems")}
        found["works on"] = now.get("working_on") or "nothing"
        return found
    with spoken("asking the aggregator"):
        answer = container.exec_run(["cairn", "aggregator", "check", "--dir", str(STATE), "--json"], demux=True)
    try:
        said = json.loads(answer.output[0] or b"")
    except ValueError:
        return found
    return found | {"warnings": said["warnings"], "problems": said["faults"]}


def _probed(container: Any) -> dict[str, Any] | None:
    """Run the probe inside of the running container."""
    source = Path(probe.__file__).read_text(encoding="utf-8")
    with spoken("looking around in the container"):
        command = ["python3", "-I", "-c", source, json.dumps({"state": str(STATE)})]
        answer = container.exec_run(command, demux=True)
    if answer.exit_code:
        return None
    looked: dict[str, Any] = json.loads(answer.output[0])
    return looked


def support(engine: Engine, wanted: Deployment, out: Path, tail: int) -> list[str]:
    """Write the support bundle; returns the names in it."""
    container = existing(engine, wanted)
    with spoken("gathering"):
        parts: dict[str, Any] = {"engine": about_engine(engine.version(), engine.info())}
        parts["container"] = about_container(container.attrs)
        logs = container.logs(tail=tail).decode(errors="replace")
    if container.status == "running":
        try:
            if wanted.role == "edge":
                parts["status"] = about_edge(edge_status(container))
            if looked := _probed(container):
                ends = (looked["identity"] or {}).get("expires")
                parts["inside"] = {
                    "free": looked["state"]["free"],
                    "memory": looked["memory"],
                    "certificate_ends": ends,
                }
        except CairnError as error:
            parts["status"] = {"kind": type(error).__name__}
    return write_support(out, plan(wanted), parts, logs)
