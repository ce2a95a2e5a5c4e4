"""What a support bundle may hold: versions, states, logs; no pixels, keys, tokens, file names or names of patients.

A log line goes in only as far as every word of it is known to be harmless: keys by a list, values without paths.
"""

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cairn import __version__
from cairn.errors import ConfigError
from deploy.clinic.planning import Planned

# Fields of the services' logs that name nothing of a patient; all others are left out.
FIELDS = frozenset(
    re.findall(
        r"\w+",
        "time timestamp level event kind site federation study stage window run round plan fingerprint method thread "
        "bytes grpc page address enrolment dashboard superlink version state code seconds attempt process pid trace_id "
        "span_id request member retry_in_seconds stream rows files sites ended signal exit",
    )
)
TRACE = re.compile(r'^\s*File "(?:[^"]*/)?([^"/]+)", line (\d+), in ([\w<>]+)')
RAISED = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt|Exit))\b")
OUT = "(left out)"
_HIDDEN = [
    (re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|$)", re.DOTALL), "(key)"),
    (re.compile(r"cairn-invitation-1\.[\w-]+"), "(invitation)"),
    (re.compile(r"\b\w+://[^\s/@]+@"), "(user)@"),
    (re.compile(r"(?:spiffe://)?(?<![\w.:/])(?:~|\.{1,2})?/(?:[^\s\"'<>|,;:]+)"), "(path)"),
    (
        re.compile(
            r"\b[\w.-]+\.(?:tiff?|svs|ndpi|mrxs|dcm|nii|gz|zarr|png|jpe?g|im3|fw|csv|json|h5|qptiff|scn)\b", re.I
        ),
        "(file)",
    ),
    (re.compile(r"\b[0-9a-fA-F]{32,}\b"), "(digest)"),
    (re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}"), "(secret)"),
]


def hide(text: str) -> str:
    """Take keys, tokens, paths and file names out of a sentence."""
    for found, instead in _HIDDEN:
        text = found.sub(instead, text)
    return text[:500]


def harmless(line: str) -> str:
    """Return of a line of a log what may leave."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict):
        kept = {key: _value(value) for key, value in said.items() if key in FIELDS}
        if "exception" in said:
            kept["exception"] = [harmless(part) for part in str(said["exception"]).splitlines() if "File" in part][-8:]
        return json.dumps(kept, ensure_ascii=False)
    if found := TRACE.match(line):
        return f"  {found[1]}:{found[2]} in {found[3]}"
    if found := RAISED.match(line):
        return found[1]
    return OUT


def _value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) or value is None else hide(str(value))


def about_container(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Take of a container's attributes what helps; of its environment the names alone."""
    state, config, host = attrs["State"], attrs["Config"], attrs["HostConfig"]
    health = state.get("Health") or {}
    return {
        "image": config["Image"],
        "image_id": attrs["Image"],
        "command": config["Cmd"],
        "user": config["User"],
        "environment": sorted(entry.partition("=")[0] for entry in config.get("Env") or ()),
        "state": {key: state.get(key) for key in ("Status", "ExitCode", "OOMKilled", "StartedAt", "FinishedAt")},
        "health": {"status": health.get("Status"), "failing": health.get("FailingStreak")},
        "restarts": attrs["RestartCount"],
        "memory": host["Memory"],
        "nano_cpus": host["NanoCpus"],
        "read_only": host["ReadonlyRootfs"],
        "mounts": [{"type": mount["Type"], "to": mount["Destination"], "rw": mount["RW"]} for mount in attrs["Mounts"]],
        "ports": sorted((host.get("PortBindings") or {}).keys()),
    }


def about_engine(version: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Take of the engine's answers what helps."""
    kept = ("ServerVersion", "OperatingSystem", "KernelVersion", "Architecture", "NCPU", "MemTotal", "Driver")
    kept += ("CgroupVersion", "SystemTime", "SecurityOptions", "Warnings")  # type: ignore[assignment]
    return {"api": version.get("ApiVersion"), **{key: info.get(key) for key in kept}}


def about_edge(status: Mapping[str, Any]) -> dict[str, Any]:
    """Take of an edge's status what helps; its problems may name files, so only their number goes in."""
    kept = ("site", "version", "connected", "working_on", "pixels_done", "pixels_total", "outbox", "bytes_sent")
    return {**{key: status.get(key) for key in kept}, "problems": len(status.get("problems", []))}


def write_support(out: Path, planned: Planned, parts: Mapping[str, Any], logs: str) -> list[str]:
    """Write the bundle, a .tar.gz that a person can look into first; returns the names in it."""
    if out.exists():
        raise ConfigError(f"{out} is there already; name another file")
    plan: dict[str, Any] = {
        "container": planned.container,
        "image": planned.image,
        "network": planned.network,
        "gpu": planned.gpu,
    }
    plan |= {"memory": planned.memory, "cpus": planned.cpus, "folders": len(planned.folders)}
    files = {f"{name}.json": json.dumps(part, indent=2, default=str) for name, part in parts.items()}
    files["versions.json"] = json.dumps({"tool": __version__, "plan": plan}, indent=2)
    files["log.jsonl"] = "\n".join(harmless(line) for line in logs.splitlines())
    try:
        with tarfile.open(out, "x:gz") as tar:
            for name, text in sorted(files.items()):
                entry = tarfile.TarInfo(f"support/{name}")
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    out.chmod(0o600)
    return sorted(files)
