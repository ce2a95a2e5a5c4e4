"""Every defence in docs/THREATS.md has a test, and the tests that it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/THREATS.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| asset |")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.split("|")[3].split()[:6]))
def test_the_test_of_a_threat_exists(row: str) -> None:
    cells = row.split(" | ")
    assert len(cells) == 5
    files = re.findall(r"`(tests/[\w/]+\.py)`", cells[-1])
    assert files
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    for name in re.findall(r"`(test_\w+)`", cells[-1]):
        assert f"def {name}(" in text
