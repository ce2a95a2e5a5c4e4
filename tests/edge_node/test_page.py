"""The site's read-only page."""

import re
from contextlib import closing
from datetime import UTC, datetime

import httpx
import pytest
from PIL import Image

from cairn.errors import ConfigError
from edge_node.audit import Departure
from edge_node.page.app import Site, serve
from edge_node.page.content import departures, size_words
from edge_node.status import Board, PlanNote, Problem, Work


@pytest.fixture
def board():
    board = Board()
    board.connection("connected")
    return board


@pytest.fixture
def site(tmp_path, board, audit_log):
    labels = tmp_path / "labels" / "tumour"
    (labels / "slide a").mkdir(parents=True)
    Image.new("RGB", (40, 30), "#d55e00").save(labels / "slide a" / "one & two.states.png")
    (labels / "notes.json").write_text("{}", encoding="utf-8")
    return Site("st-elsewhere", "demo", "cairn.example:7443", board.snapshot, lambda: 2, audit_log.path, labels.parent)


@pytest.fixture
def address(site):
    with serve(site, "127.0.0.1:0") as at:
        yield f"http://{at}"


def test_the_page_shows_the_work_the_problems_the_pictures_and_what_left(address, board, audit_log):
    board.work(Work("tumour", "counts", 1, b"\1" * 32, 250, 1000, 3, 8))
    board.problems("x", [Problem("an image could not be read", "slide<7>.tif: truncated")])
    board.plans([PlanNote("lung", "moments", 0, b"\2" * 32, "refused", "this site has not approved study lung")])
    audit_log.append(Departure("tally", "tally of moments", "tumour", "moments", 0, 12_345, "ab" * 32, "cd" * 32))
    text = httpx.get(address).text
    for expected in ("st-elsewhere", "Connected", "25 %", "3 of 8 images", "slide&lt;7&gt;.tif: truncated"):
        assert expected in text
    for expected in ("has not approved study lung", "12.3 kB", "abababababab", "one &amp; two"):
        assert expected in text


def test_a_site_that_is_not_admitted_says_so(address, board):
    board.connection("refused", "the certificate was revoked by the operator")
    board.connection("connected")
    text = httpx.get(address).text
    assert "Not admitted" in text
    assert "revoked by the operator" in text


def test_nothing_is_loaded_from_elsewhere_and_nothing_can_be_changed(address):
    answer = httpx.get(address)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', answer.text)
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, address).status_code == 405


def test_another_host_name_pointed_at_this_machine_is_turned_away(address):
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400


def test_only_the_pictures_on_the_page_are_given_out(address, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    [picture] = re.findall(r'src="(picture/[^"?]+)', httpx.get(address).text)
    assert httpx.get(f"{address}/{picture}").headers["content-type"] == "image/png"
    for path in ("picture/../secret.png", "picture/%2e%2e/secret.png", "picture/tumour/notes.json"):
        assert httpx.get(f"{address}/{path}").status_code == 404


def test_a_port_in_use_is_one_clear_sentence(site, address):
    with pytest.raises(ConfigError, match=r"in use; set local\.page"), serve(site, address.removeprefix("http://")):
        pass


def test_the_audit_log_is_read_on_from_where_it_was_read_to(audit_log):
    read = departures(audit_log.path)
    assert read() == ([], 0)
    for number in (1, 2):
        audit_log.append(Departure("tally", "t", "s", "moments", 0, number, "", ""))
        assert len(read()[0]) == number
    lines, total = read()
    assert [line.size for line in lines] == [2, 1]
    assert total == 3


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (123_456_789, "123 MB"), (5e15, "5000 TB")],
)
def test_sizes_are_written_for_people(size, words):
    assert size_words(int(size)) == words


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_in_a_browser_the_page_fits_refreshes_itself_and_enlarges_a_picture(browser, address, board, width, height):
    with closing(browser.new_page(viewport={"width": width, "height": height})) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda asked: complaints.append(asked.url) if address not in asked.url else None)
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("[data-large]")
        assert page.locator("dialog img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 40
        page.keyboard.press("Escape")
        board.work(Work("lung", "ranges", 0, b"\1" * 32, 1, 2, datetime.now(UTC).minute, 8))
        page.get_by_text("ranges", exact=True).wait_for(timeout=10_000)
        board.connection("refused", "revoked")
        page.get_by_text("Not admitted").wait_for(timeout=10_000)
        assert complaints == [url for url in complaints if url.startswith("data:")]
