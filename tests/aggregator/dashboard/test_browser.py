"""The pages in a real browser: the map, the updates, the phone."""

import io
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from aggregator.database import writing
from aggregator.tables import Member, Plan, Progress, Run, RunLog, Study

WAIT_MS = 60_000  # a machine that is busy with other tests draws slowly; a quiet one needs two seconds
UPDATE_MS = 20_000
PATHS = [
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
# Plotly carries the style of a map library that these pages never use; the browser refuses it, as it should.
REFUSED = "Applying inline style violates"

# Where a point of the map is on the page: the n-th most frequent, in CSS pixels.
PLACE = """n => {
  const map = document.getElementById("embedding"), trace = map._fullData[0], layout = map._fullLayout;
  const i = trace.x.length - n, box = map.getBoundingClientRect();
  return {
    x: box.left + layout._size.l + layout.xaxis.l2p(trace.x[i]),
    y: box.top + layout._size.t + layout.yaxis.l2p(trace.y[i]),
    text: trace.text[i],
  };
}"""


@pytest.fixture
def errors(desktop: Page) -> list[str]:
    """Gather what the page complains of."""
    found: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and REFUSED not in message.text:
            found.append(message.text)

    desktop.on("console", note)
    desktop.on("pageerror", lambda error: found.append(str(error)))
    return found


def open_map(page: Page, served: Any) -> None:
    page.goto(f"{served.address}/studies/melanoma-states")
    page.wait_for_selector("#embedding[data-drawn]", timeout=WAIT_MS)


def colour(page: Page) -> list[Any]:
    return page.evaluate(
        "() => { const m = document.getElementById('embedding')._fullData[0].marker;"
        " return [Array.from(m.color).slice(-5), m.showscale, m.colorscale[0][1]]; }"
    )


def test_the_map_is_drawn_by_webgl_without_a_complaint(desktop: Page, served: Any, errors: list[str]) -> None:
    open_map(desktop, served)
    desktop.wait_for_selector("#charts[data-drawn]", timeout=WAIT_MS)
    assert desktop.locator("#embedding .gl-canvas").count() > 0
    assert desktop.evaluate("document.getElementById('embedding')._fullData[0].x.length") == 20_000
    picture = Image.open(io.BytesIO(desktop.locator("#embedding").screenshot())).convert("RGB")
    counted = picture.getcolors(picture.width * picture.height) or []
    painted = sum(1 for n, rgb in counted if n > 50 and max(rgb) - min(rgb) > 40)
    assert painted >= 8, "ten clusters have as many colours, most of them seen well"
    assert errors == []


def test_hovering_a_point_shows_its_digits_and_its_count(desktop: Page, served: Any, samples: ModuleType) -> None:
    open_map(desktop, served)
    desktop.locator("#embedding").scroll_into_view_if_needed()
    place = desktop.evaluate(PLACE, 1)
    row = samples.heavy_hitters().slice(0, 1).to_pylist()[0]
    digits = " · ".join(str(row[f"d{i}"]) for i in range(8))
    assert place["text"].startswith(f"{row['count']:,} pixels, rank 1<br>digits {digits}<br>cluster {row['cluster']}")
    desktop.mouse.move(place["x"] + 40, place["y"] + 40)
    desktop.mouse.move(place["x"], place["y"], steps=4)
    label = desktop.locator("#embedding .hoverlayer .hovertext")
    expect(label).to_contain_text(" pixels, rank ", timeout=WAIT_MS)
    expect(label).to_contain_text("digits ")
    shown = label.text_content() or ""
    texts = set(desktop.evaluate("document.getElementById('embedding')._fullData[0].text"))
    assert shown in {text.replace("<br>", "") for text in texts}


def test_the_colour_switches_between_cluster_count_and_band(desktop: Page, served: Any) -> None:
    open_map(desktop, served)
    map_ = desktop.locator("#embedding")
    expect(map_).to_have_attribute("data-colour", "cluster")
    by_cluster, no_bar, first = colour(desktop)
    assert all(float(value).is_integer() for value in by_cluster)
    assert (no_bar, first) == (False, "#d55e00")
    expect(desktop.locator("#band")).to_be_hidden()

    desktop.get_by_label("Count", exact=True).check()
    expect(map_).to_have_attribute("data-colour", "count", timeout=WAIT_MS)
    desktop.wait_for_function("document.getElementById('embedding')._fullData[0].marker.showscale", timeout=WAIT_MS)
    by_count = colour(desktop)[0]
    assert by_count == sorted(by_count)

    desktop.get_by_role("radio", name="Band").check()
    expect(map_).to_have_attribute("data-colour", "band DAPI", timeout=WAIT_MS)
    desktop.locator("#band").select_option(label="CD8")
    expect(map_).to_have_attribute("data-colour", "band CD8", timeout=WAIT_MS)
    desktop.wait_for_function(
        "document.getElementById('embedding')._fullData[0].marker.color[0] < 1.01", timeout=WAIT_MS
    )
    assert colour(desktop)[0] != by_count


def test_the_buttons_zoom_in_out_and_back(desktop: Page, served: Any) -> None:
    open_map(desktop, served)
    width = "(() => { const [a, b] = document.getElementById('embedding')._fullLayout.xaxis.range; return b - a; })()"
    whole = desktop.evaluate(width)
    desktop.get_by_label("Zoom in").click()
    desktop.wait_for_function(f"{width} < {0.7 * whole}", timeout=WAIT_MS)
    desktop.get_by_label("Zoom out").click()
    desktop.get_by_label("Show the whole map").click()
    desktop.wait_for_function(f"Math.abs({width} - {whole}) < {0.05 * whole}", timeout=WAIT_MS)


def test_a_cluster_can_be_shown_alone_and_all_again(desktop: Page, served: Any) -> None:
    open_map(desktop, served)
    selected = "document.getElementById('embedding')._fullData[0].selectedpoints"
    entry = desktop.locator(".entry").nth(3)
    entry.click()
    expect(entry).to_have_attribute("aria-pressed", "true")
    desktop.wait_for_function(f"{selected} && {selected}.length", timeout=WAIT_MS)
    alone = desktop.evaluate(f"{selected}.length")
    entry.click()
    expect(entry).to_have_attribute("aria-pressed", "false")
    desktop.wait_for_function(f"!{selected}", timeout=WAIT_MS)
    assert 0 < alone < 20_000


def test_an_update_arrives_without_reloading_and_leaves_what_is_open_open(
    desktop: Page, served: Any, samples: ModuleType
) -> None:
    desktop.goto(f"{served.address}/studies/lung-map")
    desktop.evaluate("window.stayed = true")
    desktop.locator("#merges summary").first.click()
    row = desktop.locator(".matrix tr", has_text="goettingen")
    expect(row).to_contain_text("62 %")
    with writing(served.federation.engine) as session:
        counts = session.query(Plan).filter_by(study="lung-map", stage="counts").one()
        session.get(Progress, (counts.fingerprint, "goettingen")).pixels_done = 970_000_000
        samples.add_upload(session, counts, "trondheim", 18_600_000)
        session.get(Study, "lung-map").message = "2 of at least 3 sites have sent their tally"
    expect(row).to_contain_text("98 %", timeout=UPDATE_MS)
    expect(desktop.locator(".matrix tr", has_text="trondheim").locator(".uploaded")).to_have_count(3)
    expect(desktop.locator("#head")).to_contain_text("2 of at least 3 sites")
    assert desktop.evaluate("window.stayed") is True
    assert desktop.locator("#merges details[open]").count() == 1


def test_the_map_appears_without_reloading_when_the_study_has_one(
    desktop: Page, served: Any, samples: ModuleType
) -> None:
    with writing(served.federation.engine) as session:
        samples.add_study(session, "late-map", "embedding", window=0)
        results = dict(session.get(Study, "melanoma-states").results)
    desktop.goto(f"{served.address}/studies/late-map")
    expect(desktop.locator("#map")).to_be_hidden()
    assert desktop.evaluate("typeof Plotly") == "undefined", "a page without a map does not load what draws one"
    desktop.evaluate("window.stayed = true")
    with writing(served.federation.engine) as session:
        study = session.get(Study, "late-map")
        study.state, study.results = "awaiting_approval", results
    desktop.wait_for_selector("#embedding[data-drawn]", timeout=WAIT_MS)
    expect(desktop.locator(".entry")).to_have_count(10)
    assert desktop.evaluate("window.stayed") is True


def test_the_curves_of_a_run_are_drawn_and_grow_with_its_rounds(
    desktop: Page, served: Any, samples: ModuleType, errors: list[str]
) -> None:
    desktop.goto(f"{served.address}/runs/sella-run")
    desktop.wait_for_selector("#curves[data-drawn]", timeout=WAIT_MS)
    assert desktop.locator("#curves .curve").count() == 8
    last = "Math.max(...document.querySelector('#curve-loss .plot')._fullData.at(-1).x)"
    assert desktop.evaluate(last) == 25
    widths = desktop.evaluate(
        "[...document.querySelectorAll('.curve')].map(n => n.clientWidth - n.querySelector('.main-svg').clientWidth)"
    )
    assert all(0 <= width < 60 for width in widths), "each is as wide as its card"
    strokes = desktop.evaluate(
        "[...document.querySelectorAll('#curve-goal .js-line')].filter(line => line.getTotalLength() > 50)"
        ".map(line => getComputedStyle(line).stroke)"
    )
    assert len(strokes) == len(set(strokes)) == 4, "three sites and all of them, each in a colour of its own"
    desktop.evaluate("window.stayed = true")
    with writing(served.federation.engine) as session:
        run = session.get(Run, "sella-run")
        run.round, run.message = 26, "waits for 2 sites"
        session.add(samples.a_round("sella-run", 26, 30, samples.NOW))
        session.add(RunLog(run="sella-run", line=26, at=samples.NOW, text="round 26 counts at last"))
    desktop.wait_for_function(f"{last} === 26", timeout=WAIT_MS)
    expect(desktop.locator("#log li").first).to_contain_text("round 26 counts at last")
    expect(desktop.locator("#head")).to_contain_text("waits for 2 sites")
    assert desktop.locator("#curves .curve").count() == 8
    assert desktop.evaluate("window.stayed") is True
    assert errors == []


def test_the_curves_appear_without_reloading_with_the_first_round(
    desktop: Page, served: Any, samples: ModuleType
) -> None:
    with writing(served.federation.engine) as session:
        samples.add_run(session, "young-run", "running", 0)
    desktop.goto(f"{served.address}/runs")
    desktop.get_by_role("link", name="young-run").click()
    expect(desktop.locator("#curves")).to_be_hidden()
    assert desktop.evaluate("typeof Plotly") == "undefined"
    with writing(served.federation.engine) as session:
        session.get(Run, "young-run").round = 1
        session.add(samples.a_round("young-run", 1, 30, samples.NOW))
    desktop.wait_for_selector("#curves[data-drawn]", timeout=WAIT_MS)
    expect(desktop.locator("#sites")).to_contain_text("bern-insel")


def test_curves_that_cannot_be_drawn_leave_the_page_usable(desktop: Page, served: Any) -> None:
    desktop.route("**/plotly.min.js*", lambda route: route.abort())
    desktop.goto(f"{served.address}/runs/knee-pilot", wait_until="domcontentloaded")
    expect(desktop.locator("#sites")).to_contain_text("bern-insel")
    expect(desktop.locator("#curves")).to_contain_text("could not be drawn", timeout=WAIT_MS)


def test_a_session_that_ends_leads_back_to_the_door(desktop: Page, served: Any) -> None:
    desktop.goto(f"{served.address}/sites")
    desktop.context.clear_cookies()
    desktop.wait_for_url("**/login?next=%2Fsites", timeout=UPDATE_MS)


def test_a_page_says_when_the_aggregator_no_longer_answers(desktop: Page, served: Any) -> None:
    desktop.goto(f"{served.address}/sites")
    expect(desktop.locator("#connection")).to_be_hidden()
    desktop.context.set_offline(True)
    expect(desktop.locator("#connection")).to_be_visible(timeout=UPDATE_MS)
    desktop.context.set_offline(False)
    expect(desktop.locator("#connection")).to_be_hidden(timeout=WAIT_MS)


def test_hostile_words_do_nothing_in_a_browser(
    desktop: Page, served: Any, samples: ModuleType, errors: list[str]
) -> None:
    engine = served.federation.engine
    with writing(engine) as session:
        member = session.get(Member, "bern-insel")
        before, member.problems = member.problems, [samples.HOSTILE]
        results = samples.results(served.federation.store, served.federation.folder, rows=200)
        results |= {"bands": [samples.HOSTILE, *results["bands"][1:]]}
        results |= {"clusters": [cluster | {"state": samples.HOSTILE} for cluster in results["clusters"]]}
        samples.add_study(session, "hostile", "done", results=results)
    try:
        for path in ["/", "/sites", "/studies/hostile"]:
            desktop.goto(served.address + path)
        desktop.wait_for_selector("#charts[data-drawn]", timeout=WAIT_MS)
        place = desktop.evaluate(PLACE, 1)
        desktop.mouse.move(place["x"], place["y"], steps=4)
        assert desktop.title() == "hostile · Cairn"
        assert desktop.locator("main img, main script").count() == 0
    finally:
        with writing(engine) as session:
            session.get(Member, "bern-insel").problems = before


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_wider_than_a_phone(phone: Page, served: Any, path: str) -> None:
    phone.goto(served.address + path)
    if path.endswith("melanoma-states"):
        phone.wait_for_selector("#charts[data-drawn]", timeout=WAIT_MS)
    if path.endswith("sella-run"):
        phone.wait_for_selector("#curves[data-drawn]", timeout=WAIT_MS)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = phone.evaluate(
        """() => [...document.querySelectorAll("main *")].filter(node => {
             const box = node.getBoundingClientRect();
             return box.width > 0 && box.right > 391 && !node.closest("svg") && !node.closest(".unseen");
           }).map(node => node.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


@pytest.mark.parametrize("path", PATHS)
def test_what_can_be_touched_is_large_enough_for_a_finger(phone: Page, served: Any, path: str) -> None:
    phone.goto(served.address + path)
    small = phone.evaluate(
        """() => [...document.querySelectorAll("button, select, a, .segments label, summary")]
             .map(node => [node, node.getBoundingClientRect()])
             .filter(([, box]) => box.width > 0 && box.height < 43.5)
             .map(([node, box]) => node.outerHTML.slice(0, 80) + " " + box.height)"""
    )
    assert small == []


def test_on_a_phone_each_row_of_a_table_is_a_card_with_its_own_labels(phone: Page, served: Any) -> None:
    phone.goto(f"{served.address}/sites")
    expect(phone.locator("thead")).to_be_hidden()
    cell = phone.locator("#bern-insel td").first
    assert cell.evaluate("node => getComputedStyle(node, '::before').content") == '"Presence"'


def test_a_page_is_usable_before_its_map_is_drawn(desktop: Page, served: Any) -> None:
    desktop.route("**/plotly.min.js*", lambda route: route.abort())
    desktop.goto(f"{served.address}/studies/melanoma-states", wait_until="domcontentloaded")
    expect(desktop.locator("#stages")).to_contain_text("uploaded")
    expect(desktop.locator("#embedding")).to_contain_text("could not be drawn", timeout=WAIT_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground_in_light_and_in_dark(browser: Browser, served: Any, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(served.address)
    page.get_by_label("Token").fill(served.federation.token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{served.address}/")
    weak = page.evaluate(
        """() => {
          const rgb = text => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = node => {
            for (; node; node = node.parentElement) {
              const colour = rgb(getComputedStyle(node).backgroundColor);
              if (colour.length < 4 || colour[3] === 1) return colour;
            }
          };
          return [...document.querySelectorAll("body *")].filter(node => [...node.childNodes]
              .some(child => child.nodeType === 3 && child.textContent.trim()) && node.getClientRects().length
              && !["SCRIPT"].includes(node.tagName))
            .map(node => {
              const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
              return [(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 80)];
            }).filter(([contrast]) => contrast < 4.5);
        }"""
    )
    context.close()
    assert weak == []
