"""What the site knows about itself, and its log."""

import io
import json

from edge_node.status import Board, Problem, Work, for_aggregator, make_log


def test_problems_survive_a_restart_and_are_gone_when_they_are_solved(tmp_path):
    path = tmp_path / "problems.json"
    problem = Problem("an image could not be read", "slide7.tif: truncated")
    Board(path).problems("tumour/counts", [problem])
    again = Board(path)
    assert again.snapshot().problems == (problem,)
    again.problems("tumour/counts", [])
    assert Board(path).snapshot().problems == ()


def test_what_the_aggregator_is_told_of_problems_names_no_file():
    problems = [Problem("an image could not be read", f"patient{i}.tif: truncated") for i in range(3)]
    problems.append(Problem("an image lacks CD8", "other.tif: band CD8 is missing"))
    assert for_aggregator(problems) == ["an image could not be read (3 ×)", "an image lacks CD8"]


def test_progress_counts_up_and_is_taken_back_when_an_image_is_undone():
    board = Board()
    board.work(Work("s", "counts", 0, b"", pixels_total=100, files_total=2))
    board.advance(40)
    board.advance(-40, files=1)
    board.advance(60, files=1)
    work = board.snapshot().work
    assert work is not None
    assert (work.pixels_done, work.files_done) == (60, 2)


def test_the_log_keeps_a_librarys_message_to_itself_because_it_may_quote_a_file():
    out = io.StringIO()
    make_log(out).error("the service fails", exc_info=ValueError("cannot read /data/Jane_Doe.tif"))
    [line] = out.getvalue().splitlines()
    assert "Jane" not in line
    assert json.loads(line)["exception"][0]["exc_type"] == "ValueError"
