"""The page where a clinician watches a search."""

from contextlib import closing, contextmanager

import httpx
import pytest

from edge_node.page.app import Site as PageSite
from edge_node.page.app import serve
from edge_node.status import RoundNote

from ..conftest import wait_until
from .conftest import QUICK

QUESTION = {"run": "sella-1", "task": "sella", "image": "i1", "start": [100, 300]}


@contextmanager
def page_of(site, trainer):
    board = site.board
    about = PageSite(
        "st-elsewhere",
        "demo",
        "a:1",
        board.snapshot,
        lambda: 0,
        site.audit_log.path,
        site.audit_log.path.parent,
        trainer,
    )
    with serve(about, "127.0.0.1:0") as at:
        yield f"http://{at}"


@pytest.fixture
def address(site):
    with site.running() as training:
        site.wait_ready()
        with page_of(site, training.trainer) as at:
            yield at


def test_scenes_an_image_and_a_path_are_given_out(address):
    scenes = httpx.get(f"{address}/search/scenes").json()
    assert [one["name"] for one in scenes["scenes"]] == ["head 01.png", "head <02>.png", "volume.nii"]
    image = httpx.post(f"{address}/search/image", json={"image": "i1", "slice": 0}).json()
    assert (image["width"], image["height"]) == (640, 480)
    found = httpx.post(f"{address}/search/path", json=QUESTION).json()
    assert found["positions"][0] == [100, 300]
    assert len(found["positions"]) == len(found["boxes"]) == len(found["q"]) == len(found["distance_mm"])


@pytest.mark.parametrize(
    ("content", "type_", "status"),
    [
        (b"{}", "text/plain", 415),
        (b'{"run": 1}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"task": "a", "image": "i1", "start": [1]}', "application/json", 400),
        (b'{"task": "a", "image": "i1", "start": [1, NaN]}', "application/json", 400),
        (b" " * 5000, "application/json", 413),
    ],
)
def test_what_is_no_question_of_the_pages_own_script_is_turned_away(content, type_, status, address):
    answer = httpx.post(f"{address}/search/path", content=content, headers={"content-type": type_})
    assert answer.status_code == status


def test_another_host_name_and_a_question_by_link_are_turned_away(address):
    assert httpx.post(f"{address}/search/path", json=QUESTION, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(f"{address}/search/path").status_code == 405


def test_the_pages_policy_allows_nothing_from_elsewhere(address):
    for path in ("/search", "/search/scenes"):
        assert "default-src 'none'" in httpx.get(address + path).headers["content-security-policy"]


def test_a_refusal_and_an_absent_trainer_are_sentences(site):
    with site.running("refuses") as training:
        site.wait_ready()
        with page_of(site, training.trainer) as at:
            answer = httpx.post(f"{at}/search/path", json=QUESTION)
            assert (answer.status_code, answer.json()) == (422, {"sentence": "the image cannot be read"})
    with page_of(site, training.trainer) as at:
        answer = httpx.get(f"{at}/search/scenes")
    assert answer.status_code == 503
    assert answer.json()["sentence"].startswith("the trainer does not run")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_in_a_browser_a_click_on_an_image_starts_a_search_that_ends_with_its_error(address, browser, width, height):
    with closing(browser.new_page(viewport={"width": width, "height": height})) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if address not in asked.url else None)
        page.goto(f"{address}/search")
        page.get_by_text("Click where the search is to start").wait_for(timeout=20_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.select_option("#task", "sella")
        page.locator("#speed").fill("60")
        box = page.locator("#canvas").bounding_box()
        page.locator("#canvas").click(position={"x": 0.4 * box["width"], "y": 0.5 * box["height"]})
        page.get_by_text("Ended after").wait_for(timeout=20_000)
        error = page.locator("#error").text_content()
        assert error.endswith(" mm")
        assert float(error.removesuffix(" mm")) < 2
        steps = page.locator("#step-now").text_content()
        page.get_by_role("button", name="Play again").click()
        page.get_by_text("Searching", exact=True).wait_for(timeout=20_000)
        page.get_by_text("Ended after").wait_for(timeout=20_000)
        assert page.locator("#step-now").text_content() == steps
        page.select_option("#image", "i2")
        page.get_by_role("button", name="Start in the middle").click()
        page.get_by_text("unknown").wait_for(timeout=20_000)
        page.select_option("#image", "v1")
        page.locator("#slices").wait_for(timeout=20_000)
        page.get_by_role("button", name="Start in the middle").click()
        page.get_by_text("Ended after").wait_for(timeout=20_000)
        assert page.locator("#found").text_content().endswith(", 4")
        assert complaints == [url for url in complaints if url.startswith("data:")]


def test_the_start_page_shows_the_round_and_the_curves_and_leads_to_the_search(site, address):
    rounds = [RoundNote("sella-1", n, metrics={"loss": 1 / n, "validation/sella/mean_mm": 9.0 / n}) for n in (1, 2)]
    site.board.rounds(RoundNote("sella-1", 3, busy=True, metrics={"loss": 0.25}), rounds)
    text = httpx.get(address).text
    for expected in ("trains round", "<b>3</b>", "Loss", "Error on this site", "<polyline", 'href="search"', "0.25"):
        assert expected in text


def test_a_page_opened_before_the_trainer_is_up_fills_itself_when_it_is(site, browser):
    with site.running(patience=QUICK) as training:
        training.superlink("")
        wait_until(site.state("waiting"), "no trainer")
        with page_of(site, training.trainer) as at, closing(browser.new_page()) as page:
            page.goto(f"{at}/search")
            page.get_by_text("The trainer does not run").wait_for(timeout=20_000)
            training.superlink("superlink.example:9092")
            page.get_by_text("Click where the search is to start").wait_for(timeout=20_000)
