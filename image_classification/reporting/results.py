"""The tables at the end of a run: its results, and the verdicts against the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from image_classification.core.errors import EXIT_DONE, EXIT_STOPPED
from image_classification.core.program import next_command, resume_command
from image_classification.core.units import duration, number, percent, rate
from image_classification.reporting.figures import (
    LATENCY_NAMES,
    label_of,
    mean_power_w,
    split_batch,
)
from image_classification.reporting.published.verdict import applies, newest, published_table
from image_classification.reporting.report import (
    EvaluationResults,
    InferenceResults,
    PublishedComparison,
    RunReport,
    TargetResults,
    Top1AtStep,
    ValidationResults,
)
from image_classification.reporting.table import Table, columns, pairs, print_table


def print_results(
    console: Console, report: RunReport, *, folder: Path, checkpoint: str | None = None
) -> None:
    """Print the end of a run. folder: the run's; checkpoint: the newest one, if any was saved."""
    names = report.name
    words = (names.model, names.precision, names.mode, names.platform, names.recipe)
    rows = [(label, text) for label, text in result_rows(report) if label not in _LAST_LINES]
    if checkpoint is not None:
        rows.append(("checkpoint", checkpoint))
    title = " ".join(word for word in words if word)
    print_table(console, pairs(rows, f"{title}, run on {report.ran_on}"))
    if report.results.inference:
        print_table(console, inference_table(report.results.inference))
    published = [entry for entry in report.published if applies(entry.figure, names.mode)]
    if published:
        first = newest(published)
        print_table(console, published_table(first))
        for about, why in _reasons(first).items():
            console.print(Text.assemble((f"{about}: ", "dim"), why))
        rest = len(published) - len(first)
        if rest:
            figures = "figure" if rest == 1 else "figures"
            more = f"{rest} more {figures} of other publications in report.json"
            console.print(Text(more, style="dim"))
    _print_last_lines(console, report, folder, saved=checkpoint is not None)


_LAST_LINES = ("best", "last")
_ENDS = ("stop_epoch", "max_steps", "stop_at_top1", "early_stopping_patience")


def _print_last_lines(console: Console, report: RunReport, folder: Path, *, saved: bool) -> None:
    """Print the best and last accuracy, where the page is, and what to run next.

    Each is one line, however long, so that commands can be copied whole.
    """
    page = folder / "report.html"
    lines = [(label, Text(text)) for label, text in result_rows(report) if label in _LAST_LINES]
    lines.append(("report", Text(str(page), style=f"link {page.resolve().as_uri()}")))
    lines += [(label, Text(line)) for label, line in next_commands(report, folder, saved=saved)]
    console.print()
    for label, text in lines:
        console.print(Text.assemble((f"{label:<10}", "bold"), text), soft_wrap=True)


def next_commands(report: RunReport, folder: Path, *, saved: bool) -> list[tuple[str, str]]:
    """Return at most two commands that are useful after a run, each with a word for what it does.

    saved: whether the run has a checkpoint. None after an error, whose message has the remedy.
    """
    run, mode, code = str(folder), report.name.mode, report.exit.code
    if code == EXIT_STOPPED and saved:
        return [("continue", resume_command(run))]
    if code != EXIT_DONE:
        return []
    if mode == "convergence" and saved:
        planned = int(report.config["schedule"]["epochs"])
        more = ["--epochs", str(planned)]
        # A run that had nothing left to train has no figures of training.
        done = report.results.train.epochs or report.results.last.epoch or 0
        if done >= planned:
            # The whole schedule is done: a longer one is another setting.
            more = ["--epochs", str(2 * planned), "--allow-changes"]
        evaluate = ("evaluate", next_command("launch", "--from", run, "--mode", "evaluate"))
        if any(report.config["run"].get(key) is not None for key in _ENDS):
            return [evaluate]  # continued, the run would end there again
        return [evaluate, ("continue", next_command("launch", "--from", run, *more))]
    return [
        ("compare", next_command("report", "history", str(folder.parent))),
        ("table", next_command("report", "combine", run, "--vendor")),
    ]


_MIN_EPOCHS = 0.005
"""A shorter part of an epoch is not printed."""


def result_rows(report: RunReport) -> list[tuple[str, str]]:
    """Return label and text of everything that was measured."""
    results, train, step = report.results, report.results.train, report.results.train.step_time_s
    rows = [
        ("devices", report.devices_text),
        ("weights", results.evaluated.text),
        ("validation", _validation_text(results.validation)),
        ("validation, EMA", _validation_text(results.validation_ema)),
        ("mistakes", _mistakes_text(results.evaluation)),
    ]
    rows += [("best", _top1_text(results.best)), ("last", _top1_text(results.last))]
    if train.images_per_s is not None:
        parts = [f"{rate(train.images_per_s)} images/s"]
        if train.images_per_s_per_device not in (None, train.images_per_s):
            parts.append(f"{rate(train.images_per_s_per_device)} per device")
        if train.data_wait_fraction is not None:
            parts.append(f"data wait {percent(train.data_wait_fraction)}")
        rows.append(("training", ", ".join(parts)))
    if step.p50 is not None and step.p95 is not None and step.p99 is not None:
        quantiles = (("p50", step.p50), ("p95", step.p95), ("p99", step.p99))
        texts = [f"{name} {number(1000 * time_s, 1)} ms" for name, time_s in quantiles]
        rows.append(("step time", ", ".join(texts)))
    if train.steps:
        planned = report.config["schedule"].get("epochs")
        of = f" of {planned}" if planned else ""
        epochs = f", {train.epochs:.2f}".rstrip("0").rstrip(".") if train.epochs else ""
        enough = train.epochs is not None and train.epochs >= _MIN_EPOCHS
        since = results.starts[-1].step if results.starts else 0
        trained = f"{train.steps:,} steps" + (f" since step {since:,}" if since else "")
        trained += f"{epochs}{of} epochs" + (" in all" if since else "") if enough else ""
        rows.append(("trained", trained))
        if train.images_per_s is None:
            warmup = report.config["run"].get("benchmark_warmup_steps")
            rows.append(("training", f"speed not measured: the first {warmup} steps are warm-up"))
    rows.append(("target", _target_text(results.target)))
    worlds = [start.world_size for start in results.starts or ()]
    if len(set(worlds)) > 1:
        rows.append(("processes", " -> ".join(str(size) for size in worlds)))
    if results.data.images_per_s is not None:
        rows.append(("loading", f"{rate(results.data.images_per_s)} images/s"))
    rows.append(("power", _power_text(report)))
    times = {
        "total": results.time_s.total,
        "training": results.time_s.train,
        "validation": results.time_s.validation,
        "first step": results.time_s.first_step,
    }
    known = [f"{name} {duration(time_s)}" for name, time_s in times.items() if time_s]
    rows.append(("time", ", ".join(known)))
    if report.exit.code != 0:
        rows.append(("ended", f"{report.exit.status}: {report.exit.message}"))
    return [(label, text) for label, text in rows if text]


def _top1_text(validation: Top1AtStep) -> str:
    if validation.top1 is None or validation.epoch is None:
        return ""
    at = f"epoch {validation.epoch:g}, step {validation.step or 0:,}"
    return f"top-1 {number(validation.top1)} % ({at})"


def _validation_text(validation: ValidationResults) -> str:
    if validation.top1 is None:
        return ""
    parts = [f"top-1 {number(validation.top1)} %"]
    if validation.top5 is not None:
        parts.append(f"top-5 {number(validation.top5)} %")
    if validation.loss is not None:
        parts.append(f"loss {number(validation.loss, 4)}")
    if validation.images is not None:
        parts.append(f"{validation.images:,} images")
    return ", ".join(parts)


def _mistakes_text(evaluation: EvaluationResults) -> str:
    if evaluation.mistakes is None:
        return ""
    text = f"{evaluation.mistakes:,} of {evaluation.images:,} images"
    worst = [f"{each.name} ({number(each.top1, 1)} %)" for each in evaluation.worst_classes or ()]
    if evaluation.mistakes == 0 or len(worst) < 3:
        return text
    return f"{text}; lowest top-1: {', '.join(worst[:3])}"


def _power_text(report: RunReport) -> str:
    telemetry, mean_w = report.telemetry, mean_power_w(report)
    if telemetry.energy_j is None:
        return ""
    count, parts = len(telemetry.devices or ()), []
    if mean_w is not None:
        devices = f" of {count} devices" if count > 1 else ""
        parts.append(f"mean {number(mean_w * count, 1)} W{devices}")
    parts.append(f"{number(telemetry.energy_j / 1000)} kJ")
    if telemetry.images_per_joule is not None:
        parts.append(f"{number(telemetry.images_per_joule, 3)} images per joule")
    return ", ".join(parts)


def _target_text(target: TargetResults) -> str:
    if target.stop_at_top1 is None:
        return ""
    wanted = f"top-1 {number(target.stop_at_top1)} %"
    if target.top1 is None:
        return f"{wanted} not reached"
    return (
        f"{wanted} reached ({number(target.top1)} %) after epoch {target.epoch}, step "
        f"{target.step:,}, in {duration(target.time_s)}"
    )


def inference_table(rows: Sequence[InferenceResults]) -> Table:
    """Return speed and latency of every batch size."""
    heads = ("batch", "images/s", *LATENCY_NAMES)
    return Table(
        columns(*heads, numbers=range(len(heads))),
        [
            (
                str(row.batch),
                rate(row.images_per_s),
                *(number(getattr(row.latency_ms, name)) for name in LATENCY_NAMES),
            )
            for row in rows
        ],
        title="Inference, latency in ms",
    )


def _reasons(entries: Sequence[PublishedComparison]) -> dict[str, str]:
    """Return the reason for each verdict; of inference, one per publication not comparable."""
    reasons: dict[str, str] = {}
    for entry in entries:
        if split_batch(entry.figure)[1] is None:
            reasons[f"{entry.id}, {label_of(entry.figure)}"] = entry.why
        elif not entry.comparable:
            reasons.setdefault(entry.id, entry.why)
    return reasons
