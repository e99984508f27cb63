import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from image_classification.config.resolve import resolve
from image_classification.reporting.build_report import build_report
from image_classification.reporting.compare.combine import Combined
from image_classification.reporting.compare.groups import group_runs
from image_classification.reporting.page import combined_page, run_page, write_page
from image_classification.reporting.pictures.draw import Gallery, draw_run
from image_classification.reporting.pictures.picture import LeftOut
from image_classification.reporting.results import result_rows
from image_classification.reporting.run_folder import read_run
from tests.support import runs as made

VOID = {"meta", "br", "link", "img"}


class Checker(HTMLParser):
    """Collects tags, text and references; fails on tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.references: list[str | None] = []
        self.ids: list[str | None] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(make_config, dgx1, results):
    environment = {"torch": "2.10.0", "devices": [{"name": name} for name in dgx1.names]}
    return build_report(make_config(), devices=dgx1, environment=environment, results=results)


def test_the_page_has_names_verdicts_results_and_configuration(report, make_config):
    page = run_page(report, provenance=make_config().provenance)
    text = Checker(page).text
    for expected in (
        "resnet50 AMP, configuration DGX1V, run on 8 x Tesla V100-SXM2-16GB",
        "76.88 %",
        "76.80 %",
        "8,322 images/s",
        "-0.08 points, tolerance 0.32",
        "8 x Tesla V100-SXM2-16GB",
        "2.10.0",
        "label_smoothing",
        "configs.yml:123, recipe 90e",
    ):
        assert expected in text
    # Each verdict, and how many there are of it in the cards.
    assert page.count('class="mark reproduced"') == 2 + 1 and "2 reproduced" in text


def test_the_page_has_the_warnings_of_the_console(report):
    page = run_page(replace(report, warnings=("DGX1V is run on <cpu>",)))
    assert '<p class="warned">DGX1V is run on &lt;cpu&gt;</p>' in page


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """The pictures of a run that has every kind but scaling."""
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", "90e")
    folder = tmp_path_factory.mktemp("run")
    rows = made.inference_rows()
    made.write_training(folder, config, steps_per_epoch=20, print_every=10, inference=rows)
    return draw_run(folder, read_run(folder).report)


def test_the_page_has_only_its_own_script_and_needs_no_network(report, gallery, tmp_path):
    page = write_page(report, tmp_path, gallery=gallery).read_text()
    checker = Checker(page)
    assert checker.tags.count("svg") == len(gallery.drawn) == 8
    assert checker.tags.count("script") == 1 and "<script>" in page
    assert not {"link", "img", "iframe"} & set(checker.tags)
    assert all((reference or "").startswith("#") for reference in checker.references)
    assert "url(http" not in page and "@import" not in page
    # The namespaces of SVG are names, never fetched.
    outside = set(re.findall(r"https?://[^\"' <]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    # Ids are unique, and references stay within the page.
    assert len(checker.ids) == len(set(checker.ids))
    referred = {(reference or "")[1:] for reference in checker.references}
    referred |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred and referred <= set(checker.ids)
    # All colors are variables, which dark mode changes.
    assert not re.search(r"[:\"] ?#(222222|ffffff|dddddd)\b", page[page.index("<figure>") :])


def test_pictures_have_a_description_and_an_order(report, gallery):
    page = run_page(report, gallery)
    described = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert [text.split(".")[0] for text in described] == [
        "Loss",
        "Validation accuracy",
        "Learning rate",
        "Training throughput of each epoch",
        "Throughput and power over time",
        "Step time",
        "Latency against throughput",
        "Accuracy against multiply-adds",
    ]
    assert "top-1, percent over epochs done: weights as trained: from" in described[1]


def test_a_page_without_pictures_has_the_reasons(report):
    page = run_page(report, Gallery(left_out=(LeftOut("loss", "Loss", "no <loss> was recorded"),)))
    assert "<li><b>Loss</b>: no &lt;loss&gt; was recorded.</li>" in page
    assert "<figure>" not in page


def test_tables_have_headers(report, make_config):
    page = run_page(report, provenance=make_config().provenance)
    assert page.count("<thead>") + page.count("<tbody><tr><th scope=") == page.count("<table")
    assert '<th scope="row">devices</th>' in page
    assert not re.search(r"<th(?! scope=)[ >]", page)


def test_text_from_reports_is_escaped(make_config, dgx1, results):
    evil = "<script>alert('x')</script> & $title"
    config = make_config(
        names={"model": evil, "recipe": evil}, data={"path": evil}, platform={"name": evil}
    )
    report = build_report(
        config,
        devices=dgx1,
        environment={"driver": evil, "devices": [{"name": evil}]},
        results=results,
        exit_code=2,
        exit_message=evil,
    )
    page = run_page(report, provenance={"data.path": evil})
    assert page.count("<script") == Checker(page).tags.count("script") == 1
    assert "&lt;script&gt;" in page
    assert "$title" in page


def test_a_folder_whose_name_is_not_utf8(make_config, dgx1, tmp_path):
    config = replace(make_config(), data=replace(make_config().data, path="/data/a\udcff"))
    report = build_report(config, devices=dgx1, environment={}, results={})
    assert "<b>/data/a?</b>" in write_page(report, tmp_path).read_text(encoding="utf-8")


def test_power_is_in_the_results_if_every_device_has_it(make_config, dgx1):
    devices = [{"name": "V100", "power_w_mean": 250.0, "energy_j": 5000.0}] * 8
    telemetry = {"devices": devices, "energy_j": 40_000.0, "images_per_joule": 0.512}

    def rows(**changes):
        report = build_report(
            make_config(),
            devices=dgx1,
            environment={},
            results={},
            telemetry={**telemetry, **changes},
        )
        return dict(result_rows(report))

    power = rows()["power"]
    assert power == "mean 2,000.0 W of 8 devices, 40.00 kJ, 0.512 images per joule"
    assert "power" not in rows(energy_j=None)


def test_a_run_without_published_figures_or_plots(make_config, dgx1, tmp_path):
    config = replace(make_config(names={"platform": "CPU"}), sources=())
    report = build_report(
        config,
        devices=dgx1,
        environment={},
        results={"inference": [{"batch": 8, "images_per_s": 800.0}]},
        telemetry={"devices": [{"name": "V100", "power_w_mean": 250.0}], "source": "nvml"},
        exit_code=3,
        exit_message="loss is not finite at step 7",
    )
    page = write_page(report, tmp_path).read_text()
    text = Checker(page).text
    assert "No published figure belongs to this configuration." in text
    assert "Curves" not in text
    assert "diverged" in text and "loss is not finite at step 7" in text
    assert "800.0" in text
    assert "mean power" in text and "250.0 W" in text
    folded = text[text.index("Not measured (7), and source") :]
    assert "max power, energy, peak memory" in folded and "Source: nvml" in folded


@pytest.fixture
def combined(record_run, run_results):
    """Two seeds with published figures, and an inference run without."""
    environment = {"driver": "<script>alert(1)</script>"}
    devices = [{"name": "V100", "power_w_mean": 250.0}] * 8
    runs = [
        record_run(f"<b>{seed}", seed=seed, environment=environment, telemetry={"devices": devices})
        for seed in range(2)
    ]
    runs.append(record_run("fp32", precision="FP32", results=run_results(2850.0, 77.0)))
    rows = [{"batch": 256, "images_per_s": 25600.0}]
    served = {"mode": "benchmark_inference", "results": {"inference": rows}}
    runs.append(record_run("served", model="resnet18", platform="CPU", recipe=None, **served))
    return Combined.of(group_runs([read_run(run) for run in runs]))


def test_combined_page_has_every_table_and_needs_no_other_file(combined):
    page = combined_page(combined)
    checker = Checker(page)
    # Vendor table, speed-ups; in each group runs, and published figures or figures or inference.
    assert checker.tags.count("table") == 1 + 1 + 3 + 2 * 2 + 1
    assert checker.tags.count("script") == 1
    assert not {"link", "img", "iframe"} & set(checker.tags)
    assert checker.references == []
    assert "http" not in page and "url(" not in page and "@import" not in page
    words = ("76.88 % ± 0.16", "reproduced", "250.00 W x 8", "AMP over FP32", "01234567", "25,600")
    for expected in (*words, "<script>alert(1)</script>", "<b>0"):
        assert expected in checker.text
    assert "No published figure belongs to these runs." in checker.text


def test_other_publications_are_in_a_collapsed_section(make_config, results, dgx1, tmp_path):
    report = build_report(make_config(), devices=dgx1, environment={}, results=results)
    text = write_page(report, tmp_path).read_text(encoding="utf-8")
    before, _, folded = text.partition("<summary>Other publications")
    assert "nvidia-resnet50-dgx1v-amp-90e" in before
    assert "nvidia-pyt1910-resnet50-dgx1v-amp-90e" not in before
    assert "nvidia-pyt1910-resnet50-dgx1v-amp-90e" in folded
