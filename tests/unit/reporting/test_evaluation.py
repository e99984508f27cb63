"""The files of an evaluation's details, and what is derived from them."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.reporting.evaluation import (
    EvaluationDetails,
    Mistake,
    class_names,
    read_details,
)

DETAILS = EvaluationDetails(
    ("cat", "dog, small", "owl", "yak"),
    {(0, 0): 8, (0, 1): 2, (1, 1): 5, (2, 0): 3, (2, 1): 1},
    (
        Mistake("val/owl/1.jpg", "owl", "cat", 0.9, 0.05, "mistake-01.jpg"),
        Mistake("val/owl/2.jpg", "owl", "cat", 0.8, None, None, "cannot read it"),
    ),
)


def mistake(**values: Any) -> str:
    return json.dumps([asdict(DETAILS.mistakes[0]) | values])


def test_figures_per_class() -> None:
    cat, dog, owl, yak = DETAILS.per_class
    assert (cat.images, cat.correct, cat.predicted, cat.top1) == (10, 8, 11, 80.0)
    assert cat.precision == pytest.approx(100 * 8 / 11)
    assert (dog.top1, dog.precision) == (100.0, 62.5)
    assert (owl.top1, owl.precision) == (0.0, None)
    assert (yak.images, yak.top1) == (0, None)
    assert (DETAILS.images, DETAILS.num_mistakes) == (19, 6)
    assert [each.name for each in DETAILS.ranked] == ["owl", "cat", "dog, small"]
    assert DETAILS.confused == [(owl, cat, 3), (cat, dog, 2), (owl, dog, 1)]


def test_summary_of_the_report() -> None:
    summary = DETAILS.summary()
    assert summary["worst_classes"][0] == {"name": "owl", "images": 4, "top1": 0.0}
    assert summary["best_classes"][0]["name"] == "dog, small"
    assert summary["confused"][0] == {"true": "owl", "predicted": "cat", "images": 3}


def test_written_details_are_read_back(tmp_path: Path) -> None:
    assert read_details(tmp_path) is None
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "mistake-07.jpg").write_bytes(b"of an earlier evaluation")
    DETAILS.write(tmp_path, {"mistake-01.jpg": b"jpeg"})
    assert read_details(tmp_path) == DETAILS
    assert [file.name for file in tmp_path.rglob("*.jpg")] == ["mistake-01.jpg"]
    with (tmp_path / "evaluation" / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "label": "1",
        "class": "dog, small",
        "images": "5",
        "correct": "5",
        "top1": "100.0000",
        "predicted": "8",
        "precision": "62.5000",
    }


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("confusion.csv", "true_label,predicted_label,images\n0,4,1\n"),
        ("confusion.csv", "true_label,predicted_label\n0,1\n"),
        ("confusion.csv", "true_label,predicted_label,images\n0,1,0\n"),
        ("classes.csv", "label,class\n0\n1,b\n2,c\n3,d\n"),
        ("mistakes.json", '[{"image": "a"}]'),
        ("mistakes.json", mistake(thumbnail=1)),
        ("mistakes.json", mistake(probability="high")),
        ("mistakes.json", mistake(true=None)),
        ("mistakes.json", "["),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, content: str) -> None:
    DETAILS.write(tmp_path, {})
    (tmp_path / "evaluation" / file).write_text(content)
    with pytest.raises(WorkspaceError, match="evaluate again"):
        read_details(tmp_path)


def test_labels_without_a_name_are_numbers() -> None:
    assert class_names(("a\nb",), 3) == ("a\N{REPLACEMENT CHARACTER}b", "1", "2")
