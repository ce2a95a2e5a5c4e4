"""Log files that turn over, and what stands in a line."""

import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from cairn.errors import ConfigError
from cairn.logs import LogFile, TurningFile, make_log, open_stream


def test_a_full_file_is_turned_over_and_no_line_of_those_kept_is_lost_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "cairn.log"
    with closing(TurningFile(LogFile(file=path, megabytes=0.002, keep=3))) as stream:
        log = make_log(stream, quotes=True)
        for number in range(120):
            log.info("counted", number=number, site="north")
    files = sorted(path.parent.iterdir())
    assert [one.name for one in files] == ["cairn.log", "cairn.log.1", "cairn.log.2", "cairn.log.3"]
    assert all(one.stat().st_size <= 2000 for one in files)
    lines = [json.loads(line) for one in reversed(files) for line in one.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(lines[0]["number"], 120))
    assert path.parent.stat().st_mode & 0o077 == 0


def test_without_a_file_the_log_goes_where_it_went_before() -> None:
    stream = io.StringIO()
    assert open_stream(LogFile(), stream) is stream


def test_a_file_that_cannot_be_written_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"log\.file .* cannot be written"):
        open_stream(LogFile(file=tmp_path / "file" / "cairn.log"), io.StringIO())


@pytest.mark.parametrize("quotes", [True, False])
def test_what_an_exception_says_is_written_only_where_it_may_be(quotes: bool) -> None:
    stream = io.StringIO()
    make_log(stream, quotes=quotes).error("failed", exc_info=ValueError("cannot read /data/Jane_Doe.tif"))
    assert ("Jane" in stream.getvalue()) is quotes
