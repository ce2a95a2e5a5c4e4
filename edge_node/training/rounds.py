"""The rounds that this site's trainer told of: those of the latest run, kept over a restart for the page's curves."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from cairn.files import write_atomically
from edge_node.status import Board, RoundNote
from edge_node.training.messages import RoundTold

KEPT = 2000  # rounds


class Rounds:
    """A file of one JSON object a round, and the board.

    A file that cannot be read or written costs the curves alone.
    """

    def __init__(self, path: Path, board: Board) -> None:
        self._path = path
        self._board = board
        self._ended: list[RoundNote] = []
        if path.exists():
            try:
                self._ended = [RoundNote(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError, TypeError):
                self._ended = []
        if self._ended:
            board.rounds(self._ended[-1], self._ended)

    def told(self, news: RoundTold) -> None:
        """Note a round.

        Another run than before begins anew; a round that is trained again replaces what followed, a search's job what
        was told of it alone; figures that are told of a round later, such as its validation, are added to it.
        """
        ends, now = news.phase == "ends", self._board.snapshot().training.now
        note = RoundNote(news.run, news.round, busy=not ends, metrics=news.metrics)
        same = [old for old in self._ended if old.run == note.run]
        kept = [old for old in same if old.round < note.round or (news.job and old.round > note.round)]
        if ends:
            known = next((old.metrics for old in same if old.round == note.round), {})
            note = replace(note, metrics={**known, **note.metrics})
            kept = sorted([*kept, note], key=lambda one: one.round)
        if kept != self._ended:
            self._ended = kept[-KEPT:]
            self._write()
        later = not news.job and now is not None and now.busy and now.run == note.run and now.round > note.round
        self._board.rounds(now if now is not None and later else note, self._ended)

    def broken_off(self) -> None:
        """Say that no round is being trained: the trainer has ended."""
        now = self._board.snapshot().training.now
        if now is not None and now.busy:
            self._board.rounds(replace(now, busy=False), self._ended)

    def _write(self) -> None:
        try:
            with write_atomically(self._path) as file:
                file.write("".join(json.dumps(asdict(note)) + "\n" for note in self._ended).encode())
        except OSError:
            pass  # a full disk is told of where it keeps the site from its work
