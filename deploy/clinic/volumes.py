"""Backups of a deployment's state: the volume as an archive with checksums, and back again."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from docker.types import Mount

from cairn import __version__
from cairn.errors import ConfigError
from deploy.clinic.archive import CHUNK, Contents, open_part, read_archive, write_archive
from deploy.clinic.checks import STATE
from deploy.clinic.containers import created, drop_volume, find, find_image, has_volume, make_volume
from deploy.clinic.engine import Engine, spoken
from deploy.clinic.planning import DRAIN_S, Planned

PART = "state.tar.zst"
LARGE = "labels"  # made from images by a study, and can be made again


class _Stream:
    """A file to read from, over chunks that come; tarfile asks for no more than `read`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, b""

    def read(self, size: int = CHUNK) -> bytes:
        while len(self._left) < size and (chunk := next(self._chunks, b"")):
            self._left += chunk
        taken, self._left = self._left[:size], self._left[size:]
        return taken


class _Sink:
    """A file to write to, whose bytes are taken out again."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._kept.append(bytes(data))
        return len(data)

    def taken(self) -> Iterator[bytes]:
        kept, self._kept = self._kept, []
        yield from kept


def without(chunks: Iterator[bytes], dropped: str) -> Iterator[bytes]:
    """Leave one folder out of a tar stream of a state: what lies in `state/DROPPED/`."""
    sink = _Sink()
    files: tuple[Any, Any] = _Stream(chunks), sink
    with (
        tarfile.open(fileobj=files[0], mode="r|", bufsize=CHUNK) as source,
        tarfile.open(fileobj=files[1], mode="w|", bufsize=CHUNK) as out,
    ):
        for entry in source:
            if PurePosixPath(entry.name).parts[1:2] == (dropped,):
                continue
            out.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
            yield from sink.taken()
    yield from sink.taken()


def backup(engine: Engine, planned: Planned, out: Path, *, labels: bool, moved: Callable[[int], None]) -> Contents:
    """Write the state to an archive, for its owner alone, as it holds private keys; the service rests meanwhile."""
    if not has_volume(engine, planned.state):
        raise ConfigError(f"there is no volume {planned.state}; nothing was deployed under this name")
    if out.exists():
        raise ConfigError(f"{out} is there already; name another file")
    container = find(engine, planned.container)
    image = container.attrs["Config"]["Image"] if container else planned.image
    running = container if container and container.status == "running" else None
    what = f"backing up {planned.state}"
    if running:
        with spoken(what):
            running.stop(timeout=DRAIN_S)
    try:
        with _helper(engine, image, planned.state) as helper, spoken(what):
            chunks, _ = helper.get_archive(str(STATE), chunk_size=CHUNK)
            about = {"deployment": planned.container, "image": image, "made_by": __version__}
            stream = chunks if labels else without(iter(chunks), LARGE)
            return write_archive(out, "state", about, {PART: stream}, moved, mode=0o600)
    finally:
        if running:
            with spoken(f"starting {planned.container} again"):
                running.start()


def restore(engine: Engine, planned: Planned, path: Path, *, replace: bool, moved: Callable[[int], None]) -> Contents:
    """Put a state back, whose checksums were compared. Raises ConfigError when there is one and it is not to go."""
    contents = read_archive(path, "state")
    made_for = contents.about["deployment"]
    if made_for != planned.container:
        raise ConfigError(f"{path} is of {made_for} and this is {planned.container}; two must not be one site")
    container = find(engine, planned.container)
    if container is not None and container.status == "running":
        raise ConfigError(f"{planned.container} runs; `cairn deploy down` first, its state stays")
    if has_volume(engine, planned.state) and not replace:
        raise ConfigError(f"the volume {planned.state} is there; --replace deletes what is in it")
    if find_image(engine, planned.image) is None:
        raise ConfigError(f"the engine has no image {planned.image}, through which it writes; load or pull it first")
    if container is not None:
        with spoken("restoring"):
            container.remove()
    drop_volume(engine, planned.state)
    make_volume(engine, planned.state, planned.container)
    try:
        with (
            _helper(engine, planned.image, planned.state) as helper,
            open_part(contents, PART) as chunks,
            spoken("restoring"),
        ):
            helper.put_archive(str(STATE.parent), _told(chunks, moved))
    except BaseException:  # half a state must not be taken for one
        drop_volume(engine, planned.state)
        raise
    return contents


def _helper(engine: Engine, image: str, volume: str) -> Any:
    """Make a container that is never started: the engine reads and writes the volume through it."""
    mount = Mount(str(STATE), volume, type="volume")
    return created(engine, "opening the volume", image=image, mounts=[mount], network_mode="none")


def _told(chunks: Iterator[bytes], moved: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        moved(len(chunk))
        yield chunk
