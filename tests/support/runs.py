"""Reports and folders of runs, made with the package's own writers."""

import json
import math
import random
from pathlib import Path
from typing import Any

from image_classification.core.types import DevicesFound, Record
from image_classification.reporting.build_report import build_report, complete
from image_classification.reporting.evaluation import EvaluationDetails, Mistake
from image_classification.reporting.published.verdict import compare
from image_classification.reporting.report import (
    Environment,
    Exit,
    PublishedComparison,
    Results,
    RunReport,
    Telemetry,
    write_report,
)
from image_classification.reporting.sinks import JsonlSink

BEGIN_S = 1_700_000_000.0


def compared(
    config, results, devices, *, telemetry=None, environment=None
) -> list[PublishedComparison]:
    """Compare results, given as a section of report.json, with the published figures."""
    report = RunReport(
        name=config.names,
        config={},
        environment=complete(Environment, environment or {}, "environment"),
        results=complete(Results, results, "results"),
        telemetry=complete(Telemetry, telemetry or {}, "telemetry"),
        published=(),
        exit=Exit(status="done", code=0, message=""),
    )
    return compare(config, report, devices)


TRAINING_PICTURES = [
    "loss",
    "accuracy",
    "learning_rate",
    "throughput",
    "over_time",
    "step_time",
    "accuracy_cost",
]


class Writer:
    """Writes records with the time `now_s`."""

    def __init__(self, folder: Path, begin_s: float = BEGIN_S, append: bool = False):
        self.now_s = begin_s
        self.sink = JsonlSink(
            folder / "metrics.jsonl", append=append, unix_time_s=lambda: self.now_s
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sink.close()

    def add(self, kind: str, step: int, epoch: int, **values):
        self.sink.write(Record(kind, step, epoch, values))


def write_training(
    folder: Path,
    config,
    *,
    epochs: int = 90,
    steps_per_epoch: int = 625,
    print_every: int = 125,
    resumed_after: int | None = None,
    telemetry: bool = True,
    ema: bool = True,
    devices: int = 8,
    name: str = "Tesla V100-SXM2-16GB",
    images_per_s: float = 8300.0,
    top1: float = 76.8,
    noise_seed: int = 0,
    inference: list[dict[str, Any]] | None = None,
) -> Path:
    """Write metrics.jsonl and report.json of a training run with realistic curves."""
    noise = random.Random(noise_seed)
    step_s = 256 * devices / images_per_s
    writer = Writer(folder)
    start = {"steps_per_epoch": steps_per_epoch, "epochs": epochs, "start_step": 0}
    writer.add("start", 0, 0, **start)
    for epoch in range(epochs):
        if epoch == resumed_after:
            writer.sink.close()
            writer = Writer(folder, writer.now_s + 600.0, append=True)
            writer.add("start", 0, epoch, **start | {"start_step": epoch * steps_per_epoch})
        speed = images_per_s
        for at in range(print_every, steps_per_epoch + 1, print_every):
            step = epoch * steps_per_epoch + at
            done = step / (epochs * steps_per_epoch)
            speed = images_per_s * noise.gauss(1.0, 0.01)
            span_s = print_every * step_s * images_per_s / speed
            writer.now_s += span_s
            lr = 2.048 * 0.5 * (1 + math.cos(math.pi * done))
            train_loss = 2.0 + 4.9 * math.exp(-6 * done) + noise.gauss(0, 0.03)
            if telemetry:
                writer.add(
                    "telemetry",
                    step,
                    epoch,
                    unix_time_s=writer.now_s,
                    span_s=span_s,
                    power_w=devices * noise.gauss(260, 4),
                    images_per_s=speed,
                )
            writer.add(
                "step",
                step,
                epoch,
                loss=train_loss,
                lr=lr,
                images_per_s=speed,
                step_time_s=span_s / print_every,
                data_wait_s=0.002,
                steps_per_epoch=steps_per_epoch,
            )
        step = (epoch + 1) * steps_per_epoch
        done = (epoch + 1) / epochs
        speeds = {"images_per_s": speed, "compute_images_per_s": 1.03 * speed}
        writer.add("epoch", step, epoch, **speeds, steps=625, loss=train_loss)
        now = top1 * (1 - 0.7 * math.exp(-7 * done)) + noise.gauss(0, 0.2) * (1 - done)
        writer.now_s += 7.0
        for kind, gain in (("validation", 0.0), ("validation_ema", 0.4 * (1 - done))):
            if kind == "validation" or ema:
                writer.add(
                    kind,
                    step,
                    epoch,
                    top1=now + gain,
                    top5=100 - (100 - now - gain) * 0.3,
                    loss=0.95 + 3 * math.exp(-6 * done),
                )
    writer.sink.close()
    results = {
        "train": {
            "images_per_s": images_per_s,
            "images_per_s_per_device": images_per_s / devices,
            "step_time_s": {"p50": step_s, "p95": 1.02 * step_s, "p99": 1.06 * step_s},
            "data_wait_fraction": 0.02,
            "epochs": epochs,
            "steps": epochs * steps_per_epoch,
            "images": epochs * steps_per_epoch * 256 * devices,
        },
        "validation": {"top1": top1, "top5": 93.2, "loss": 0.98, "images": 50_000},
        "time_s": {"total": 14500.0, "train": 13800.0, "validation": 560.0, "first_step": 3.2},
        "inference": inference,
    }
    _write_report(folder, config, results, (name,) * devices)
    return folder


def inference_rows(
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256), scale: float = 1.0
) -> list[dict[str, Any]]:
    """Rows of ``results.inference``: speed saturates, latency grows with the batch."""
    rows = []
    for batch in batches:
        mean = scale * (6.0 + 0.7 * batch)
        spread = {"mean": mean, "p50": mean, "p90": 1.03 * mean, "p95": 1.05 * mean}
        rows.append(
            {
                "batch": batch,
                "images_per_s": 1000 * batch / mean,
                "latency_ms": spread | {"p99": 1.2 * mean},
            }
        )
    return rows


def write_inference(folder: Path, config, **options) -> Path:
    """Write a run that measured only inference."""
    writer = Writer(folder)
    writer.add("start", 0, 0)
    rows = inference_rows(**options)
    for row in rows:
        quantiles = {f"latency_ms_{name}": value for name, value in row["latency_ms"].items()}
        writer.add("inference", 0, 0, batch=row["batch"], **quantiles)
    writer.sink.close()
    _write_report(folder, config, {"inference": rows}, ("Tesla V100-SXM2-16GB",))
    return folder


def _write_report(folder: Path, config, results, names) -> None:
    report = build_report(
        config,
        devices=DevicesFound("cuda", names),
        environment={"torch": "2.10.0", "devices": [{"name": name} for name in names]},
        results=results,
    )
    write_report(report, folder)


def change_report(folder: Path, section: str, **values) -> None:
    """Set values of a section of report.json, valid or not."""
    path = folder / "report.json"
    content = json.loads(path.read_text())
    content[section].update(values)
    path.write_text(json.dumps(content))


def evaluation_details(num_classes: int) -> EvaluationDetails:
    """Ten images per class, of which two are predicted as the next class; two mistakes shown."""
    names = tuple(f"class & {k}" for k in range(num_classes))
    counts = {(k, k): 8 for k in range(num_classes)}
    counts |= {(k, (k + 1) % num_classes): 2 for k in range(num_classes)}
    mistakes = (
        Mistake("val/0/1.jpg", names[0], names[1], 0.987, 0.01, "mistake-01.jpg"),
        Mistake("val/1/2.jpg", names[1], names[0], 0.9, None, None, "cannot read it"),
    )
    return EvaluationDetails(names, counts, mistakes)
