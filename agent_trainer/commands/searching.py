"""A search under way, as people see it: how far it is, what is in flight, and the best so far."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from agent_trainer.search.jobs import Search
from agent_trainer.search.journal import Event, Journal
from agent_trainer.search.leaderboard import leaderboard_table, ranked
from agent_trainer.search.spec import SearchSpec

ROWS = 8  # of the leaderboard
SHOWN = 6  # newest events


class View:
    """What is on the screen.

    began  of the jobs in flight, in this process's seconds
    """

    def __init__(self, spec: SearchSpec, journal: Journal) -> None:
        self._spec, self._journal = spec, journal
        self._said: list[str] = []
        self._began: dict[int, float] = {}

    def take(self, event: Event) -> None:
        """Take an event."""
        if event.kind in ("launched", "reissued"):
            self._began[event.job] = time.monotonic()
        else:
            self._began.pop(event.job, None)
        if (words := said(event)) is not None:
            self._said = [*self._said, words][-SHOWN:]

    def draw(self) -> RenderableType:
        """Draw it as it is at this moment."""
        records = list(self._journal.records.values())
        ended = sum(record.state != "open" for record in records)
        found = ranked(records)
        top = f"  best {self._spec.reward_words} {found[0].reward:.4f} (job {found[0].job})" if found else ""
        head = Text.assemble((self._spec.method, "bold"), f"  {ended} of {self._spec.jobs} jobs{top}")
        now = time.monotonic()
        flying = ", ".join(f"{job} ({now - began:.0f} s)" for job, began in sorted(self._began.items()))
        bar = ProgressBar(total=self._spec.jobs, completed=ended, width=60)
        told = [Text(line, style="dim") for line in self._said]
        table = [leaderboard_table(records, ROWS, self._spec.test_metric)] if found else []
        return Group(head, bar, Text(f"in flight: {flying or 'none'}"), *told, *table)


def watch(spec: SearchSpec, journal: Journal, search: Search, console: Console) -> None:
    """Run a search and show it: on a terminal as it stands, elsewhere a line a job. Raises CairnError."""
    if not console.is_terminal:
        for event in search.run():
            if (words := said(event)) is not None:
                console.print(words, highlight=False, markup=False, soft_wrap=True)
        return
    view = View(spec, journal)
    with Live(get_renderable=view.draw, console=console, refresh_per_second=2):
        for event in search.run():
            view.take(event)


def said(event: Event) -> str | None:
    """Say what happened to a job; None of its beginning."""
    match event.kind:
        case "launched":
            return None
        case "finished":
            return f"job {event.job}: {event.reward:.4f} after {event.seconds or 0.0:.0f} s"
        case "reissued":
            return f"job {event.job} is issued again: {event.why}"
        case other:
            return f"job {event.job} {other}: {event.why}"
