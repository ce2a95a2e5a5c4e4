"""Which file belongs to which window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import StudyError
from edge_node.windows import Frozen, Windows


def names(windows, stage, window):
    return [f.file for f in windows.files(stage, window)]


def test_a_file_that_appears_later_enters_the_next_window(tmp_path):
    windows = Windows(tmp_path / "w.json")
    windows.freeze(0, {"a": (1, 1), "b": (1, 1)})
    windows.freeze(0, {"a": (1, 1), "b": (1, 1), "late": (1, 1)})
    assert names(windows, "counts", 0) == ["a", "b"]
    windows.freeze(1, {"a": (1, 1), "b": (1, 1), "late": (1, 1)})
    assert names(windows, "counts", 1) == ["late"]


def test_using_the_map_covers_all_windows_so_far_and_fitting_it_only_its_own(tmp_path):
    windows = Windows(tmp_path / "w.json")
    windows.freeze(0, {"a": (1, 1)})
    windows.freeze(1, {"a": (1, 1), "b": (1, 1)})
    windows.freeze(2, {"a": (1, 1), "b": (1, 1), "c": (1, 1)})
    for stage in ("moments", "ranges", "counts"):
        assert names(windows, stage, 1) == ["b"]
    for stage in ("recovery", "codebook"):
        assert names(windows, stage, 1) == ["a", "b"]


def test_a_stamp_stays_as_it_was_when_the_window_was_frozen(tmp_path):
    windows = Windows(tmp_path / "w.json")
    windows.freeze(0, {"a": (1, 1)})
    windows.freeze(1, {"a": (2, 9)})
    assert windows.files("recovery", 1) == [Frozen("a", (1, 1), 0)]


def test_a_late_plan_of_an_old_window_takes_in_nothing_new(tmp_path):
    windows = Windows(tmp_path / "w.json")
    windows.freeze(1, {"a": (1, 1)})
    windows.freeze(0, {"a": (1, 1), "b": (1, 1)})
    assert names(windows, "counts", 0) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from("abcdefgh"))), max_size=8))
def test_every_file_belongs_to_at_most_one_window_whatever_the_order(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("windows") / "w.json"
    there: set[str] = set()
    for window, new in steps:
        there |= new
        Windows(path).freeze(window, dict.fromkeys(there, (1, 1)))  # a restart between any two steps
    windows = Windows(path)
    counted = [name for window in range(5) for name in names(windows, "counts", window)]
    assert len(counted) == len(set(counted))
    assert sorted(counted) == names(windows, "codebook", 4)


def test_a_damaged_record_stops_the_study_and_is_not_begun_anew(tmp_path):
    path = tmp_path / "w.json"
    path.write_text('{"frozen": [0], "fi', encoding="utf-8")
    with pytest.raises(StudyError, match="damaged"):
        Windows(path)


def test_another_study_of_the_same_name_begins_anew_and_the_same_one_does_not(tmp_path):
    path = tmp_path / "w.json"
    for plan, there, expected in [("p", "a", ["a"]), ("p", "ab", ["a"]), ("q", "abc", ["a", "b", "c"])]:
        windows = Windows(path)
        windows.begin(plan)
        windows.freeze(0, dict.fromkeys(there, (1, 1)))
        assert names(windows, "moments", 0) == expected
        assert names(Windows(path), "moments", 0) == expected
