"""One line on the terminal about how far a count is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edge_node.status import Board

REFRESH_S = 0.2


@contextmanager
def shown(board: Board) -> Iterator[None]:
    """Show a board's work on standard error while the block runs, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        line = progress.add_task("looks at the images", total=None)

        def follow() -> None:
            work = board.snapshot().work
            if work and work.pixels_total:
                said = f"{work.files_total:,} images, {work.pixels_total / 1e6:,.1f} Mpixel"
                progress.update(line, description=said, completed=work.pixels_done, total=work.pixels_total)

        ended = threading.Event()

        def run() -> None:
            while not ended.wait(REFRESH_S):
                follow()

        follower = threading.Thread(target=run, name="bar", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            follow()
