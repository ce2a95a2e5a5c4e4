"""The page where a clinician sees what a model says of an image, and what that rests on."""

from contextlib import closing

import httpx
import pytest

from .conftest import QUICK
from .test_search_page import address, page_of  # noqa: F401 - a fixture

QUESTION = {"run": "cells-2", "image": "s1"}


def test_models_images_and_an_explained_answer_are_given_out(address):  # noqa: F811
    listed = httpx.post(f"{address}/explain/images", json={"run": None, "part": ""}).json()
    assert [(one["run"], one["round"]) for one in listed["models"]] == [("cells-2", 4), ("lungs-1", 9)]
    assert [one["name"] for one in listed["images"]] == ["smear <01>.png", "smear 02.png", "tiny.png"]
    found = httpx.post(f"{address}/explain/answer", json=QUESTION).json()
    assert (found["label"], found["probabilities"]) == ("granular", [0.9, 0.1])
    assert len(found["patches"]) == 12


def test_a_part_of_a_name_is_looked_for_by_the_trainer(address):  # noqa: F811
    listed = httpx.post(f"{address}/explain/images", json={"run": "cells-2", "part": "02"}).json()
    assert [one["image"] for one in listed["images"]] == ["s2"]


def test_what_is_no_question_of_the_pages_own_script_is_turned_away(address):  # noqa: F811
    for content, type_, status in (
        (b"{}", "text/plain", 415),
        (b'{"run": 1, "part": "", "image": "s1"}', "application/json", 400),
        (b'{"run": "cells-2", "part": 3, "image": ["s1"]}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b" " * 5000, "application/json", 413),
    ):
        for path in ("images", "answer"):
            answer = httpx.post(f"{address}/explain/{path}", content=content, headers={"content-type": type_})
            assert (content, path, answer.status_code) == (content, path, status)


def test_another_host_name_and_a_question_by_link_are_turned_away(address):  # noqa: F811
    evil = httpx.post(f"{address}/explain/answer", json=QUESTION, headers={"Host": "evil.example"})
    assert evil.status_code == 400
    assert httpx.get(f"{address}/explain/answer").status_code == 405
    assert "default-src 'none'" in httpx.get(f"{address}/explain").headers["content-security-policy"]


def test_a_refusal_and_an_absent_trainer_are_sentences(site, address):  # noqa: F811
    answer = httpx.post(f"{address}/explain/answer", json={"run": "cells-2", "image": "s3"})
    assert (answer.status_code, answer.json()["sentence"].split(";")[0]) == (422, "tiny.png: found 9 × 9 pixels")
    with site.running(patience=QUICK) as training:
        pass
    with page_of(site, training.trainer) as at:
        answer = httpx.post(f"{at}/explain/images", json={"run": None, "part": ""})
    assert answer.status_code == 503
    assert answer.json()["sentence"].startswith("the trainer does not run")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_in_a_browser_a_chosen_image_shows_its_answer_views_and_patches(address, browser, width, height):  # noqa: F811
    with closing(browser.new_page(viewport={"width": width, "height": height})) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if address not in asked.url else None)
        page.goto(f"{address}/explain")
        page.get_by_text("Choose an image", exact=True).wait_for(timeout=20_000)
        page.select_option("#image", "s1")
        page.get_by_text("granular, 90 %").wait_for(timeout=20_000)
        assert page.locator("#known").text_content() == "smear <01>.png · labelled granular"
        assert page.locator("#patches li").count() == 12
        assert page.locator("#patches").get_by_text("0.80").count() == 12
        assert "2 of less weight are left out" in page.locator("#places").text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("button", name="Attention").click()
        assert page.locator("#high").text_content() == "12.3"
        assert page.locator("#view").evaluate("image => image.complete && image.naturalWidth") == 640
        page.select_option("#image", "s2")
        page.get_by_text("labelled round").wait_for(timeout=20_000)
        assert page.locator("#known.other").count() == 1
        assert complaints == [url for url in complaints if url.startswith("data:")]


def test_an_image_that_cannot_be_explained_is_a_sentence_that_stays(address, browser):  # noqa: F811
    with closing(browser.new_page()) as page:
        page.goto(f"{address}/explain")
        page.get_by_text("Choose an image", exact=True).wait_for(timeout=20_000)
        page.locator("#filter").fill("tiny")
        page.locator("#image option[value=s1]").wait_for(state="detached", timeout=20_000)
        page.select_option("#image", "s3")
        page.get_by_text("Tiny.png: found 9 × 9 pixels").wait_for(timeout=20_000)
        assert page.locator("#headline").text_content() == "No answer yet"


def test_a_model_with_a_mask_shows_what_it_says_of_the_parts(address, browser):  # noqa: F811
    with closing(browser.new_page()) as page:
        page.goto(f"{address}/explain")
        page.get_by_text("Choose an image", exact=True).wait_for(timeout=20_000)
        page.select_option("#model", "lungs-1")
        page.select_option("#image", "s1")
        page.get_by_text("clear, 90 %").wait_for(timeout=20_000)
        assert page.locator("#parts tbody").text_content() == "what the mask keeps95 %"
        assert page.locator("#patches").is_hidden()


def test_without_a_model_the_page_says_so_in_a_sentence(site, browser):
    with site.running("bare") as training:
        site.wait_ready()
        with page_of(site, training.trainer) as at, closing(browser.new_page()) as page:
            page.goto(f"{at}/explain")
            page.get_by_text("No model that classifies has come to this site yet").wait_for(timeout=20_000)
            assert page.get_by_role("button", name="Explain").is_disabled()
