"""The entry of ``published.yml`` for one's own measured run, for ``report submit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from image_classification.config.keys import to_dict
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.core.errors import UserError, WorkspaceError
from image_classification.core.units import counted, printable
from image_classification.reporting.figures import ACCURACY, LATENCY_NAMES
from image_classification.reporting.published.load import load_hardware
from image_classification.reporting.published.verdict import IMAGENET_CLASSES, IMAGENET_VAL_IMAGES
from image_classification.reporting.run_folder import RecordedRun

MIN_STEPS = 100
MIN_TIME_S = 30.0
"""Least number and total time of the measured steps for a speed to be accepted."""

MIN_PASSES = 50
"""Least number of timed passes per batch size for a latency to be accepted."""

_IMAGENET_TRAIN_IMAGES = 1_281_167
# Part of an epoch that may be missing: its last, incomplete batch.
_MISSING = 0.02

# Settings that may differ from the name's: they change neither the work of a step nor its result.
_FREE = {
    *("data.path", "data.backend", "data.format", "data.workers", "data.prefetch"),
    *("data.hw_decoder_load", "data.device_memory_padding_mib", "data.error_budget"),
    *("data.synthetic_train_images", "data.synthetic_val_images"),
    *("platform.num_devices", "platform.num_nodes", "platform.gpu_affinity"),
    *("batch.per_device", "batch.accumulation"),
}
_FREE_SECTIONS = {"run"}
# These change what is learned but not the speed of a step.
_FREE_FOR_SPEED = {"batch", "optim", "schedule"}


@dataclass(frozen=True)
class Submission:
    """A run as an entry of ``published.yml``: its content, and the numbers of its row.

    row: column -> text.
    """

    entry: Mapping[str, Any]
    row: Mapping[str, str]

    def yaml(self) -> str:
        """Return the entry as an item of the list ``runs``, in the file's style."""
        lines = []
        for key, value in self.entry.items():
            if key == "inference":
                lines += ["inference: |", *(f"  {line}" for line in value.splitlines())]
                continue
            content = value if isinstance(value, Mapping) else {key: value}
            flow = isinstance(value, Mapping)
            text = yaml.safe_dump(content, default_flow_style=flow, sort_keys=False, width=88)
            lines += (f"{key}: {text}" if flow else text).rstrip().splitlines()
        return "\n".join(f"{'- ' if n == 0 else '  '}{line}" for n, line in enumerate(lines))

    def markdown(self) -> str:
        """Return the row as a Markdown table."""
        cells = [list(self.row), ["---"] * len(self.row), list(self.row.values())]
        return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def submission(run: RecordedRun, by: str | None = None) -> Submission:
    """Return what is to be published of a run. by: who measured it.

    Raises:
        WorkspaceError: its figures would mislead, with the reason and the remedy.
    """
    problem = next(_problems(run), None)
    if problem is not None:
        raise WorkspaceError(f"{run.label}: {problem}")
    report, config = run.report, run.report.config
    figures = _figures(run)
    names, inference = report.name, report.name.mode == "benchmark_inference"
    kind = "inference" if inference else "convergence" if "top1" in figures else "throughput"
    what = {"model": names.model, "platform": names.platform, "precision": names.precision}
    date = f"{run.ended_at:%Y-%m-%d}"
    parts = ["measured", names.model, names.platform, f"x{run.num_devices}", names.precision]
    parts += [names.recipe, kind, date]
    entry: dict[str, Any] = {
        "id": "-".join(parts).lower(),
        "run": {**what, "recipe": names.recipe},
        "source": {
            "name": f"Measured by {printable(by)}" if by else "Measured with this program",
            "version": _software(run),
            "date": date,
        },
        "what": {
            **what,
            "hardware": _hardware(run),
            "num_devices": run.num_devices,
            "kind": kind,
        },
    }
    if not inference:
        entry["recipe"] = {
            "epochs": config["schedule"]["epochs"],
            "per_device_batch": config["batch"]["per_device"],
            "global_batch": config["batch"]["global"],
            "lr": config["optim"]["lr"],
            "mixup": config["mixing"]["mixup"],
        }
        entry["figures"] = figures
    else:
        entry["inference"] = _inference_table(run)
    if notes := list(_notes(run)):
        entry["note"] = "; ".join(notes)
    return Submission(entry, _row(run, figures))


def _problems(run: RecordedRun) -> Iterator[str]:
    """Yield why the figures of a run would mislead, the most basic reason first."""
    report, mode = run.report, run.report.name.mode
    if not run.finished:
        yield f"the run ended with {report.exit.status}: run it to its end"
    if mode not in ("convergence", "benchmark_training", "benchmark_inference"):
        yield (
            f"--mode {mode} measures no figure of the tables: use benchmark_training, "
            "benchmark_inference or convergence"
        )
    names = report.name
    try:
        named = resolve(names.model, names.precision, names.mode, names.platform, names.recipe)
    except UserError as error:
        yield f"its name is not one of this release: {error.message}"
        return
    inference = mode == "benchmark_inference"
    yield from _hardware_problems(run, named)
    if not inference:
        yield from _data_problems(run)
    yield from _settings_problems(run, named)
    if not inference:
        yield from _length_problems(run)
    elif (passes := report.config["run"]["inference_iterations"]) < MIN_PASSES:
        yield f"{passes} passes per batch are too few: time at least {MIN_PASSES}"


def _settings_problems(run: RecordedRun, named: RunConfig) -> Iterator[str]:
    content = to_dict(named)
    judged = run.report.name.mode == "convergence"
    free = _FREE_SECTIONS if judged else _FREE_SECTIONS | _FREE_FOR_SPEED
    for section, values in run.report.config.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            if section in free or name in _FREE or name == "model.pretrained_from_file":
                continue
            expected = content.get(section, {}).get(key, value)
            if value != expected and not name.startswith("platform."):
                yield (
                    f"{name} is {value}, not {expected} as its name says: start it again "
                    "without changing it"
                )
    for start in run.report.results.starts or ():
        if start.changes:
            yield (
                f"settings changed at step {start.step} ({'; '.join(start.changes)}): run it "
                "again without changes"
            )
    if judged and run.report.config["model"].get("pretrained_from_file"):
        yield "training began with pretrained weights: start it without them"


def _hardware_problems(run: RecordedRun, named: RunConfig) -> Iterator[str]:
    platform = named.platform
    found = run.report.environment.device_names
    kind = run.report.config["platform"]["device"]
    wanted = platform.device_name.casefold()
    if kind != platform.device or not found or any(wanted not in n.casefold() for n in found):
        yield (
            f"it ran on {', '.join(found) or 'unknown devices'} ({kind}), not on "
            f"{platform.name}'s {platform.device_name or platform.device}: name the platform it "
            "runs on (--list platforms)"
        )
    elif len(found) > 1:
        yield f"it ran on different devices ({', '.join(found)}): use devices of one kind"


def _data_problems(run: RecordedRun) -> Iterator[str]:
    report = run.report
    data, results = report.config["data"], report.results
    remedy = "give ImageNet's folder as DATA"
    if "synthetic" in (data["path"], data["backend"]):
        yield f"it trained on synthetic data: {remedy}"
    if data["path"] == "demo":
        yield f"it trained on the demo data set: {remedy}"
    classes = report.config["model"]["num_classes"]
    if classes != IMAGENET_CLASSES:
        yield f"its data set has {classes} classes, not {IMAGENET_CLASSES}: {remedy}"
    images = results.validation.images
    if images not in (None, IMAGENET_VAL_IMAGES):
        yield f"it validated on {images:,} images, not {IMAGENET_VAL_IMAGES:,}: {remedy}"
    train = results.train
    if len(results.starts or ()) == 1 and train.images and train.epochs:
        per_epoch = train.images / train.epochs
        if abs(per_epoch / _IMAGENET_TRAIN_IMAGES - 1) > _MISSING:
            yield (
                f"its data set has about {per_epoch:,.0f} training images, not "
                f"{_IMAGENET_TRAIN_IMAGES:,}: {remedy}"
            )


def _length_problems(run: RecordedRun) -> Iterator[str]:
    train, config = run.report.results.train, run.report.config
    if not train.images_per_s or not train.steps:
        yield "it measured no training speed: train more steps than run.benchmark_warmup_steps"
        return
    steps = train.steps - config["run"]["benchmark_warmup_steps"]
    time_s = steps * config["batch"]["global"] / train.images_per_s
    if steps < MIN_STEPS or time_s < MIN_TIME_S:
        yield (
            f"its speed is of {counted(max(0, steps), 'step')} in {max(0.0, time_s):.0f} s: train "
            f"at least {MIN_STEPS} steps and {MIN_TIME_S:.0f} s after the warm-up"
        )
    epochs, whole = train.epochs or 0, config["schedule"]["epochs"]
    if run.report.name.mode == "convergence" and epochs < whole:
        yield (
            f"it trained {epochs:g} of {whole} epochs: train to the end, or use "
            "--mode benchmark_training for the speed alone"
        )


def _figures(run: RecordedRun) -> dict[str, float]:
    """Return the figures of a training run, with about five digits."""
    found = run.figures
    digits = {"top1": 3, "top5": 3, "train_images_per_s": 1}
    figures = {name: round(found[name], n) for name, n in digits.items() if name in found}
    results = run.report.results
    if "top1" in figures and results.time_s.total and len(results.starts or ()) == 1:
        figures["time_to_train_min"] = round(results.time_s.total / 60, 1)
    for name in ("power_w_per_device", "memory_g_per_device"):
        if name in found:
            figures[name] = round(found[name], 1)
    return figures


def _inference_table(run: RecordedRun) -> str:
    """Return the table of an inference benchmark, a dash where a value was not measured."""
    lines = [["batch", "images_per_s", *(f"latency_ms_{name}" for name in LATENCY_NAMES)]]
    for row in run.report.results.inference or ():
        values = [row.images_per_s, *(getattr(row.latency_ms, name) for name in LATENCY_NAMES)]
        lines.append([str(row.batch), *("-" if v is None else f"{v:.5g}" for v in values)])
    return "\n".join(" ".join(line) for line in lines)


def _hardware(run: RecordedRun) -> str | dict[str, str]:
    """Return the file's key of the devices, or their description if it has none."""
    name = run.report.environment.device_names[0]
    kind = run.report.config["platform"]["device"]
    for key, known in load_hardware().items():
        if known.device == kind and known.device_name and known.device_name in name:
            return key
    name = printable(name)
    return {"name": name, "device": kind, "device_name": name.removeprefix("NVIDIA ")}


def _software(run: RecordedRun) -> str:
    environment = run.report.environment
    named = {"torch": environment.torch, "CUDA": environment.cuda, "driver": environment.driver}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _notes(run: RecordedRun) -> Iterator[str]:
    """Yield conditions of the run that affected its figures."""
    if any(device.throttled for device in run.report.telemetry.devices or ()):
        yield "the devices lowered their clocks during the run"
    wait = run.report.results.train.data_wait_fraction
    if wait is not None and wait >= 0.05:
        yield f"{100 * wait:.0f} % of the time was spent waiting for data"


def _row(run: RecordedRun, figures: Mapping[str, float]) -> dict[str, str]:
    """Return the cells of the run's row on the model's page."""
    names = run.report.name
    devices = ", ".join(run.report.environment.device_names)
    row = {"machine": printable(devices), "devices": str(run.num_devices)}
    row["precision"] = names.precision
    if names.mode == "benchmark_inference":
        for result in run.report.results.inference or ():
            row[f"images/s, batch {result.batch}"] = f"{result.images_per_s or 0:,.1f}"
        return row
    row["images per device"] = str(run.report.config["batch"]["per_device"])
    if "top1" in figures:
        row["epochs"] = str(run.report.config["schedule"]["epochs"])
        row |= {f"{name}, %": f"{figures[name]:g}" for name in ACCURACY if name in figures}
    return row | {"images/s": f"{figures['train_images_per_s']:,}"}
