"""Bring a deployment up, take it down, change its image: the only places where an engine's containers change."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from docker.types import Mount
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cairn.errors import ConfigError, PolicyError
from deploy.clinic.archive import open_part
from deploy.clinic.checks import STATE, Findings
from deploy.clinic.containers import (
    Say,
    bare,
    drop_volume,
    edge_status,
    find,
    find_image,
    has_volume,
    make_volume,
    put_files,
    run_once,
    start,
    wait_until_connected,
    wait_until_well,
)
from deploy.clinic.engine import Engine, spoken
from deploy.clinic.looking import Seen, look_with_image
from deploy.clinic.planning import DRAIN_S, SECRETS, SETTINGS, SPEC, Planned, spec
from deploy.clinic.settings import Deployment

CONNECT_S = 60.0


class NotReady(PolicyError):
    """Checks found what must be mended first; nothing was changed but what the message names."""

    def __init__(self, findings: Findings, changed: str = "nothing was changed") -> None:
        super().__init__(f"{'; '.join(findings.faults)} ({changed})")


def refuse_faults(seen: Seen, changed: str = "nothing was changed") -> None:
    """Stop here when something must be mended first. Raises NotReady."""
    if seen.findings.faults:
        raise NotReady(seen.findings, changed)


def files_of(wanted: Deployment) -> dict[str, bytes]:
    """Read the site's settings and the secrets, named by where they will be."""
    files = {f"{SECRETS}/{name}": path.read_bytes() for name, path in wanted.secrets.items()}
    if wanted.site:
        files[f"{SETTINGS}/site.toml"] = wanted.site.read_bytes()
    return files


def bring_image(engine: Engine, wanted: Deployment, seen: Seen, progress: Progress) -> None:
    """Have the image on the engine: from the archive, whose checksums were compared, or from its registry."""
    if seen.archive:
        part = seen.archive.about["images"][wanted.image]["part"]
        task = progress.add_task(f"loading {wanted.image}", total=seen.archive.about["images"][wanted.image]["bytes"])
        with open_part(seen.archive, part) as chunks, spoken(f"loading {wanted.image}"):
            for line in engine.api.load_image(_counted(chunks, progress, task)):
                if "error" in line:
                    raise ConfigError(f"the engine cannot load {wanted.image}: {line['error']}")
    else:
        task = progress.add_task(f"pulling {wanted.image}", total=None)
        with spoken(f"pulling {wanted.image}, as it is not on the engine and no `archive` is set"):
            layers: dict[str, tuple[int, int]] = {}
            for line in engine.api.pull(wanted.image, stream=True, decode=True):
                if "error" in line:
                    raise ConfigError(f"{wanted.image} could not be pulled: {line['error']}")
                if detail := line.get("progressDetail"):
                    layers[line["id"]] = detail.get("current", 0), detail.get("total", 0)
                    done, total = (sum(numbers) for numbers in zip(*layers.values(), strict=True))
                    progress.update(task, completed=done, total=total or None)
    image = find_image(engine, wanted.image)
    if image is None:
        raise ConfigError(f"{wanted.image} is still not on the engine after it was loaded")
    seen.image = image.attrs


def _counted(chunks: Any, progress: Progress, task: Any) -> Any:
    for chunk in chunks:
        progress.advance(task, len(chunk))
        yield chunk


def bars(*, quiet: bool) -> Progress:
    """Make the bars of long work; they go to standard error."""
    from rich.console import Console  # noqa: PLC0415

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)


def up(engine: Engine, wanted: Deployment, seen: Seen, progress: Progress, say: Say) -> Any:
    """Have the deployment run as the settings say; what runs so already is left alone. Returns the container."""
    refuse_faults(seen)
    planned, files = seen.planned, files_of(wanted)
    wish = spec(replace(planned, image=""), files)
    if there := seen.container:
        runs = there.attrs["Config"]["Image"]
        if runs != wanted.image:
            raise ConfigError(f"{planned.container} is of {runs}; `cairn deploy upgrade` changes it to {wanted.image}")
        if there.labels.get(SPEC) == wish and (seen.identity is not None or wanted.site is None):
            if there.status != "running":
                with spoken(f"starting {planned.container}"):
                    there.start()
            wait_until_well(engine, there, wanted.ready_seconds, there.attrs["RestartCount"])
            say(f"{planned.container} runs as the settings say")
            return there
    if seen.image is None:
        bring_image(engine, wanted, seen, progress)
        say(f"the image {wanted.image} is on the engine")
        look_with_image(engine, wanted, seen)
        refuse_faults(seen, "the image was brought to the engine, nothing else was changed")
    if there := seen.container:
        say("the settings have changed: the container is made anew, its state stays")
        with spoken(f"stopping {planned.container}"):
            there.stop(timeout=DRAIN_S)
            there.remove()
    prepare(engine, wanted, seen, files, say)
    container = start(engine, planned, gpu=seen.gpu, labels={SPEC: wish})
    wait_until_well(engine, container, wanted.ready_seconds)
    say(f"{planned.container} is healthy")
    return container


def prepare(engine: Engine, wanted: Deployment, seen: Seen, files: Mapping[str, bytes], say: Say) -> None:
    """Make the volumes, fill those of settings and secrets, enrol the site or found the federation."""
    planned = seen.planned
    for volume, folder in ((planned.settings, SETTINGS), (planned.secrets, SECRETS)):
        named = {path.rpartition("/")[2]: content for path, content in files.items() if path.startswith(f"{folder}/")}
        if named:
            put_files(engine, planned.image, volume, named, planned.container)
    make_volume(engine, planned.state, planned.container)
    if wanted.aggregator and "aggregator.toml" not in seen.holds:
        said = run_once(engine, "founding the federation", _one_shot(planned, _founding(wanted), "bridge"))
        say(said.strip().splitlines()[0])
    if wanted.site and seen.identity is None:
        assert wanted.invitation is not None  # looked at
        taken = f"{planned.container}-invitation"
        put_files(engine, planned.image, taken, {"invitation": wanted.invitation.read_bytes()}, planned.container)
        try:
            command = ["edge", "enrol", "--config", f"{SETTINGS}/site.toml", "--invitation", f"{SECRETS}/invitation"]
            options = _one_shot(planned, command, planned.network)
            options["mounts"] = [*options["mounts"], Mount(SECRETS, taken, type="volume", read_only=True)]
            say(run_once(engine, "enrolling", options).strip())
        finally:
            drop_volume(engine, taken)


def _founding(wanted: Deployment) -> list[str]:
    ours = wanted.aggregator
    assert ours is not None
    command = ["aggregator", "init", "--dir", str(STATE), "--federation", ours.federation]
    for address in ours.addresses:
        command += ["--address", address]
    ports = (("--listen", ours.listen), ("--enrolment-listen", ours.enrolment), ("--dashboard-listen", ours.pages))
    for option, port in ports:
        command += [option, f"0.0.0.0:{port}"]
    return [*command, "--training"] if ours.training else command


def _one_shot(planned: Planned, command: list[str], network: str) -> dict[str, Any]:
    mounts = [
        Mount(where.removesuffix(":ro"), name, type="volume", read_only=where.endswith(":ro"))
        for name, where in planned.volumes.items()
    ]
    options = bare(planned.image, mounts, network)
    return options | {"command": command, "environment": dict(planned.environment)}


def connected(container: Any, seen: Seen, say: Say, patience_s: float = CONNECT_S) -> bool:
    """Wait until an edge is connected and say so; an aggregator has nobody to connect to."""
    if seen.site is None:
        return True
    found = wait_until_connected(container, patience_s)
    said = edge_status(container)
    if found:
        say(f"{said['site']} is connected to its aggregator")
    else:
        why = next(iter(said.get("problems", [])), "it does not say why")
        say(f"not connected within {patience_s:.0f} s: {why}; the service goes on trying")
    return found


def down(engine: Engine, planned: Planned, *, volumes: bool, say: Say) -> None:
    """Stop and remove the container; the state stays, unless it is to be deleted too."""
    for name in (planned.container, planned.before, f"{planned.container}-trial"):
        if container := find(engine, name):
            with spoken(f"stopping {name}"):
                container.stop(timeout=DRAIN_S)
                container.remove(v=True)
            say(f"{name} is gone")
    kept = [planned.settings, planned.secrets, *([planned.state] if volumes else [])]
    for volume in (*kept, f"{planned.container}-copy"):
        drop_volume(engine, volume)
    if volumes:
        say(f"the state {planned.state} is deleted")
    elif has_volume(engine, planned.state):
        say(f"the state stays in the volume {planned.state}")
