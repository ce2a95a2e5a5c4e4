"""What the pages say of what is in the database."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import httpx
import pytest

from aggregator.database import audit, writing
from aggregator.tables import Answer, Member, Plan, Study

Visit = Callable[..., httpx.Client]
HTML = {"accept": "text/html"}
PAGES = [
    "/",
    "/sites",
    "/audit",
    "/studies/melanoma-states",
    "/studies/lung-map",
    "/studies/colon-pilot",
    "/runs",
    "/runs/sella-run",
    "/runs/next-run",
]


def words(page: str) -> str:
    """Return the page's text as a person reads it."""
    body = re.sub(r"<(script|style|title)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


class Balanced(HTMLParser):
    """Fails on an element that is closed where it is not open, and collects ids."""

    EMPTY = ("meta", "link", "input", "br", "img", "circle", "ellipse")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("path", [*PAGES, "/nowhere"])
def test_every_page_is_well_formed_and_names_each_part_once(operator: httpx.Client, path: str) -> None:
    parser = Balanced()
    parser.feed(operator.get(path, headers=HTML).text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


@pytest.mark.parametrize("path", [*PAGES, "/login"])
def test_no_page_asks_another_machine_for_anything(operator: httpx.Client, path: str) -> None:
    page = operator.get(path, headers=HTML).text
    for source in re.findall(r'(?:src|href|action)="([^"]*)"', page):
        assert source.startswith(("/", "#", "?", "data:image/svg+xml,")), source
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=", page)
    assert "<style" not in page


def test_the_overview_counts_sites_studies_and_bytes(operator: httpx.Client) -> None:
    text = words(operator.get("/", headers=HTML).text)
    assert "Sites connected 3 of 4" in text
    assert "Studies under way 2 of 3" in text
    assert "Tallies received 25" in text
    assert "counts 1 of 4 sites" in text


def test_the_overview_says_what_a_person_should_look_at(operator: httpx.Client) -> None:
    text = words(operator.get("/", headers=HTML).text)
    for sentence in [
        "goettingen 1 file could not be read (truncated TIFF)",
        "colon-pilot The merged moments are singular",
        "melanoma-states The map is ready",
        "lung-map 1 site refuses the counts stage",
    ]:
        assert sentence in text


def test_a_site_shows_presence_version_bytes_stage_and_problems(operator: httpx.Client) -> None:
    page = operator.get("/sites", headers=HTML).text
    rows = {name: words(re.search(rf'<tbody id="{name}">(.*?)</tbody>', page, re.S)[1]) for name in
            ["bern-insel", "goettingen", "trondheim", "warszawa", "old-clinic"]}  # fmt: skip
    assert "connected just now idle" in rows["bern-insel"]
    assert "0.1.0" in rows["bern-insel"]
    assert "lung-map · counts 62 %" in rows["goettingen"]
    assert "the disk has 2.1 GB free" in rows["goettingen"]
    assert "away 7 h ago" in rows["trondheim"]
    assert "invited never" in rows["warszawa"]
    assert "revoked: left the federation" in rows["old-clinic"]


def test_a_study_shows_each_site_in_each_stage(operator: httpx.Client) -> None:
    page = operator.get("/studies/lung-map", headers=HTML).text
    table = re.search(r'<table class="cards matrix">(.*?)</table>', page, re.S)[1]
    rows = {
        words(re.search(r"<th.*?</th>", row, re.S)[0]).strip(): words(row)
        for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    }
    assert set(rows) == {"bern-insel", "goettingen", "leiden-lumc", "trondheim"}
    assert rows["bern-insel"].count("uploaded") == 3
    assert "18.1 MB · 30 min ago" in rows["bern-insel"]
    assert "accepted 62 %" in rows["goettingen"]
    assert "refused rule 'no sketches without a quorum of 5' refuses min_sites 3" in rows["leiden-lumc"]
    assert rows["trondheim"].count("uploaded") == 2
    assert "waiting" in rows["trondheim"]


def test_a_site_that_a_closed_stage_did_not_wait_for_is_said_to_have_missed_it(
    operator: httpx.Client, filled: Any
) -> None:
    with writing(filled.engine) as session:
        plan = session.query(Plan).filter_by(study="lung-map", stage="counts").one()
        plan.state, plan.sites_expected, plan.closed_at = "closed", ["bern-insel"], filled.clock()
    text = words(operator.get("/studies/lung-map", headers=HTML).text)
    assert "missed the stage closed without this site's tally" in text
    assert "counts merging" in text


def test_a_finished_map_shows_its_key_numbers_and_clusters(operator: httpx.Client) -> None:
    page = operator.get("/studies/melanoma-states", headers=HTML).text
    text = words(page)
    assert "Left the sites 76.0 MB from 1.9 TB of images" in text
    assert "Mass they hold 81.0 % of the foreground" in text
    assert "Error bound ± 2 215" in text
    assert "keeps 96.3% of the bands' second moment. The cut-off by the glass peak keeps 64.4%" in text
    assert page.count('class="entry"') == 10
    assert "0 · tumour" in text


def test_a_study_without_a_map_hides_the_places_for_plots(operator: httpx.Client) -> None:
    page = operator.get("/studies/lung-map", headers=HTML).text
    assert re.search(r'<section id="map"[^>]* hidden>', page)
    assert re.search(r'<div id="charts"[^>]* hidden>', page)
    assert operator.get("/studies/lung-map/embedding.json").status_code == 404


@pytest.mark.parametrize("figure", ["embedding", "ranks", "markers", "band"])
def test_each_figure_of_a_map_is_json_that_a_browser_may_keep(operator: httpx.Client, figure: str) -> None:
    answer = operator.get(f"/studies/melanoma-states/{figure}.json?v=1&band=3")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "private, max-age=86400"
    assert json.loads(answer.text)


@pytest.mark.parametrize(
    "path", ["nothing.json", "band.json", "band.json?band=35", "band.json?band=-1", "band.json?band=x"]
)
def test_a_figure_or_band_that_is_not_there_is_not_found(operator: httpx.Client, path: str) -> None:
    assert operator.get(f"/studies/melanoma-states/{path}").status_code == 404


def test_band_values_come_from_the_plans_projection(operator: httpx.Client, samples: ModuleType) -> None:
    answer = operator.get("/studies/melanoma-states/band.json?band=0").json()
    assert -1 <= answer["low"] < answer["high"] <= 1


def test_without_a_plan_a_band_is_its_clusters_profile(
    operator: httpx.Client, filled: Any, samples: ModuleType
) -> None:
    with writing(filled.engine) as session:
        results = session.get(Study, "melanoma-states").results
        samples.add_study(session, "imported", "done", results=results)
    answer = operator.get("/studies/imported/band.json?band=0").json()
    assert answer["high"] > 100


def test_a_blob_that_is_gone_is_one_sentence(operator: httpx.Client, filled: Any) -> None:
    with writing(filled.engine) as session:
        study = session.get(Study, "melanoma-states")
        study.results = study.results | {"heavy_hitters_digest": "ab" * 32}
    answer = operator.get("/studies/melanoma-states/embedding.json")
    assert answer.status_code == 503
    assert "missing from the aggregator's store" in unescape(answer.text)


def test_a_study_can_be_looked_at_window_by_window(operator: httpx.Client, filled: Any, samples: ModuleType) -> None:
    with writing(filled.engine) as session:
        session.get(Study, "melanoma-states").window = 1
        samples.add_plan(session, "melanoma-states", "counts", "open", filled.clock(), window=1)
    page = operator.get("/studies/melanoma-states", headers=HTML).text
    assert 'href="?window=1" aria-current="true"' in page
    assert "counts 0 of 4 sites" in words(page)
    assert "moments from window 0" in words(page)
    earlier = words(operator.get("/studies/melanoma-states?window=0", headers=HTML).text)
    assert earlier.count("uploaded") == 16


def test_the_audit_lists_each_merge_with_exactly_its_tallies(operator: httpx.Client, samples: ModuleType) -> None:
    page = operator.get("/audit", headers=HTML).text
    merges = re.search(r'<section id="merges".*?</section>', page, re.S)[0]
    assert merges.count("<details") == 6
    first = re.search(r"<details.*?</details>", merges, re.S)[0]
    assert [site for site in samples.SITES if f"<li>{site} " in first] == list(samples.SITES)


def test_the_log_can_be_narrowed_and_leafed_through(operator: httpx.Client, filled: Any) -> None:
    with writing(filled.engine) as session:
        for n in range(120):
            audit(session, filled.clock() + timedelta(minutes=n), "operator/anna-lindqvist", "renew", f"site-{n}")
    page = operator.get("/audit?action=renew", headers=HTML).text
    seen = []
    while older := re.search(r'href="(/audit\?[^"]*before=\d+)"', page):
        seen += re.findall(r"site-\d+(?=</span>)", page)
        page = operator.get(unescape(older[1]), headers=HTML).text
    seen += re.findall(r"site-\d+(?=</span>)", page)
    assert seen == [f"site-{n}" for n in range(119, -1, -1)]
    assert "enrol" not in re.search(r"<tbody>.*</tbody>", page.split('id="log"')[1], re.S)[0]


def test_what_comes_from_outside_is_shown_as_text(operator: httpx.Client, filled: Any, samples: ModuleType) -> None:
    nasty = samples.HOSTILE
    with writing(filled.engine) as session:
        site = session.get(Member, "bern-insel")
        site.problems, site.version, site.revoke_reason = [nasty], nasty[:64], nasty
        study = session.get(Study, "lung-map")
        study.message, study.spec = nasty, study.spec | {"bands": [nasty], "clustering": nasty}
        refusal = session.query(Answer).filter_by(accepted=False).one()
        refusal.reason = nasty
        results = session.get(Study, "melanoma-states").results
        clusters = [cluster | {"state": nasty} for cluster in results["clusters"]]
        session.get(Study, "melanoma-states").results = results | {
            "clusters": clusters,
            "bands": [nasty, *results["bands"][1:]],
        }
        audit(session, filled.clock(), nasty[:160], nasty[:32], nasty[:160], **{nasty: nasty})
    for path in [*PAGES, "/studies/" + nasty.replace("/", "%2F"), f"/audit?action={nasty}", f"/login?next=/{nasty}"]:
        page = operator.get(path, headers=HTML).text
        assert "<script>" not in page, path
        assert "<img" not in page, path
    assert nasty in words(operator.get("/sites", headers=HTML).text)


def test_an_unchanged_page_is_answered_without_a_body(operator: httpx.Client, filled: Any) -> None:
    first = operator.get("/", headers=HTML)
    again = operator.get("/", headers={**HTML, "if-none-match": first.headers["etag"]})
    assert (again.status_code, again.text) == (304, "")
    with writing(filled.engine) as session:
        session.get(Member, "bern-insel").problems = ["something new"]
    changed = operator.get("/", headers={**HTML, "if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    assert "something new" in changed.text


@pytest.mark.parametrize(("path", "helpful"), [
    ("/", "cairn aggregator invite"), ("/", "cairn study create"), ("/sites", "cairn aggregator invite"),
    ("/audit", "Nothing is merged yet"),
])  # fmt: skip
def test_an_empty_database_shows_what_to_do_next(empty: Any, visit: Visit, path: str, helpful: str) -> None:
    client = visit(empty.app)
    assert client.post("/login", data={"token": empty.token}).status_code == 303
    assert helpful in words(client.get(path, headers=HTML).text)


def test_assets_are_kept_for_ever_under_an_address_that_their_content_names(operator: httpx.Client) -> None:
    page = operator.get("/", headers=HTML).text
    style = re.search(r'href="(/static/cairn\.css\?v=\w+)"', page)[1]
    assert "immutable" in operator.get(style).headers["cache-control"]
    assert operator.get("/static/cairn.css?v=old").headers["cache-control"] == "no-cache"
    for name in ["nothing.css", "..%2Fapp.py", "plotly.min.js.map"]:
        assert operator.get(f"/static/{name}").status_code == 404


def test_plotly_is_the_one_of_the_installed_wheel(operator: httpx.Client) -> None:
    answer = operator.get("/static/plotly.min.js")
    assert answer.headers["content-encoding"] == "gzip"
    assert "plotly.js v" in answer.text[:200]
