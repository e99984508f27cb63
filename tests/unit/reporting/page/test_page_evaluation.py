"""The page's section on an evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from image_classification.reporting.build_report import build_report
from image_classification.reporting.evaluation import EvaluationDetails, Mistake
from image_classification.reporting.page import write_page
from tests.support import runs as made


def write(folder: Path, make_config, dgx1, details: EvaluationDetails) -> str:
    details.write(folder, {"mistake-01.jpg": b"jpeg"})
    results = {"evaluation": details.summary()}
    report = build_report(make_config(), devices=dgx1, environment={}, results=results)
    return write_page(report, folder).read_text()


def test_few_classes_have_the_whole_matrix(tmp_path, make_config, dgx1):
    page = write(tmp_path, make_config, dgx1, made.evaluation_details(3))
    (data,) = re.findall("data-matrix='([^']*)'", page)
    matrix = json.loads(unescape(data))
    assert matrix["names"] == ["class & 0", "class & 1", "class & 2"]
    assert [0, 1, 2] in matrix["counts"] and sum(n for *_, n in matrix["counts"]) == 30
    assert "6 of 30 images predicted wrongly. Weights: those of the best validation." in page
    assert "Accuracy of the classes" not in page  # no histogram of three
    assert "data:image/jpeg;base64,anBlZw==" in page and "cannot read it" in page
    assert "class &amp; 0" in page and "class & 0" not in page


def test_classes_of_one_name_have_their_own_shares(tmp_path, make_config, dgx1):
    details = EvaluationDetails(("crane", "ox", "crane"), {(0, 1): 1, (0, 0): 3, (1, 1): 1}, ())
    assert "25.0 %" in write(tmp_path, make_config, dgx1, details)


def test_names_are_text_on_the_page(tmp_path, make_config, dgx1):
    made_up = """<script>alert('"1"')</script>"""
    details = replace(
        made.evaluation_details(3),
        classes=(made_up, "b", "c"),
        mistakes=(Mistake(made_up, made_up, made_up, 0.9, 0.1, None, made_up),),
    )
    page = write(tmp_path, make_config, dgx1, details)
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert(") >= 5
    (data,) = re.findall("data-matrix='([^']*)'", page)
    assert json.loads(unescape(data))["names"][0] == made_up


def test_many_classes_have_a_histogram_and_the_extremes(tmp_path, make_config, dgx1):
    page = write(tmp_path, make_config, dgx1, made.evaluation_details(60))
    assert "data-matrix=" not in page
    assert "Accuracy of the classes" in page and "Most confused classes" in page
    assert page.count('<tr><th scope="row">class &amp;') == 20


def test_thumbnail_outside_the_folder_is_not_read(tmp_path, make_config, dgx1):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    mistake = Mistake("a.jpg", "a", "b", 0.9, 0.1, "../secret.jpg")
    details = replace(made.evaluation_details(3), mistakes=(mistake,))
    page = write(tmp_path, make_config, dgx1, details)
    assert "no thumbnail" in page and "data:image" not in page


def test_damaged_files_are_named_on_the_page(tmp_path, make_config, dgx1):
    details = made.evaluation_details(3)
    write(tmp_path, make_config, dgx1, details)
    (tmp_path / "evaluation" / "mistakes.json").write_text("[")
    report = build_report(
        make_config(), devices=dgx1, environment={}, results={"evaluation": details.summary()}
    )
    assert "evaluate again" in write_page(report, tmp_path).read_text()


@pytest.mark.parametrize("folder", [True, False])
def test_run_without_an_evaluation_has_no_section(tmp_path, make_config, dgx1, folder):
    if folder:  # of an earlier run
        made.evaluation_details(3).write(tmp_path, {})
    report = build_report(make_config(), devices=dgx1, environment={}, results={})
    assert "Classes and mistakes" not in write_page(report, tmp_path).read_text()
