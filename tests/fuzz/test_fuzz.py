"""A few mutated messages for every decoder, and all that ever broke one; a million were fed once (RELIABILITY.md)."""

import logging
import random
import time
from pathlib import Path

import pytest

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_messages_meet_errors_that_are_ours_and_no_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    target, rng = TARGETS[name], random.Random(1)
    seeds = target.seeds(tmp_path)
    for seed in seeds:
        target.feed(seed, tmp_path)
    for _ in range(15 if name.startswith("image") else 100):
        began = time.process_time()
        target.feed(mutate(rng, seeds, target.largest), tmp_path)
        assert time.process_time() - began < 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_broke_a_decoder_once_does_not_any_more(path: Path, tmp_path: Path) -> None:
    target = TARGETS[path.name.partition(".")[0]]
    target.seeds(tmp_path)
    target.feed(path.read_bytes(), tmp_path)
