"""Output of the report commands at the widths of terminals, and the page of combined runs."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.reporting.compare.combine import group_runs
from image_classification.reporting.compare.combined import (
    Combined,
    combined_json,
    print_combined,
)
from image_classification.reporting.compare.history import print_history, read_history
from image_classification.reporting.compare.regression import compare_runs, print_comparison
from image_classification.reporting.page.combined_page import combined_page
from image_classification.reporting.run_folder import read_run

EXPECTED = Path(__file__).parent / "expected"


def shown(width, draw, *arguments, **options):
    console = Console(width=width, color_system=None, highlight=False, legacy_windows=False)
    with console.capture() as captured:
        draw(console, *arguments, **options)
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def published(top1, speed):
    """Return the published figures of the AMP run of 90 epochs, as in its report."""
    entry = {"id": "nvidia-resnet50-dgx1v-amp-90e", "comparable": True, "why": "", "ratio": 1.0}
    return [
        entry
        | {"figure": "top1", "unit": "percent", "published": 76.88, "measured": top1}
        | {"verdict": "reproduced"},
        entry
        | {"figure": "train_images_per_s", "unit": "images/s", "published": 8322}
        | {"measured": speed, "verdict": "reproduced"},
    ]


@pytest.fixture
def combined(record_run, run_results):
    devices = [{"name": "V100", "power_w_mean": 250.0, "memory_peak_bytes": 13 * 2**30}] * 8
    runs = []
    for seed, (speed, top1) in enumerate([(8300.0, 76.8), (8250.0, 76.95), (8330.0, 76.71)]):
        folder = record_run(
            f"amp-{seed}",
            seed=seed,
            ended_at=5 + seed,
            results=run_results(speed, top1),
            telemetry={"devices": devices, "energy_j": 1e8, "images_per_joule": 3.2},
        )
        content = json.loads((folder / "report.json").read_text())
        content["published"] = published(top1, speed)
        (folder / "report.json").write_text(json.dumps(content))
        runs.append(read_run(folder))
    fp32 = record_run("fp32", precision="FP32", results=run_results(2850.0, 77.0))
    content = json.loads((fp32 / "report.json").read_text())
    content["published"] = []
    (fp32 / "report.json").write_text(json.dumps(content))
    return Combined.of(group_runs([*runs, read_run(fp32)]))


@pytest.fixture
def releases(record_run, run_results):
    """Four months: the third is slower, the fourth diverged; and a benchmark beside them."""
    record_run("runs/jan", ended_at=1, results=run_results(8300.0, 76.8))
    torch = {"torch": "2.10.1", "cuda": "12.8"}
    record_run("runs/feb", ended_at=2, results=run_results(8400.0, 76.9), environment=torch)
    torch = {"torch": "2.11.0", "cuda": "13.0", "driver": "580.65.06", "git_commit": "fedc" * 10}
    slow = record_run("runs/mar", ended_at=3, results=run_results(7700.0, 76.6), environment=torch)
    record_run("runs/apr", ended_at=4, results={}, exit_code=3, exit_message="loss is not finite")
    latency = {"mean": 9.9, "p50": 9.8, "p90": 10.2, "p95": 10.4, "p99": 11.0}
    rows = [{"batch": n, "images_per_s": 100.0 * n, "latency_ms": latency} for n in (1, 256)]
    record_run("runs/served", mode="benchmark_inference", results={"inference": rows})
    return slow.parent


@pytest.mark.parametrize("width", [80, 120])
def test_print_combined(combined, width):
    text = shown(width, print_combined, combined, vendor=True)
    assert text == (EXPECTED / f"combined-{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120])
def test_print_history(releases, width, monkeypatch):
    monkeypatch.chdir(releases.parent)
    (releases / "foreign").mkdir()
    (releases / "foreign" / "report.json").write_text("{}")
    text = shown(width, print_history, read_history(Path("runs")))
    assert text == (EXPECTED / f"history-{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120])
def test_print_comparison(releases, width):
    comparison = compare_runs(read_run(releases / "feb"), read_run(releases / "mar"))
    text = shown(width, print_comparison, comparison)
    assert text == (EXPECTED / f"comparison-{width}.txt").read_text(encoding="utf-8")


def test_print_comparison_of_equal_runs(record_run):
    runs = [read_run(record_run(name, ended_at=n)) for n, name in enumerate(("a", "b"), start=1)]
    text = shown(80, print_comparison, compare_runs(*runs))
    assert text.endswith("The environments are the same.\nNo figure regressed.\n")


def test_inference_runs_have_a_table_of_batch_sizes(releases):
    combined = Combined.of(group_runs([read_run(releases / "served")]))
    text = shown(80, print_combined, combined, vendor=False)
    assert "│   256 │   25,600 │     - │ 9.90 │ 9.80 │ 10.20 │ 10.40 │ 11.00 │ 1 │" in text
    assert text.startswith("resnet50 AMP benchmark_inference DGX1V 90e, 8 devices, 1 run\nTesla")
    page = Page(combined_page(combined))
    assert "25,600" in page.text and page.open == []


def test_combined_json(combined):
    content = json.loads(json.dumps(combined_json(combined), allow_nan=False))
    assert list(content) == ["schema_version", "groups", "speedups", "scalings"]
    amp, fp32 = content["groups"]
    assert amp["name"]["precision"] == "AMP" and fp32["name"]["precision"] == "FP32"
    assert [run["seed"] for run in amp["runs"]] == [0, 1, 2]
    top1 = amp["figures"]["top1"]
    assert top1["unit"] == "percent" and top1["n"] == 3 and top1["mean"] == pytest.approx(76.82)
    assert fp32["figures"]["top1"]["std"] is None
    assert amp["published"][0]["verdict"] == "reproduced"
    assert amp["vendor"]["power"] == "250.00 W x 8"
    assert content["speedups"][0]["of"]["precision"] == "AMP"


class Page(HTMLParser):
    """Counts tables and their heads; checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.heads, self.text = [], 0, 0, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        assert not {"src", "href", "onload"} & set(names), (tag, names)
        assert tag not in ("script", "link", "iframe", "img")
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.tables += tag == "table"
        self.heads += tag == "th" and names["scope"] == "col"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_complete_and_needs_no_other_file(combined):
    text = combined_page(combined)
    page = Page(text)
    # Vendor table, speed-ups, and for each group figures and runs; one has published figures.
    assert page.open == [] and page.tables == 1 + 2 * 2 + 1 + 1 and page.heads > 40
    assert "http" not in text and "url(" not in text and "@import" not in text
    for words in ("76.88 % ± 0.16", "reproduced", "250.00 W x 8", "AMP over FP32", "01234567"):
        assert words in page.text
    assert "No published figure belongs to these runs." in page.text


def test_the_page_escapes_text_from_reports(record_run):
    folder = record_run("<b>odd", environment={"driver": "<script>alert(1)</script>"})
    text = combined_page(Combined.of(group_runs([read_run(folder)])))
    assert "<script>alert(1)</script>" in Page(text).text and "<script" not in text


def test_container_images_are_numbered_below_a_history(record_run):
    images = ["docker", "docker, image-classification 0.2.0 on nvcr.io/nvidia/pytorch:26.09-py3"]
    for at, image in enumerate([*images, images[1]]):
        record_run(f"runs/{at}", ended_at=1 + at, environment={"container": image})
    folder = record_run("runs/3", ended_at=4, environment={"container": images[0]}).parent
    text = shown(80, print_history, read_history(folder))
    assert f"container 1: {images[0]}\n" in text
    assert f"container 2: {images[1]}" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.startswith(" 2026-01-")]
    assert [row[-2] for row in rows] == ["1", "2", "2", "1"]
