"""A folder that really is full: a small disk in memory is mounted over it, and a file takes the room that is left."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

FILLER = "filler"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Put a folder and all that is in it on a disk of a few megabytes; no program may have it open meanwhile."""
    if os.geteuid():
        explain = "only root can mount a small disk; run the tests under `unshare --user --map-root-user --mount`"
        pytest.fail(explain) if os.environ.get("CI") else pytest.skip(explain)
    before = folder.rename(folder.with_name(f"{folder.name}-before"))
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
    try:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Take all the room that is left, to the last byte."""
    with (folder / FILLER).open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with pytest.raises(OSError, match="No space left on device"):
                _write_on(file, bytes(size))
    assert shutil.disk_usage(folder).free == 0


def _write_on(file: BinaryIO, data: bytes) -> None:
    while True:
        file.write(data)  # the last one that fits may do so in part


def make_room(folder: Path) -> None:
    """Give the room back."""
    (folder / FILLER).unlink()
