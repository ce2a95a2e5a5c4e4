"""`cairn deploy bundle`: images of an engine, and if wanted wheels, in one archive for a machine without a registry."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from cairn import __version__
from cairn.errors import ConfigError
from deploy.clinic.archive import CHUNK, Contents, write_archive
from deploy.clinic.containers import find_image
from deploy.clinic.engine import Engine, spoken


def bundle(engine: Engine, images: list[str], wheels: Path | None, out: Path, progress: Progress) -> Contents:
    """Write images to an archive with checksums. Raises ConfigError when the engine lacks one of them."""
    about: dict[str, Any] = {}
    parts: dict[str, Iterable[bytes]] = {}
    for name in images:
        image = find_image(engine, name)
        if image is None:
            raise ConfigError(f"the engine has no image {name}; `make images` builds them, `docker pull` fetches them")
        part = f"images/{name.replace('/', '_').replace(':', '_')}.tar.zst"
        about[name] = {"part": part, "id": image.attrs["Id"], "bytes": int(image.attrs["Size"])}
        parts[part] = image.save(chunk_size=CHUNK, named=name)
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise ConfigError(f"there are no wheels in {wheels}; `make wheels` fetches them")
        parts |= {f"wheels/{path.name}.zst": _chunks(path) for path in found}
    task = progress.add_task("saving images", total=sum(one["bytes"] for one in about.values()))
    with spoken("saving images"):
        return write_archive(
            out, "images", {"images": about, "made_by": __version__}, parts, lambda moved: progress.advance(task, moved)
        )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
