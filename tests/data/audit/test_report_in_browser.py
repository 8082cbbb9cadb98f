"""The report in a browser without a window: nothing is fetched, tables sort by mouse and keys, both colour schemes can be read."""

import shutil
from pathlib import Path

import pytest
from support.synthetic_sets import Sizes, write_synthetic_set

from medvar_data.audit.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LEAST_CONTRAST = 4.5  # WCAG 2.2 AA for text of usual size
CONTRASTS = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest("script, .hidden, .skip")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [rgba(element.closest("svg") ? style.fill : style.color), behind(element)].map(luminance);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_synthetic_set(
        folder / "set",
        Sizes(
            label_names=("liver", "a structure with a rather long name, as publishers give them"),
            texts={"title": 'A <collection> & "more"'},
        ),
    )
    return write_report(str(folder / "set"), folder / "report.html")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, report):
    """Opens the report; at the end nothing may have been asked of a network, and nothing said on the console."""
    said, asked, contexts = [], [], []

    def visit(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()] * len(contexts)


def column(page, place: int) -> list[str]:
    return page.locator(f"#overview table tbody tr td:nth-child({place})").all_inner_texts()


def header(page, place: int):
    return page.locator(f"#overview table thead th:nth-child({place})").first


def test_a_click_sorts_and_a_second_one_turns_round(visit):
    page = visit()
    before = column(page, 1)[:3]
    button = header(page, 5).locator("button")
    assert button.inner_text() == "found"
    button.click()
    assert header(page, 5).get_attribute("aria-sort") == "descending"
    assert column(page, 5)[:3] == ["13", "12", "12"]
    button.click()
    assert header(page, 5).get_attribute("aria-sort") == "ascending"
    assert column(page, 5)[:3] == ["12", "12", "13"]
    header(page, 1).locator("button").click()
    assert header(page, 5).get_attribute("aria-sort") is None
    assert column(page, 1)[:3] == sorted(before)


def test_all_is_reached_by_keys(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "collection"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert header(page, 1).get_attribute("aria-sort") == "descending"
    assert column(page, 1)[:3] == ["collection-02", "collection-01", "collection-00"]


def test_links_into_folded_parts_open_them(visit):
    page = visit()
    for details in page.locator("details").all()[:2]:
        assert not details.get_attribute("open")
        details.locator("summary").focus()
        page.keyboard.press("Enter")
        assert details.get_attribute("open") is not None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(visit, scheme):
    page = visit(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 300
    assert [(round(ratio, 2), text) for ratio, text in found if ratio < LEAST_CONTRAST] == []


def test_the_scheme_follows_the_system_until_it_is_chosen(visit):
    colours = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        colour = "getComputedStyle(document.body).backgroundColor"
        colours[scheme] = page.evaluate(colour)
        other = "Dark" if scheme == "light" else "Light"
        page.get_by_label(other).check()
        colours[f"{scheme} to {other}"] = page.evaluate(colour)
    assert colours["light"] != colours["dark"]
    assert colours["light to Dark"] == colours["dark"]
    assert colours["dark to Light"] == colours["light"]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    page.evaluate(
        "document.querySelectorAll('.collection').forEach((part) => (part.style.contentVisibility = 'visible'))"
    )
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_titles_are_shown_as_they_are(visit):
    assert visit().locator("#c1-title").text_content() == 'A <collection> & "more"'


def test_pictures_are_seen(visit):
    page = visit()
    sizes = page.evaluate(
        "Promise.all([...document.images].map(async (i) => { i.loading = 'eager'; await i.decode(); return i.naturalWidth }))"
    )
    assert len(sizes) == 24
    assert set(sizes) == {256}
