"""Small works on an engine: one-shot containers, files into volumes, images in, waiting until a service is well."""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import Mount

from cairn.errors import CairnError, ConfigError
from deploy.clinic import probe
from deploy.clinic.checks import STATE, USER
from deploy.clinic.engine import Engine, spoken
from deploy.clinic.planning import LABEL, TMP, Planned, hardened

LOOK_S = 0.5
ONE_SHOT_S = 300.0
Say = Callable[[str], None]


def find(engine: Engine, name: str) -> Any | None:
    """Find a container by its name."""
    try:
        with spoken(f"looking for the container {name}"):
            return engine.containers.get(name)
    except ConfigError:
        return None
    except CairnError as error:
        if isinstance(error.__cause__, NotFound):
            return None
        raise


def find_image(engine: Engine, name: str) -> Any | None:
    """Find an image by its name."""
    with spoken(f"looking for the image {name}"):
        try:
            return engine.images.get(name)
        except ImageNotFound:
            return None


def has_volume(engine: Engine, name: str) -> bool:
    """Tell whether a volume is there."""
    with spoken(f"looking for the volume {name}"):
        try:
            engine.volumes.get(name)
        except NotFound:
            return False
    return True


def make_volume(engine: Engine, name: str, of: str) -> None:
    """Make a volume, if it is not there."""
    with spoken(f"making the volume {name}"):
        engine.volumes.create(name, labels={LABEL: of.removeprefix("cairn-")})


def drop_volume(engine: Engine, name: str) -> None:
    """Remove a volume, if it is there."""
    if has_volume(engine, name):
        with spoken(f"removing the volume {name}"):
            engine.volumes.get(name).remove()


@contextmanager
def created(engine: Engine, what: str, **options: Any) -> Iterator[Any]:
    """Make a container that is gone after the block, with what it wrote outside of named volumes."""
    with spoken(what):
        container = engine.containers.create(**options)
    try:
        yield container
    finally:
        with spoken(what):
            container.remove(force=True, v=True)


def run_once(engine: Engine, what: str, options: Mapping[str, Any], patience_s: float = ONE_SHOT_S) -> str:
    """Run a container to its end and return what it printed. Raises CairnError with its last line."""
    with created(engine, what, **options) as container, spoken(what):
        container.start()
        code = container.wait(timeout=patience_s)["StatusCode"]
        printed: str = container.logs(stdout=True, stderr=False).decode(errors="replace")
        if code:
            said = container.logs(tail=5).decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise CairnError(f"{what}: {said[-1].removeprefix('cairn: ')[:400]}")
    return printed


def look_inside(engine: Engine, planned: Planned, asked: Mapping[str, Any], mounts: Sequence[Any], network: str) -> Any:
    """Run the probe in a container of the deployment's image, as its user."""
    source = Path(probe.__file__).read_text(encoding="utf-8")
    options = bare(planned.image, mounts, network)
    options |= {"entrypoint": ["python3", "-I", "-c", source], "command": [json.dumps(asked)]}
    printed = run_once(engine, "looking around in a container", options, 120)
    return json.loads(printed.strip().splitlines()[-1])


def bare(image: str, mounts: Sequence[Any], network: str = "none") -> dict[str, Any]:
    """Say what a helping container may do: nothing beyond its mounts."""
    return {
        "image": image,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": {TMP: "size=64m,mode=1777"},
        "network_mode": network,
        "mounts": list(mounts),
        "healthcheck": {"test": ["NONE"]},
    }


def put_files(engine: Engine, image: str, volume: str, files: Mapping[str, bytes], of: str) -> None:
    """Fill a new volume with files that the service's user can read and nobody else; a former one is thrown away."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o400, USER, USER
            tar.addfile(entry, io.BytesIO(content))
    drop_volume(engine, volume)
    make_volume(engine, volume, of)
    what = f"filling the volume {volume}"
    mount = Mount("/filled", volume, type="volume")
    with created(engine, what, image=image, mounts=[mount], network_mode="none") as helper, spoken(what):
        helper.put_archive("/filled", packed.getvalue())


def start(engine: Engine, planned: Planned, *, gpu: bool, labels: Mapping[str, str], **other: Any) -> Any:
    """Make the planned container and start it; one that does not start is removed again."""
    options = hardened(planned, gpu=gpu) | other
    options["labels"] = {**options["labels"], **labels}
    with spoken(f"starting {options['name']}"):
        container = engine.containers.create(**options)
        try:
            container.start()
        except BaseException:
            container.remove(force=True)
            raise
    return container


def wait_until_well(engine: Engine, container: Any, patience_s: float, restarts: int = 0) -> None:
    """Wait until a container's own health check says yes. Raises CairnError when it ends first, or patience does.

    restarts  of before, which say nothing of now
    """
    test = (engine.images.get(container.image.id).attrs["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
    command = {"CMD": list(test[1:]), "CMD-SHELL": ["sh", "-c", *test[1:]]}.get(test[0], ["true"])
    deadline = time.monotonic() + patience_s
    with spoken(f"waiting for {container.name}"):
        while True:
            container.reload()
            if container.status != "running" or container.attrs["RestartCount"] > restarts:
                raise CairnError(f"{container.name} ended instead of serving: {last_words(container)}")
            try:
                if container.exec_run(command).exit_code == 0:
                    return
            except APIError:
                pass  # it ended between the two calls: the next look says how
            if time.monotonic() > deadline:
                raise CairnError(f"{container.name} was not healthy within {patience_s:.0f} s: {last_words(container)}")
            time.sleep(LOOK_S)


def edge_status(container: Any) -> dict[str, Any]:
    """Ask a running edge how it stands; empty when it does not answer."""
    command = ["cairn", "edge", "status", "--config", "/etc/cairn/site.toml", "--json"]
    with spoken(f"asking {container.name}"):
        answer = container.exec_run(command, demux=True)
    if answer.exit_code or not answer.output[0]:
        return {}
    said: dict[str, Any] = json.loads(answer.output[0])
    return said


def wait_until_connected(container: Any, patience_s: float) -> bool:
    """Wait until an edge is connected to its aggregator, and tell whether it is."""
    deadline = time.monotonic() + patience_s
    while not edge_status(container).get("connected"):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def last_words(container: Any) -> str:
    """Return the last line that a container logged."""
    lines = container.logs(tail=3).decode(errors="replace").strip().splitlines()
    return lines[-1][:400].removeprefix("cairn: ") if lines else "it logged nothing"


def state_mount(planned: Planned, *, read_only: bool = False) -> Any:
    """Mount the state's volume where the service has it."""
    return Mount(str(STATE), planned.state, type="volume", read_only=read_only)
