"""What a site remembers of masked sums: for its owner alone, whole or not at all."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cairn.errors import MaskingError
from cairn.masking import site
from cairn.masking.messages import Session
from edge_node.masking.memories import Memories

PLAN = bytes(range(32))


def session(attempt: int = 1, plan: bytes = PLAN) -> Session:
    return Session(plan, "counts", 0, attempt, 40, 64, 400, 100, ())


def test_a_memory_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    memories = Memories(tmp_path / "masking")
    assert memories.find(session()) is None
    memory = replace(site.begin(session(), "a", bytes(32)), tally=b"t" * 32, covers=(PLAN,))
    memories.keep(memory)
    assert Memories(tmp_path / "masking").find(session()) == memory


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    memories = Memories(tmp_path / "masking")
    memories.keep(site.begin(session(), "a", bytes(32)))
    (file,) = (tmp_path / "masking").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_plans_memories_are_found_by_attempt_and_others_are_left_out(tmp_path: Path) -> None:
    memories = Memories(tmp_path)
    for attempt, plan in ((2, PLAN), (1, PLAN), (1, bytes(32))):
        memories.keep(site.begin(session(attempt, plan), "a", bytes(32)))
    assert [memory.session.attempt for memory in memories.of_plan(PLAN)] == [1, 2]


def test_a_memory_is_found_by_every_window_that_its_sum_took_along(tmp_path: Path) -> None:
    memories, late = Memories(tmp_path), b"l" * 32
    memories.keep(site.begin(session(), "a", bytes(32)))
    assert memories.of_plan(late) == []
    memory = replace(site.begin(session(), "a", bytes(32)), tally=b"t" * 32, covers=tuple(sorted((PLAN, late))))
    memories.keep(memory)
    assert memories.of_plan(late) == memories.of_plan(PLAN) == Memories(tmp_path).of_plan(late, PLAN) == [memory]


def test_tidying_a_window_keeps_the_words_of_the_later_sum_that_takes_it_along(tmp_path: Path) -> None:
    memories, late = Memories(tmp_path), b"l" * 32
    memories.keep(replace(site.begin(session(), "a", bytes(32)), tally=b"t" * 32, covers=tuple(sorted((PLAN, late)))))
    memories.words(session()).write_bytes(b"words")
    memories.tidy(late)
    assert memories.words(session()).exists()


def test_a_damaged_memory_is_an_error_and_not_a_new_beginning(tmp_path: Path) -> None:
    memories = Memories(tmp_path)
    memories.keep(site.begin(session(), "a", bytes(32)))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(MaskingError, match="damaged, so that this site cannot tell which counts it has masked"):
        memories.find(session())


def test_tidying_drops_the_words_and_keeps_the_memory(tmp_path: Path) -> None:
    memories = Memories(tmp_path)
    memories.keep(site.begin(session(), "a", bytes(32)))
    memories.words(session()).write_bytes(b"words")
    memories.tidy(PLAN)
    assert not memories.words(session()).exists()
    assert memories.find(session()) is not None
