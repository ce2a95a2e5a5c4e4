"""Numbers and moments read as people say them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aggregator.dashboard import words

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "written"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_840_000, "12.8 MB"), (99_960_000, "100 MB"), (999_600, "1.0 MB"),
     (48e13, "480 TB"), (3e15, "3.0 PB"), (5e18, "5000 PB")],
)  # fmt: skip
def test_bytes_are_written_in_the_unit_that_fits(size: float, written: str) -> None:
    assert words.bytes_(size).replace("\u202f", " ") == written


@pytest.mark.parametrize(
    ("passed", "written"),
    [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (89 * 60, "89 min ago"), (5400, "1 h ago"),
     (47 * 3600, "47 h ago"), (48 * 3600, "2 d ago"), (400 * 86400, "400 d ago")],
)  # fmt: skip
def test_how_long_ago_is_said_coarsely(passed: int, written: str) -> None:
    assert words.ago(NOW - timedelta(seconds=passed), NOW).replace("\u202f", " ") == written


def test_a_digest_is_cut_and_a_name_is_not() -> None:
    assert words.short("ab" * 32) == "abababababab"
    assert words.short("goettingen") == "goettingen"
    assert len(words.short("x" * 5000)) == 200


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "–"), ([], "–"), (True, "yes"), (False, "no"), (0, "0"), (0.0, "0.0"), (0.01, "0.01"), ("P1D", "P1D"),
     (["CD3", "CD4"], "CD3, CD4"), ({"tumour": ["PanCK"]}, "tumour: PanCK"), (20_000, "20\u202f000")],
)  # fmt: skip
def test_values_of_a_specification_are_written_plainly(value: Any, written: str) -> None:
    assert words.plain(value) == written
