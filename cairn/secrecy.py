"""What a process does so that nothing of it is read by others of the machine: folders, and no dumps of its memory."""

import ctypes
import resource
from pathlib import Path

from cairn.errors import ConfigError

_PR_SET_DUMPABLE = 4


def keep_private(folder: Path) -> None:
    """Make a folder of which nobody but its owner can read anything, whatever lies in it. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be kept for this user alone ({error.strerror}); make it so") from error


def open_to_others(path: Path) -> bool:
    """Tell whether others of the machine may look into a file or folder."""
    return bool(path.stat().st_mode & 0o077)


def no_dumps() -> None:
    """Let a crash of this process, and of its children, leave no image of its memory, which holds keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A limit of 0 does not bind where dumps go through a pipe; a process that is not dumpable leaves none there either.
    if hasattr(libc := ctypes.CDLL(None), "prctl"):  # Linux
        libc.prctl(_PR_SET_DUMPABLE, 0)
