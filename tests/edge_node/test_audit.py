"""The audit log."""

import errno
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.audit import AuditLog, Departure, first_broken, read

START = datetime(2026, 1, 1, tzinfo=UTC)


def departure(number: int) -> Departure:
    return Departure("tally", "tally of moments", "tumour", "moments", 0, number, "ab" * 32, "cd" * 32)


def write(path, numbers):
    log = AuditLog(path, lambda: START + timedelta(seconds=1))
    for number in numbers:
        log.append(departure(number))
    log.close()


def test_lines_come_back_as_they_were_written_and_the_chain_holds(tmp_path):
    path = tmp_path / "audit.jsonl"
    write(path, range(3))
    write(path, range(3, 5))
    assert [line.size for line in read(path)] == [0, 1, 2, 3, 4]
    assert {line.time for line in read(path)} == {"2026-01-01T00:00:01.000+00:00"}
    assert first_broken(path) is None


@given(cut=st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_a_log_cut_anywhere_by_a_crash_goes_on_behind_its_last_whole_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    write(path, range(4))
    content = path.read_bytes()
    path.write_bytes(content[: min(cut, len(content))])
    whole = content[: min(cut, len(content))].count(b"\n")
    write(path, [99])
    assert [line.size for line in read(path)] == [*range(whole), 99]
    assert first_broken(path) is None


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"size":1', b'"size":7'), *lines[2:]], 3),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:2], b"not JSON", *lines[2:]], 3),
    ],
    ids=["changed", "removed", "swapped", "slipped in"],
)
def test_a_line_changed_later_breaks_the_chain_where_it_stands(tmp_path, change, broken):
    path = tmp_path / "audit.jsonl"
    write(path, range(4))
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert first_broken(path) == broken


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, lambda: START)
    log.append(departure(1))
    before = path.read_bytes()
    limited = departure(2)
    file = log._file

    class Full:
        """The same file on a disk with room for ten more bytes."""

        def write(self, data):
            return file.write(data[:10])

        def truncate(self, size):
            return file.truncate(size)

        def fileno(self):
            return file.fileno()

    log._file = Full()
    with pytest.raises(OSError, match="No space") as raised:
        log.append(limited)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    log._file = file
    log.append(departure(3))
    log.close()
    assert [line.size for line in read(path)] == [1, 3]
    assert first_broken(path) is None


def test_nothing_but_what_left_stands_in_a_line(tmp_path):
    path = tmp_path / "audit.jsonl"
    write(path, [1])
    assert set(json.loads(path.read_bytes())) == {
        "event", "what", "study", "stage", "window", "size", "digest", "plan", "time", "previous",
    }  # fmt: skip
