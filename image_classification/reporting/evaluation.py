"""Details of an evaluation: confusion matrix, per-class accuracy and the worst mistakes.

They are files in ``evaluation/`` of the run's folder: ``confusion.csv`` (pairs of classes that
occurred), ``classes.csv``, and ``mistakes.json`` with its thumbnails.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from image_classification.core.errors import WorkspaceError
from image_classification.core.files import explained, write_atomically
from image_classification.core.units import finite, printable

FOLDER = "evaluation"
MAX_MISTAKES = 24
"""Wrong predictions that are kept, those of the highest probability."""

_CONFUSION, _CLASSES, _MISTAKES = "confusion.csv", "classes.csv", "mistakes.json"
_CONFUSION_HEADS = ("true_label", "predicted_label", "true", "predicted", "images")
_CLASS_HEADS = ("label", "class", "images", "correct", "top1", "predicted", "precision")
_IN_SUMMARY = 5


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction. image: its name in the data set. probability: of the predicted class.

    thumbnail: a JPEG in the folder; None if it could not be made, then ``problem`` says why.
    """

    image: str
    true: str
    predicted: str
    probability: float | None
    true_probability: float | None
    thumbnail: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ClassResult:
    """One class. predicted: images that were predicted to be of it, rightly or wrongly."""

    label: int
    name: str
    images: int
    correct: int
    predicted: int

    @property
    def top1(self) -> float | None:
        """Percent of its images that were predicted rightly; None without images."""
        return 100 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Percent of its predictions that are right; None if it was never predicted."""
        return 100 * self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True)
class EvaluationDetails:
    """What an evaluation found, image by image.

    classes: names in the order of the labels. counts: (true label, predicted label) -> images;
    pairs that did not occur are absent. mistakes: the most confident first.
    """

    classes: tuple[str, ...]
    counts: Mapping[tuple[int, int], int]
    mistakes: tuple[Mistake, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts.values())

    @property
    def num_mistakes(self) -> int:
        """Number of wrong predictions."""
        return sum(count for (true, predicted), count in self.counts.items() if true != predicted)

    @cached_property
    def per_class(self) -> tuple[ClassResult, ...]:
        """Every class, in the order of the labels."""
        images: dict[int, int] = defaultdict(int)
        predictions: dict[int, int] = defaultdict(int)
        for (true, predicted), count in self.counts.items():
            images[true] += count
            predictions[predicted] += count
        return tuple(
            ClassResult(k, name, images[k], self.counts.get((k, k), 0), predictions[k])
            for k, name in enumerate(self.classes)
        )

    @cached_property
    def ranked(self) -> list[ClassResult]:
        """The classes that have images, the lowest top-1 first."""
        found = [each for each in self.per_class if each.images]
        return sorted(found, key=lambda each: (each.top1, -each.images, each.label))

    @cached_property
    def confused(self) -> list[tuple[ClassResult, ClassResult, int]]:
        """(true class, predicted class, images) of wrong predictions, the most images first."""
        wrong = [(-n, pair) for pair, n in self.counts.items() if pair[0] != pair[1]]
        return [(self.per_class[t], self.per_class[p], -n) for n, (t, p) in sorted(wrong)]

    def summary(self) -> dict[str, Any]:
        """Return ``results.evaluation`` of report.json."""
        brief = [
            {"name": each.name, "images": each.images, "top1": each.top1} for each in self.ranked
        ]
        confused = [
            {"true": true.name, "predicted": predicted.name, "images": count}
            for true, predicted, count in self.confused[:_IN_SUMMARY]
        ]
        return {
            "folder": FOLDER,
            "images": self.images,
            "mistakes": self.num_mistakes,
            "worst_classes": brief[:_IN_SUMMARY],
            "best_classes": brief[::-1][:_IN_SUMMARY],
            "confused": confused,
        }

    def write(self, run_folder: Path, thumbnails: Mapping[str, bytes]) -> None:
        """Write the files into ``evaluation/``, in place of an earlier evaluation's.

        thumbnails: content of each ``Mistake.thumbnail``.

        Raises:
            WorkspaceError: the folder cannot be written.
        """
        folder = run_folder / FOLDER
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("mistake-*.jpg"):
                old.unlink()
            for name, content in thumbnails.items():
                (folder / name).write_bytes(content)
        pairs = (
            (true, predicted, self.classes[true], self.classes[predicted], count)
            for (true, predicted), count in sorted(self.counts.items())
        )
        write_atomically(folder / _CONFUSION, _csv_text(_CONFUSION_HEADS, pairs))
        rows = (
            (
                each.label,
                each.name,
                each.images,
                each.correct,
                _rounded(each.top1),
                each.predicted,
                _rounded(each.precision),
            )
            for each in self.per_class
        )
        write_atomically(folder / _CLASSES, _csv_text(_CLASS_HEADS, rows))
        mistakes = finite([asdict(mistake) for mistake in self.mistakes])
        write_atomically(folder / _MISTAKES, json.dumps(mistakes, indent=1) + "\n")


def class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return a printable name per label; labels without a name are called by their number."""
    known = tuple(printable(name) for name in names[:num_classes])
    return known + tuple(str(label) for label in range(len(known), num_classes))


def read_details(run_folder: Path) -> EvaluationDetails | None:
    """Read the details of the evaluation in a run's folder; None if it has none.

    Raises:
        WorkspaceError: a file is missing or damaged.
    """
    folder = run_folder / FOLDER
    if not (folder / _CLASSES).exists():
        return None
    try:
        classes = tuple(row["class"] for row in _csv_rows(folder / _CLASSES))
        counts = {
            (int(row["true_label"]), int(row["predicted_label"])): int(row["images"])
            for row in _csv_rows(folder / _CONFUSION)
        }
        if any(not 0 <= label < len(classes) for pair in counts for label in pair):
            raise ValueError(f"a label is not below {len(classes)}")
        if None in classes or min(counts.values(), default=1) < 1:
            raise ValueError("a class without a name, or a pair without images")
        found = json.loads((folder / _MISTAKES).read_text(encoding="utf-8"))
        mistakes = tuple(_checked(Mistake(**each)) for each in found)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise WorkspaceError(
            f"cannot read the evaluation in {folder} ({error}): delete the folder, or evaluate "
            "again"
        ) from error
    return EvaluationDetails(classes, counts, mistakes)


def _checked(mistake: Mistake) -> Mistake:
    texts = (mistake.image, mistake.true, mistake.predicted)
    optional = (mistake.thumbnail, mistake.problem)
    numbers = (mistake.probability, mistake.true_probability)
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(text, str | None) for text in optional)
        and all(isinstance(number, float | int | None) for number in numbers)
    ):
        raise TypeError("a mistake has a value of another type")
    return mistake


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
