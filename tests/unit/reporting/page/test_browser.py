"""The page as a browser shows it: nothing fetched, nothing wider than the screen, readable."""

import pytest

from image_classification.config.resolve import resolve
from image_classification.reporting.page.run_page import write_page
from image_classification.reporting.pictures.draw import draw_run
from image_classification.reporting.report import read_report
from tests.support import browser as browser_module
from tests.support import runs as made

PROGRAM = browser_module.find_browser()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]

WIDTHS_PX = (360, 800, 1400)

WIDER_THAN_ITS_BOX = """
[...document.querySelectorAll("main *:not(svg *)")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll"))
  .map(e => e.tagName + "." + e.className)
"""
SCROLLING = """
[...document.querySelectorAll(".scroll")]
  .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
  .map(e => e.querySelector("th").textContent)
"""
# Words that reach beyond their picture, and the smallest words there are, in pixels.
TEXT_OUTSIDE = """
[...document.querySelectorAll("figure svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1
      || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll("figure svg")].flatMap(svg => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll("text")]
    .map(text => scale * parseFloat(getComputedStyle(text).fontSize));
}))
"""
PICTURES_SHOWN = """
[...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return [box.width > 200, box.height > 100, svg.querySelectorAll("path").length > 3,
          svg.getAttribute("role") === "img", svg.getAttribute("aria-label").length > 30];
}).flat().every(Boolean) && [...document.images].every(i => i.complete && i.naturalWidth > 0)
"""
# The lowest contrast between words and what lies under them, as WCAG counts it.
LOWEST_CONTRAST = """
(() => {
  const rgb = color => color.match(/[0-9.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = rgb(color).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (rgb(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = 99;
  for (const e of document.querySelectorAll("main *")) {
    const words = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!words || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.tagName === "text" ? style.fill : style.color), light(ground(e))];
    lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return lowest;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = browser_module.Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A whole report of a run that has every picture of one run."""
    folder = tmp_path_factory.mktemp("run")
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", "90e")
    rows = made.inference_rows()
    options = {"steps_per_epoch": 50, "print_every": 10, "resumed_after": 40, "inference": rows}
    made.write_training(folder, config, **options)
    report = read_report(folder / "report.json")
    gallery = draw_run(folder, report)
    return write_page(report, folder, gallery=gallery, provenance=config.provenance).as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_the_page_is_whole_at_every_width(browser, page, width_px, dark):
    browser.open(page, width_px=width_px, dark=dark)
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 8
    assert browser.evaluate(PICTURES_SHOWN)
    assert browser.evaluate("document.documentElement.scrollWidth") == width_px
    assert browser.evaluate(WIDER_THAN_ITS_BOX) == []
    assert browser.evaluate(TEXT_OUTSIDE) == []
    assert browser.evaluate(SMALLEST_TEXT) >= 7
    # The table of seven columns alone is wider than a telephone; it scrolls in its own box.
    assert browser.evaluate(SCROLLING) == (["batch"] if width_px == 360 else [])
    assert browser.evaluate(LOWEST_CONTRAST) >= 4.5
    assert browser.requests == [page]
    assert browser.complaints == []


def test_dark_is_dark_and_light_is_light(browser, page):
    grounds = []
    for dark in (False, True):
        browser.open(page, width_px=800, dark=dark)
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        axes = browser.evaluate(
            "getComputedStyle(document.querySelector('figure svg .none, #loss-patch_1 path')).fill"
        )
        assert axes == grounds[-1]
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_every_section_opens(browser, page):
    browser.open(page, width_px=800)
    shown = (
        "[...document.querySelectorAll('details table')].filter(t => t.checkVisibility()).length"
    )
    assert browser.evaluate(shown) == 0
    sections = browser.evaluate("document.querySelectorAll('details').length")
    browser.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    assert browser.evaluate(shown) == sections > 8
    assert browser.evaluate("document.documentElement.scrollWidth") == 800


def test_the_printed_page_is_light_and_holds_the_configuration(browser, page):
    browser.open(page, width_px=800, dark=True, media="print")
    body = "getComputedStyle(document.body)"
    assert browser.evaluate(f"{body}.backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details table')].filter(t => !t.offsetHeight).length"
    assert browser.evaluate(hidden) == 0
    assert browser.evaluate(SCROLLING) == []
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert 4 <= pdf.count(b"/Type /Page\n") <= 12
