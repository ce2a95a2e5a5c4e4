"""Which file belongs to which window of a study.

The first plan of a window that a site works on freezes the window: every file that is there and in no window yet
belongs to it from then on. A file that appears later waits for the next window. Stages that fit the map on new data
(moments, ranges, counts) cover their window's files; those that use the map (recovery, codebook) cover all until then.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import StudyError
from cairn.files import write_atomically
from cairn.plan import StageName

Stamp = tuple[int, int]
ALL_SO_FAR: frozenset[StageName] = frozenset({"recovery", "codebook"})


@dataclass(frozen=True)
class Frozen:
    """A file as it was when its window was frozen.

    file    its name below the images' folder
    stamp   size in bytes and time of the last change, as `ImageSource.stamp` gives them
    """

    file: str
    stamp: Stamp
    window: int


class Windows:
    """The windows of one study at this site, kept in one JSON file that is replaced atomically.

    Raises StudyError when that file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Frozen] = {}
        self._frozen: set[int] = set()
        self._began = ""
        if path.exists():
            try:
                kept = json.loads(path.read_bytes())
                self._files = {
                    name: Frozen(name, (int(size), int(time)), int(window))
                    for name, (size, time, window) in kept["files"].items()
                }
                self._frozen = {int(window) for window in kept["frozen"]}
                self._began = str(kept["began"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StudyError(
                    f"{path.name} in the state folder is damaged; restore it from a backup, because without it files "
                    "could be counted in two windows"
                ) from error

    def begin(self, plan: str) -> None:
        """Take note of the study's very first plan; another one than before is another study of the name.

        plan  fingerprint of the moments of window 0
        """
        if self._began and self._began != plan:
            self._files, self._frozen = {}, set()
        self._began = plan

    def freeze(self, window: int, stamps: Mapping[str, Stamp]) -> None:
        """Freeze a window with the files that are there now; frozen already, or an earlier one than the last, it stays.

        stamps  file -> stamp
        """
        if window in self._frozen or any(window < later for later in self._frozen):
            return
        files = {name: Frozen(name, stamp, window) for name, stamp in stamps.items() if name not in self._files}
        merged, frozen = {**self._files, **files}, {*self._frozen, window}
        content = {
            "began": self._began,
            "frozen": sorted(frozen),
            "files": {f.file: [*f.stamp, f.window] for f in merged.values()},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self._path) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=0).encode())
        self._files, self._frozen = merged, frozen

    def files(self, stage: StageName, window: int) -> list[Frozen]:
        """List the files that a stage of a window covers, by name."""
        covers = range(window + 1) if stage in ALL_SO_FAR else range(window, window + 1)
        return sorted((f for f in self._files.values() if f.window in covers), key=lambda f: f.file)
