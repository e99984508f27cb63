from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from image_classification.reporting.run_folder import RecordedRun, read_run

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture
def recorded(record_run, run_results) -> Callable[..., RecordedRun]:
    """Write and read a run with a training speed and top-1; options as in `record_run`."""

    def make(
        name: str, images_per_s: float = 8300.0, top1: float = 76.8, **options: Any
    ) -> RecordedRun:
        options.setdefault("results", run_results(images_per_s, top1))
        return read_run(record_run(name, **options))

    return make


@pytest.fixture
def shown() -> Callable[..., str]:
    """Return what is printed to a terminal of ``width`` columns; no line may be longer."""

    def show(print_found: Callable[..., None], *arguments: Any, width: int = 80, **options: Any):
        console = Console(width=width, color_system=None, highlight=False, legacy_windows=False)
        with console.capture() as captured:
            print_found(console, *arguments, **options)
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        return "\n".join(line.rstrip() for line in lines) + "\n"

    return show


@pytest.fixture
def check_shown(shown) -> Callable[..., None]:
    """Compare what is printed at 80 and 120 columns with ``expected/NAME-WIDTH.txt``."""

    def check(name: str, *arguments: Any, **options: Any) -> None:
        for width in (80, 120):
            expected = (EXPECTED / f"{name}-{width}.txt").read_text(encoding="utf-8")
            assert shown(*arguments, width=width, **options) == expected

    return check


@pytest.fixture
def months(record_run, run_results, tmp_path) -> Callable[..., Path]:
    """Record runs of (images/s, top-1), one per day, below one folder; return it."""

    def make(*figures: tuple[float, float], **options: Any) -> Path:
        for day, values in enumerate(figures, start=1):
            record_run(f"runs/{day:02d}", ended_at=day, results=run_results(*values), **options)
        return tmp_path / "runs"

    return make


@pytest.fixture
def releases(record_run, run_results) -> Path:
    """Four months: the third is slower, the fourth diverged; and an inference benchmark."""
    record_run("runs/jan", ended_at=1, results=run_results(8300.0, 76.8))
    torch = {"torch": "2.10.1", "cuda": "12.8"}
    record_run("runs/feb", ended_at=2, results=run_results(8400.0, 76.9), environment=torch)
    torch = {"torch": "2.11.0", "cuda": "13.0", "driver": "580.65.06", "git_commit": "fedc" * 10}
    slow = record_run("runs/mar", ended_at=3, results=run_results(7700.0, 76.3), environment=torch)
    record_run("runs/apr", ended_at=4, results={}, exit_code=3, exit_message="loss is not finite")
    latency = {"mean": 9.9, "p50": 9.8, "p90": 10.2, "p95": 10.4, "p99": 11.0}
    rows = [{"batch": n, "images_per_s": 100.0 * n, "latency_ms": latency} for n in (1, 256)]
    record_run("runs/served", mode="benchmark_inference", results={"inference": rows})
    return slow.parent
