"""Files that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_atomically(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when the block ends well, flushed to the disk.

    A crash or an exception leaves the old file, if any, as it was; a left-over `.part` file is never read.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Delete a folder of which nobody may find a half: it loses its name first; a crash leaves `.*.part`."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        folder.rename(part)
    except FileNotFoundError:
        return
    shutil.rmtree(part, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
