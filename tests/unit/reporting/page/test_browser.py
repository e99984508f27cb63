"""The report page in a browser: it fits every width, is readable, and requests nothing."""

import io
import re
import shutil

import pytest
from PIL import Image

from image_classification.__main__ import main
from image_classification.config.resolve import resolve
from image_classification.core.errors import EXIT_REGRESSED
from image_classification.core.types import DevicesFound
from image_classification.reporting.build_report import build_report
from image_classification.reporting.page import write_page
from image_classification.reporting.pictures.draw import draw_run
from image_classification.reporting.run_folder import read_run
from tests.support import runs as made

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in PROGRAMS if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed (apt: chromium)"),
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
# Texts that reach beyond their picture, and the smallest font size in pixels.
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
# The lowest WCAG contrast ratio between text and its background.
LOWEST_CONTRAST = """
(() => {
  const rgb = color => color.match(/[0-9.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = rgb(color).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (rgb(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = 99;
  for (const e of document.querySelectorAll("main *")) {
    const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!hasText || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const color = e.tagName === "text" ? style.fill : style.color;
    const [a, b] = [luminance(color), luminance(background(e))];
    lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return lowest;
})()
"""


class Browser:
    """One page of a headless Chromium; it records requests and console messages."""

    def __init__(self, page):
        self.page = page
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))

    def open(self, url, *, width_px, dark=False, media="screen"):
        self.requests.clear()
        self.messages.clear()
        self.page.set_viewport_size({"width": width_px, "height": 900})
        self.page.emulate_media(media=media, color_scheme="dark" if dark else "light")
        self.page.goto(url)

    def evaluate(self, expression):
        return self.page.evaluate(expression)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=PROGRAM, args=["--no-sandbox", "--hide-scrollbars"]
        )
        yield Browser(chromium.new_page())
        chromium.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The URL of the report of a run that has every picture of a single run."""
    folder = tmp_path_factory.mktemp("run")
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", "90e")
    made.write_training(
        folder,
        config,
        steps_per_epoch=50,
        print_every=10,
        resumed_after=40,
        inference=made.inference_rows(),
    )
    report = read_run(folder).report
    gallery = draw_run(folder, report)
    return write_page(report, folder, gallery=gallery, provenance=config.provenance).as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_page_fits_every_width(browser, page, width_px, dark):
    browser.open(page, width_px=width_px, dark=dark)
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 8
    assert browser.evaluate(PICTURES_SHOWN)
    assert browser.evaluate("document.documentElement.scrollWidth") == width_px
    assert browser.evaluate(WIDER_THAN_ITS_BOX) == []
    assert browser.evaluate(TEXT_OUTSIDE) == []
    assert browser.evaluate(SMALLEST_TEXT) >= 7
    # Only the table of seven columns is wider than a phone; it scrolls in its own box.
    assert browser.evaluate(SCROLLING) == (["batch"] if width_px == 360 else [])
    assert browser.evaluate(LOWEST_CONTRAST) >= 4.5
    assert browser.requests == [page]
    assert browser.messages == []


def test_background_follows_the_color_scheme(browser, page):
    backgrounds = []
    for dark in (False, True):
        browser.open(page, width_px=800, dark=dark)
        backgrounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        axes = "document.querySelector('figure svg .none, #loss-patch_1 path')"
        assert browser.evaluate(f"getComputedStyle({axes}).fill") == backgrounds[-1]
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


HOVER = """
([picture, along]) => {
  const svg = document.querySelectorAll("figure svg")[picture];
  const chart = JSON.parse(svg.dataset.chart);
  const [left, top, width, height] = chart.panels[0].box;
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  return [box.left + scale * (left + along * width), box.top + scale * (top + height / 2)];
}
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_values_under_the_pointer(browser, page, width_px, dark):
    browser.open(page, width_px=width_px, dark=dark)
    figure = browser.page.locator("figure").nth(0)
    figure.scroll_into_view_if_needed()
    tip = figure.locator(".tip")
    assert not tip.is_visible()
    # The axis begins at 0 and ends at 1.02 of 90 epochs.
    browser.page.mouse.move(*browser.page.evaluate(HOVER, [0, 45 / 91.8]))
    lines = tip.inner_text().splitlines()
    assert re.fullmatch(r"epochs done: (44\.[89]|45(\.[012])?), step 2,2[3-6]\d", lines[0]), lines
    # 2.0 + 4.9 exp(-3), 0.95 + 3 exp(-3)
    assert float(lines[1].rsplit(" ", 1)[1]) == pytest.approx(2.244, abs=0.15)
    assert lines[2].startswith("validation cross-entropy: 1.09") or "1.1" in lines[2]
    assert tip.is_visible() and browser.evaluate(LOWEST_CONTRAST) >= 4.5
    assert browser.evaluate("document.documentElement.scrollWidth") == width_px
    browser.page.mouse.move(0, 0)
    assert not tip.is_visible()


def test_interruptions_under_the_pointer(browser, page):
    browser.open(page, width_px=800)
    figure = browser.page.locator("figure").nth(4)
    figure.scroll_into_view_if_needed()
    restarted = "JSON.parse(document.querySelectorAll('figure svg')[4].dataset.chart).panels[0]"
    along = browser.evaluate(f"(p => p.marks[0][1] / p.x[1])({restarted})")
    browser.page.mouse.move(*browser.page.evaluate(HOVER, [4, along]))
    assert figure.locator(".tip").inner_text().splitlines()[-1] == "restarted"


def test_values_by_keyboard_and_touch(browser, page):
    browser.open(page, width_px=800)
    browser.page.locator("figure svg").nth(1).focus()
    tip = browser.page.locator("figure").nth(1).locator(".tip")
    firsts = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        browser.page.keyboard.press(key)
        firsts.append(tip.inner_text().splitlines()[0])
    assert firsts == [f"epochs done: {n}, step {50 * n:,}" for n in (1, 2, 1, 90)]
    browser.page.keyboard.press("Escape")
    assert not tip.is_visible()
    touch = "(svg => svg.dispatchEvent(new PointerEvent('pointerdown', {pointerType: 'touch', "
    touch += "clientX: %f, clientY: %f})))(document.querySelectorAll('figure svg')[1])"
    browser.evaluate(touch % tuple(browser.page.evaluate(HOVER, [1, 0.5])))
    assert tip.is_visible()


def test_command_is_copied(browser, page):
    browser.open(page, width_px=800)
    browser.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = browser.page.locator(".command code").inner_text()
    browser.page.get_by_role("button", name="Copy").click()
    assert browser.page.get_by_role("button", name="Copied").is_visible()
    assert browser.evaluate("navigator.clipboard.readText()") == command != ""


def test_the_page_of_a_long_run_is_small(tmp_path):
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", "250e")
    made.write_training(tmp_path, config, epochs=250, print_every=25)
    report = read_run(tmp_path).report
    path = write_page(report, tmp_path, gallery=draw_run(tmp_path, report))
    assert path.stat().st_size < 1_000_000


def test_every_section_opens(browser, page):
    browser.open(page, width_px=800)
    inside = "[...document.querySelectorAll('details > :not(summary)')]"
    shown = f"{inside}.filter(e => e.checkVisibility()).length"
    assert browser.evaluate(shown) == 0
    sections = browser.evaluate("document.querySelectorAll('details').length")
    browser.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    assert browser.evaluate(shown) >= sections > 8
    assert browser.evaluate("document.documentElement.scrollWidth") == 800


def test_printed_page_is_light_and_shows_the_configuration(browser, page):
    browser.open(page, width_px=800, dark=True, media="print")
    body = "getComputedStyle(document.body)"
    assert browser.evaluate(f"{body}.backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details table')].filter(t => !t.offsetHeight).length"
    assert browser.evaluate(hidden) == 0
    assert browser.evaluate(SCROLLING) == []
    browser.evaluate("document.querySelector('.scroll').classList.add('hint')")
    hint = "getComputedStyle(document.querySelector('.scroll'), '::before').display"
    assert browser.evaluate(hint) == "none"
    pdf = browser.page.pdf(width="8.27in", height="11.69in")
    assert pdf.startswith(b"%PDF")
    assert 4 <= pdf.count(b"/Type /Page\n") <= 12


@pytest.fixture(scope="module", params=[3, 40, 60])
def evaluation_page(request, tmp_path_factory):
    """The URL of the report of an evaluation with few, more and many classes."""
    folder = tmp_path_factory.mktemp("evaluation")
    details = made.evaluation_details(request.param)
    image = io.BytesIO()
    Image.new("RGB", (160, 120), (90, 140, 60)).save(image, "JPEG")
    details.write(folder, {"mistake-01.jpg": image.getvalue()})
    config = resolve("resnet50", "AMP", "evaluate", "DGX1V", "90e")
    report = build_report(
        config,
        devices=DevicesFound("cuda", ("Tesla V100",) * 8),
        environment={},
        results={"evaluation": details.summary()},
    )
    return write_page(report, folder).as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_evaluation_fits_every_width(browser, evaluation_page, width_px, dark):
    browser.open(evaluation_page, width_px=width_px, dark=dark)
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("document.documentElement.scrollWidth") == width_px
    assert browser.evaluate(WIDER_THAN_ITS_BOX) == []
    assert browser.evaluate(TEXT_OUTSIDE) == []
    matrix = browser.page.locator("svg.matrix")
    if matrix.count():
        matrix.scroll_into_view_if_needed()
        cell = matrix.locator("rect.wrong").first
        cell.scroll_into_view_if_needed()
        box = cell.bounding_box()
        browser.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tip = browser.page.locator("svg.matrix + .tip")
        assert tip.inner_text() == "class & 0 predicted as class & 1: 2 of 10 images"
        assert tip.evaluate("tip => tip.style.left") != ""
        assert browser.evaluate("document.documentElement.scrollWidth") == width_px
    assert len([url for url in browser.requests if not url.startswith("data:")]) == 1
    assert browser.messages == []


@pytest.fixture(scope="module")
def pages_of_several(tmp_path_factory):
    """The URLs of combined.html, compare.html and history.html of four runs."""
    folder = tmp_path_factory.mktemp("several")
    paths = []
    for seed, speed in enumerate((8300.0, 8310.0, 8290.0, 7000.0)):
        config = resolve(
            "resnet50", "AMP", "convergence", "DGX1V", "90e", overrides={"run.seed": seed}
        )
        run = folder / "runs" / f"a-run-{seed}"
        run.mkdir(parents=True)
        made.write_training(
            run,
            config,
            epochs=9,
            steps_per_epoch=4,
            print_every=2,
            images_per_s=speed,
            noise_seed=seed,
        )
        paths.append(str(run))
    out = ["-o", str(folder)]
    assert main(["report", "combine", *paths, *out]) == 0
    assert main(["report", "compare", paths[0], paths[3], *out]) == EXIT_REGRESSED
    assert main(["report", "history", str(folder / "runs"), *out]) == EXIT_REGRESSED
    return [(folder / f"{name}.html").as_uri() for name in ("combined", "compare", "history")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_pages_of_several_runs_fit_every_width(browser, pages_of_several, width_px, dark):
    for url in pages_of_several:
        browser.open(url, width_px=width_px, dark=dark)
        assert browser.evaluate("document.documentElement.scrollWidth") == width_px
        assert browser.evaluate(WIDER_THAN_ITS_BOX) == []
        assert browser.evaluate(TEXT_OUTSIDE) == []
        assert browser.evaluate("document.querySelectorAll('svg').length") >= 1
        assert browser.evaluate(LOWEST_CONTRAST) >= 4.5
        assert browser.requests == [url]
        assert browser.messages == []
