"""A site's trainer that stands still where a test says, so that something can be killed just there.

    python -m tests.agent_trainer.rounds.halting_site FOLDER --supernode … (as agent_trainer.rounds.site)

A file in FOLDER named `train-asked`, `train-done`, `evaluate-asked` or `evaluate-done` halts it at that place: the file
becomes `NAME.reached`, and when that is gone the trainer goes on. A site is asked to evaluate once, when the run ends.
"""

import sys
import time
from pathlib import Path

from flwr.app import Context, Message

from agent_trainer.rounds import site
from agent_trainer.rounds.executors import SiteExecutor

PLACES = ("train-asked", "train-done", "evaluate-asked", "evaluate-done")


def halt(folder: Path, place: str) -> None:
    """Stand still if a test wants it."""
    wanted, reached = folder / place, folder / f"{place}.reached"
    if wanted.exists():
        wanted.rename(reached)
    while reached.exists():
        time.sleep(0.05)


class HaltingExecutor(SiteExecutor):
    """Halts before and after the app."""

    def _reply(self, message: Message, context: Context, fab: bytes) -> Message:
        what = message.metadata.message_type.split(".")[0]
        halt(FOLDER, f"{what}-asked")
        reply = super()._reply(message, context, fab)
        halt(FOLDER, f"{what}-done")
        return reply


if __name__ == "__main__":
    FOLDER = Path(sys.argv.pop(1))
    site.SiteExecutor = HaltingExecutor  # type: ignore[misc]
    site.main()
