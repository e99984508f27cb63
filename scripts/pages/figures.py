"""The result tables of a model's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from image_classification.config.resolve import resolve
from image_classification.reporting.published.load import PublishedRun, Source, load_runs, rows_of
from pages.published import (
    MACHINES,
    TODAYS_PLATFORMS,
    Figures,
    Sources,
    is_full,
    machine_order,
    marked,
    named_runs,
    plain,
    precision_of,
    release_of,
    table,
    tabled,
)

FRAMEWORKS = {
    "NVIDIA DeepLearningExamples MXNet": "MXNet",
    "NVIDIA DeepLearningExamples PaddlePaddle": "PaddlePaddle",
    "NVIDIA DeepLearningExamples TensorFlow1": "TensorFlow 1",
}
_LATENCIES = (("mean", "mean"), ("p50", "median"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))


@dataclass
class _Cells:
    """What one or more documents print of one measurement, in one precision.

    texts: a cell by column; documents that print the same measurement complete each other.
    """

    texts: dict[str, str]
    sources: list[Source]

    def takes(self, other: _Cells, key: str) -> bool:
        """Add ``other`` if it is the same measurement: same ``key`` and no contradiction."""
        if not other.texts[key] or not self.texts[key]:
            return False
        pairs = [(self.texts[name], text) for name, text in other.texts.items()]
        # A value without its spread is the same value.
        if any(a and b and a.split(" ± ")[0] != b.split(" ± ")[0] for a, b in pairs):
            return False
        if any(" ± " in a and " ± " in b and a != b for a, b in pairs):
            return False
        for name, text in other.texts.items():
            self.texts[name] = max(self.texts[name], text, key=len)
        self.sources += [source for source in other.sources if source not in self.sources]
        return True


# Of one machine: release -> (devices, further keys) -> the cells in mixed and in full precision.
_Lines = dict[str, dict[tuple[int, ...], tuple[list[_Cells], list[_Cells]]]]


def _add(lines: _Lines, release: str, at: tuple[int, ...], full: bool, cells: _Cells) -> None:
    """Add cells to a line; those whose first text is there already are merged."""
    found = lines.setdefault(release, {}).setdefault(at, ([], []))[full]
    key = next(iter(cells.texts))
    if not any(there.takes(cells, key) for there in found):
        found.append(cells)


def _machines(runs: Sequence[PublishedRun]) -> dict[str, list[PublishedRun]]:
    of: dict[str, list[PublishedRun]] = {}
    for run in runs:
        of.setdefault(run.hardware.name or "", []).append(run)
    return of


def _pairs(
    lines: dict[tuple[int, ...], tuple[list[_Cells], list[_Cells]]],
) -> Iterator[tuple[tuple[int, ...], _Cells | None, _Cells | None]]:
    """Yield the rows of a release in order of devices: mixed and full precision side by side."""
    for at in sorted(lines):
        for mixed, full in zip_longest(*lines[at]):
            yield at, mixed, full


def _release_table(
    release: str,
    heads: Sequence[str],
    rows: Sequence[tuple[Sequence[str], list[Source]]],
    sources: Sources,
    caption: str = "",
) -> str:
    """Return a table under its release; sources that all rows share are named there once."""
    everywhere = [s for s in rows[0][1] if all(s in found for _, found in rows)]
    title = f"**{release}** {sources(*everywhere)}".rstrip()
    cells = []
    for row, found in rows:
        own = [source for source in found if source not in everywhere]
        cells.append([*row, sources(*own)])
    text = table([*heads, "also in" if everywhere else "source"], cells)
    return f"{title}{caption}\n\n{text}"


def accuracy(model: str, sources: Sources) -> str:
    """Return one table per machine and release: top-1 and top-5 of mixed and full precision."""
    heads = ["devices", "epochs", "AMP top-1, %", "AMP top-5, %", "AMP time to train"]
    heads += ["FP32 top-1, %", "FP32 top-5, %", "FP32 time to train", "optimizer"]
    parts = []
    for machine, runs in _machines(tabled(model)).items():
        tables = []
        for release, lines in _accuracy_lines(runs).items():
            rows = []
            for (devices, epochs), mixed, full in _pairs(lines):
                halves = [half for half in (mixed, full) if half is not None]
                cells = [plain(devices), "" if epochs == _NO_EPOCHS else str(epochs)]
                for half in (mixed, full):
                    texts = half.texts if half else {}
                    cells += [texts.get(name, "") for name in ("top1", "top5", "time")]
                cells.append(next((h.texts["optimizer"] for h in halves), ""))
                rows.append((cells, [s for half in halves for s in half.sources]))
            if rows:
                tables.append(_release_table(release, heads, rows, sources))
        if tables:
            parts.append(f"### {machine}\n\n" + "\n\n".join(tables))
    return "\n\n".join(parts)


# Sorts behind every number of epochs.
_NO_EPOCHS = 10_000


def _accuracy_lines(runs: Sequence[PublishedRun]) -> _Lines:
    """Return the lines of a machine; a line that a later release repeats is the earlier one's."""
    lines: _Lines = {}
    # Documents with a number of epochs first, so that those without one find their line.
    for run in sorted(runs, key=lambda run: run.recipe.epochs is None):
        figures = Figures(run)
        if figures.row("top1") is None:
            continue
        epochs = run.recipe.epochs
        texts = {
            "top1": marked(run, figures.value("top1")),
            "top5": marked(run, figures.value("top5")),
            "time": figures.printed_time(),
            "optimizer": _optimizer(run),
        }
        release, full = release_of(run.source, "accuracy"), is_full(run)
        cells, devices = _Cells(texts, [run.source]), run.num_devices or 0
        if epochs is None:
            stated = [at for at in lines.get(release, {}) if at[0] == devices]
            if any(
                there.takes(cells, "top1") for at in stated for there in lines[release][at][full]
            ):
                continue
        place = (devices, epochs if isinstance(epochs, int) else _NO_EPOCHS)
        _add(lines, release, place, full, cells)
    releases = list(lines)
    for later, release in enumerate(releases):
        for at in list(lines[release]):
            for earlier in releases[later + 1 :]:
                if _repeats(lines[release][at], lines[earlier].get(at)):
                    del lines[release][at]
                    break
    return lines


def _repeats(
    line: tuple[list[_Cells], list[_Cells]], earlier: tuple[list[_Cells], list[_Cells]] | None
) -> bool:
    """Merge a line into the same one of an earlier release; False if they differ."""
    if earlier is None or [len(half) for half in line] != [len(half) for half in earlier]:
        return False
    pairs = list(zip(chain(*line), chain(*earlier), strict=True))
    if any(new.texts["top1"] != old.texts["top1"] for new, old in pairs):
        return False
    return all([old.takes(new, "top1") for new, old in pairs])


def _optimizer(run: PublishedRun) -> str:
    """Return the optimizer of a run without a configuration here; others share one optimizer."""
    name = (run.recipe.optimizer or "").upper()
    return name if run.named is None else ""


def training(model: str, sources: Sources) -> str:
    """Return one table of training speeds per machine and release, by number of devices."""
    heads = ["devices", "AMP images/s", "FP32 images/s", "speed-up"]
    heads += ["AMP scaling factor", "FP32 scaling factor"]
    heads += ["AMP scaling efficiency", "FP32 scaling efficiency"]
    heads += ["images per device", "optimizer"]
    parts = []
    for machine, runs in _machines(tabled(model)).items():
        lines: _Lines = {}
        for run in runs:
            figures = Figures(run)
            for figure, devices in figures.rows:
                if figure == "train_images_per_s" and devices is not None:
                    cells = _Cells(_speed_texts(figures, devices), [run.source])
                    release = release_of(run.source, "throughput")
                    _add(lines, release, (devices,), is_full(run), cells)
        tables = [_speed_table(name, heads, line, sources) for name, line in lines.items()]
        if tables:
            parts.append(f"### {machine}\n\n" + "\n\n".join(tables))
    return "\n\n".join(parts)


def _speed_texts(figures: Figures, devices: int) -> dict[str, str]:
    run = figures.run
    return {
        "speed": marked(run, figures.value("train_images_per_s", devices)),
        "speedup": figures.value("train_speedup", devices),
        "scaling": figures.value("scalability", devices),
        "efficiency": figures.value("scaling_efficiency", devices),
        "batch": plain(run.recipe.per_device_batch),
        "optimizer": _optimizer(run),
    }


def _speed_table(
    release: str,
    heads: Sequence[str],
    lines: dict[tuple[int, ...], tuple[list[_Cells], list[_Cells]]],
    sources: Sources,
) -> str:
    pairs = list(_pairs(lines))
    batches = [_batches(mixed, full) for _, mixed, full in pairs]
    # A batch that all rows share, or that none states, is said once.
    stated = {batch for batch in batches if batch}
    common = "".join(stated) if len(stated) < 2 else None
    rows = []
    for ((devices,), mixed, full), batch in zip(pairs, batches, strict=True):
        halves = [half for half in (mixed, full) if half is not None]
        texts = [half.texts if half else {} for half in (mixed, full)]
        cells = [plain(devices), *(text.get("speed", "") for text in texts)]
        cells.append(next((h.texts["speedup"] for h in halves if h.texts["speedup"]), ""))
        cells += [text.get(name, "") for name in ("scaling", "efficiency") for text in texts]
        cells.append("" if batch == common else batch)
        cells.append(next((h.texts["optimizer"] for h in halves), ""))
        rows.append((cells, [s for half in halves for s in half.sources]))
    caption = "" if common is None else f"; images per device: {common or 'not stated'}"
    if common and "" in batches:
        caption += ", where stated"
    return _release_table(release, heads, rows, sources, caption)


def _batches(mixed: _Cells | None, full: _Cells | None) -> str:
    """Return the batch per device of both precisions; empty if neither is stated."""
    found = [(n, half.texts["batch"]) for n, half in (("AMP", mixed), ("FP32", full)) if half]
    if len({batch for _, batch in found}) == 1:
        return found[0][1]
    return ", ".join(f"{name} {batch or 'not stated'}" for name, batch in found)


def not_measured(model: str) -> str:
    """Return today's machines without a figure, and the commands that measure them."""
    done = {
        (run.named.platform, run.named.precision)
        for run in named_runs(model)
        if run.named and any(figure == "train_images_per_s" for figure, _ in Figures(run).rows)
    }
    rows, lines = [], []
    for platform in TODAYS_PLATFORMS:
        for precision in ("AMP", "TF32"):
            if (platform, precision) in done:
                continue
            config = resolve(model, precision, "benchmark_training", platform)
            batch = config.batch.per_device_batch
            rows.append([platform, plain(config.world_size), precision, plain(batch)])
            rows[-1] += ["not measured yet", "not measured yet"]
            lines += [
                f"# {platform}, {precision}",
                f"python launch.py --model {model} --precision {precision} --mode "
                f"benchmark_training --platform {platform} /imagenet",
            ]
    if not rows:
        return "Every platform has a figure above."
    heads = ["platform", "devices", "precision", "images per device", "images/s", "top-1, %"]
    return table(heads, rows) + "\n\n```sh\n" + "\n".join(lines) + "\n```"


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
                plain(run.recipe.per_device_batch),
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
    """Return what NVIDIA published for other frameworks: one table per machine."""
    runs = [r for r in load_runs() if r.source.name in FRAMEWORKS and r.model == model]
    runs = [r for r in runs if r.hardware.name in MACHINES and r.precision is not None]
    heads = ["framework", "devices", "precision", "epochs", "top-1, %", "images/s", "source"]
    parts = []
    for machine, found in _machines(sorted(runs, key=machine_order)).items():
        lines: dict[tuple[str, int, str, str], list[_Cells]] = {}
        for run in found:
            figures = Figures(run)
            texts = {
                "top1": figures.value("top1"),
                "speed": figures.value("train_images_per_s"),
            }
            if not any(texts.values()):
                continue
            name = FRAMEWORKS[run.source.name]
            epochs = str(run.recipe.epochs or "")
            at = (name, run.num_devices or 0, run.precision or "", epochs)
            cells = _Cells(texts, [run.source])
            there = lines.setdefault(at, [])
            if not any(c.takes(cells, key) for c in there for key in texts if texts[key]):
                there.append(cells)
        rows = [
            [
                name,
                plain(devices),
                precision,
                epochs,
                *cells.texts.values(),
                sources(*cells.sources),
            ]
            for (name, devices, precision, epochs), each in sorted(lines.items(), key=_by_length)
            for cells in each
        ]
        if rows:
            parts.append(f"### {machine}\n\n" + table(heads, rows))
    return "\n\n".join(parts)


def _by_length(line: tuple[tuple[str, int, str, str], object]) -> tuple[str, str, int, int]:
    """Order by framework, precision, devices and epochs."""
    (name, devices, precision, epochs), _ = line
    return name, precision, devices, int(epochs or 0)
