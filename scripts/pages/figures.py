"""The result tables of a model's page."""

from __future__ import annotations

from collections.abc import Sequence

from image_classification.reporting.published.load import PublishedRun, load_runs, rows_of
from pages.published import (
    MACHINES,
    Figures,
    Sources,
    is_full,
    machine_order,
    marked,
    named_runs,
    plain,
    precision_of,
    table,
    tabled,
)

FRAMEWORKS = {
    "NVIDIA DeepLearningExamples MXNet": "MXNet",
    "NVIDIA DeepLearningExamples PaddlePaddle": "PaddlePaddle",
    "NVIDIA DeepLearningExamples TensorFlow1": "TensorFlow 1",
}
_LATENCIES = (("mean", "mean"), ("p50", "median"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))


def accuracy(model: str, sources: Sources) -> str:
    """Return top-1 and top-5 of mixed and full precision, one row per publication and length."""
    lines: dict[tuple[object, ...], dict[bool, Figures]] = {}
    for run in tabled(model):
        figures = Figures(run)
        if figures.row("top1") is None:
            continue
        key = (
            run.hardware.name,
            run.num_devices,
            run.recipe.epochs,
            _release(run),
            _optimizer(run),
        )
        turn = 0
        while is_full(run) in lines.setdefault((*key, turn), {}):
            turn += 1
        lines[(*key, turn)][is_full(run)] = figures
    rows = []
    for pair in lines.values():
        run = next(iter(pair.values())).run
        cells = [run.hardware.name or "", plain(run.num_devices), str(run.recipe.epochs or "")]
        for full in (False, True):
            half = pair.get(full)
            if half is None:
                cells += ["", "", ""]
                continue
            cells += [marked(half.run, half.value(figure)) for figure in ("top1", "top5")]
            cells.append(half.printed_time())
        rows.append(
            [*cells, _optimizer(run), sources(*(half.run.source for half in pair.values()))]
        )
    heads = ["machine", "devices", "epochs"]
    heads += ["AMP top-1, %", "AMP top-5, %", "AMP time to train"]
    heads += ["FP32 top-1, %", "FP32 top-5, %", "FP32 time to train"]
    return table([*heads, "optimizer", "source"], rows)


def _release(run: PublishedRun) -> tuple[str, str | None]:
    """Return the release, which pairs mixed and full precision of separate documents."""
    return run.source.name, run.source.version


def _optimizer(run: PublishedRun) -> str:
    """Return the optimizer of a run without a configuration here; others share one optimizer."""
    name = (run.recipe.optimizer or "").upper()
    return name if run.named is None else ""


def training(model: str, sources: Sources) -> str:
    """Return one table of training speeds per machine."""
    parts = []
    for machine in MACHINES:
        lines = _speed_lines([r for r in tabled(model) if r.hardware.name == machine])
        if not lines:
            continue
        rows = []
        for (devices, _, _), pair in lines.items():
            mixed, full = pair.get(False), pair.get(True)
            cells = [str(devices)]
            for half in (mixed, full):
                speed = half.value("train_images_per_s", devices) if half else ""
                cells.append(marked(half.run, speed) if half else "")
            cells.append(mixed.value("train_speedup", devices) if mixed else "")
            cells += [half.value("scalability", devices) if half else "" for half in (mixed, full)]
            cells.append(" / ".join(_batch(half) for half in (mixed, full) if half))
            rows.append([*cells, sources(*(half.run.source for half in pair.values()))])
        heads = ["devices", "AMP images/s", "FP32 images/s", "speed-up", "AMP scaling factor"]
        heads += ["FP32 scaling factor", "images per device", "source"]
        parts.append(f"### {machine}\n\n" + table(heads, rows))
    return "\n\n".join(parts)


def _batch(figures: Figures) -> str:
    return plain(figures.run.recipe.per_device_batch) or "not stated"


def _speed_lines(
    runs: Sequence[PublishedRun],
) -> dict[tuple[int, object, int], dict[bool, Figures]]:
    """Pair mixed with full precision; a speed printed for runs of several lengths counts once."""
    lines: dict[tuple[int, object, int], dict[bool, Figures]] = {}
    for run in runs:
        figures = Figures(run)
        for figure, devices in figures.rows:
            if figure != "train_images_per_s" or devices is None:
                continue
            turn = 0
            while True:
                pair = lines.setdefault((devices, _release(run), turn), {})
                there = pair.setdefault(is_full(run), figures)
                if there.value(figure, devices) == figures.value(figure, devices):
                    break
                turn += 1
    return lines


def criteria(model: str, sources: Sources) -> str:
    """Return the publications with power and memory."""
    rows = []
    for run in tabled(model):
        figures = Figures(run)
        power, memory = figures.row("power_w_per_device"), figures.row("memory_g_per_device")
        if power is None or memory is None:
            continue
        count = plain(run.num_devices)
        rows.append(
            [
                run.hardware.name or "",
                precision_of(run),
                _batch(figures),
                figures.value("top1"),
                figures.value("train_images_per_s"),
                f"{plain(power.value)} x {count}",
                f"{plain(memory.value)} x {count}",
                figures.value("scaling_efficiency"),
                sources(run.source),
            ]
        )
    heads = ["machine", "precision", "images per device", "top-1, %", "images/s", "power, W"]
    return table([*heads, "memory, G", "scaling efficiency (1 = linear)", "source"], rows)


def inference(model: str, sources: Sources) -> str:
    """Return latency and speed by batch size from the newest publication."""
    parts = []
    for run in sorted(named_runs(model), key=machine_order):
        by_batch: dict[int, dict[str, float]] = {}
        for row in rows_of(run):
            if row.elsewhere is None and row.batch is not None:
                by_batch.setdefault(row.batch, {})[row.figure] = row.value
        if not by_batch:
            continue
        rows = [
            [plain(batch), plain(of["inference_images_per_s"])]
            + [plain(of.get(f"latency_ms_{key}")) for key, _ in _LATENCIES]
            for batch, of in by_batch.items()
        ]
        heads = ["batch", "images/s", *(f"{label}, ms" for _, label in _LATENCIES)]
        title = f"### {run.hardware.name}, {precision_of(run)} {sources(run.source)}"
        parts.append(f"{title}\n\n" + table(heads, rows))
    return "\n\n".join(parts)


def other_frameworks(model: str, sources: Sources) -> str:
    """Return what NVIDIA published for the same model and machines with other frameworks."""
    rows = []
    runs = [r for r in load_runs() if r.source.name in FRAMEWORKS and r.model == model]
    runs = [r for r in runs if r.hardware.name in MACHINES and r.precision is not None]
    for run in sorted(runs, key=machine_order):
        figures = Figures(run)
        speed, top1 = figures.value("train_images_per_s"), figures.value("top1")
        if not speed and not top1:
            continue
        cells = [run.hardware.name or "", plain(run.num_devices), FRAMEWORKS[run.source.name]]
        cells += [run.precision or "", str(run.recipe.epochs or ""), top1, speed]
        rows.append([*cells, sources(run.source)])
    heads = ["machine", "devices", "framework", "precision", "epochs", "top-1, %", "images/s"]
    return table([*heads, "source"], rows)
