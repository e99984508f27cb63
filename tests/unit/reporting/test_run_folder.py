import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from image_classification.core.errors import UserError, WorkspaceError
from image_classification.reporting.build_report import build_report
from image_classification.reporting.compare.combine import Combined, combined_json
from image_classification.reporting.compare.groups import group_runs
from image_classification.reporting.compare.regression import compare_runs
from image_classification.reporting.page import combined_page
from image_classification.reporting.report import write_report
from image_classification.reporting.run_folder import MAX_REPORT_BYTES, find_reports, read_run


def change(folder: Path, *keys: str | int, value: object) -> None:
    """Set a value of a written report; ``...`` removes its key."""
    path = folder / "report.json"
    content = json.loads(path.read_text())
    at = content
    for key in keys[:-1]:
        at = at[key]
    if value is ...:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_run_is_read_by_its_folder_or_its_file(record_run):
    folder = record_run("first", seed=3)
    run = read_run(folder)
    assert read_run(folder / "report.json") == run
    assert run.label == "first" and run.seed == 3 and run.num_devices == 8 and run.finished
    assert run.figures["top1"] == 76.8 and run.figures["step_time_ms_p95"] == 260.0
    assert "memory_g_per_device" not in run.figures and "top1_ema" not in run.figures


def test_the_end_time_is_of_the_report_or_else_of_the_file(record_run):
    folder = record_run("first", ended_at=5)
    run = read_run(folder)
    assert run.time_is_known and run.time_text == "2026-01-05 03:00"
    # Reports of earlier releases do not; the file's time has to do.
    change(folder, "environment", "ended_at", value=...)
    os.utime(folder / "report.json", (0, 86_400))
    older = read_run(folder)
    assert older.ended_at == datetime(1970, 1, 2, tzinfo=timezone.utc)
    assert older.time_text == "~1970-01-02 00:00"


def test_the_verdict_short_of_earlier_releases_is_read_as_below(record_run):
    folder = record_run("first")
    change(folder, "published", 0, "verdict", value="short")
    assert read_run(folder).report.published[0].verdict == "below"


def test_the_time_of_a_new_report_is_now(make_config, dgx1, tmp_path):
    before = datetime.now(timezone.utc).replace(microsecond=0)
    report = build_report(make_config(), devices=dgx1, environment={"devices": []}, results=None)
    write_report(report, tmp_path)
    assert before <= read_run(tmp_path).ended_at <= datetime.now(timezone.utc)


def test_power_and_memory_are_per_device(record_run):
    devices = [
        {"name": "V100", "power_w_mean": 240.0 + n, "memory_peak_bytes": (10 + n) * 2**30}
        for n in range(3)
    ]
    figures = read_run(record_run("a", telemetry={"devices": devices})).figures
    assert figures["power_w_per_device"] == 241.0 and figures["memory_g_per_device"] == 12.0
    devices[1]["power_w_mean"] = None
    figures = read_run(record_run("b", telemetry={"devices": devices})).figures
    assert "power_w_per_device" not in figures


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("results", "train", "images_per_s"), ..., "results.train.images_per_s is missing"),
        (("results", "train", "images_per_s"), "fast", "is 'fast', not a number of 0 or more"),
        (("results", "train", "images_per_s"), -1.0, "is -1.0, not a number of 0 or more"),
        (("results", "train", "images_per_s"), float("nan"), "is nan, not a number"),
        (("results", "train", "images_per_s"), 10**400, "is a number out of range"),
        (("results", "validation", "top1"), 101.0, "is 101.0, not a percentage or null"),
        (("results", "validation"), None, "results.validation is null, not an object"),
        (("results", "inference"), [{"batch": 0}], r"results.inference\[0\].batch is 0"),
        (("config", "run", "seed"), True, "config.run.seed is True, not a whole number"),
        (("config", "platform", "num_devices"), ..., "config.platform.num_devices is missing"),
        (("config", "odd"), 3, "config.odd is not an object"),
        (("name",), {"model": "resnet50"}, "name.precision is missing"),
        (("published",), {}, "published is an object, not a list"),
        (("exit", "code"), 9, "exit.code is 9, not one of 0, 1, 2, 3, 75"),
        (("environment", "ended_at"), "yesterday", "is 'yesterday', not a time in ISO 8601"),
        (("environment", "ended_at"), "2026-01-05T03:00:00", "not a time in ISO 8601 with its"),
        (("schema_version",), "\x1b[31m", "has schema version \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_error_of_a_damaged_report_names_file_and_key(record_run, keys, value, words):
    folder = record_run("first")
    change(folder, *keys, value=value)
    with pytest.raises(WorkspaceError, match=words) as caught:
        read_run(folder)
    assert str(folder) in caught.value.message and caught.value.message.isprintable()


def test_files_that_are_not_reports(tmp_path):
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_REPORT_BYTES + 1))
    deep = tmp_path / "deep.json"
    keys = '"name": 1, "environment": 1, "results": 1, "telemetry": 1, "published": 1, "exit": 1'
    nested = '{"a":' * 900 + "1" + "}" * 900
    deep.write_text(f'{{"schema_version": 1, {keys}, "config": {nested}}}')
    deeper = tmp_path / "deeper.json"
    deeper.write_text("[" * 100_000)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    expected = {
        large: "bytes, no report has more",
        deep: "damaged",
        deeper: "nested too deeply",
        binary: "is not JSON",
        tmp_path: "cannot read",
        tmp_path / "none": "No such file",
        Path("/dev/null"): "is not a file",
    }
    for path, words in expected.items():
        with pytest.raises(WorkspaceError, match=words):
            read_run(path)


def test_control_characters_are_replaced(record_run):
    folder = record_run("first")
    change(folder, "environment", "driver", value="550\x1b[2J\n")
    driver = read_run(folder).report.environment.driver
    assert driver == "550\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"


def leaves(value, at=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*at, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*at, 0))
    else:
        yield at


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, -1, 0, 1e-320, 10**400, "\x1b", [], {}, [None], True])
def test_any_wrong_value_is_read_or_is_a_user_error(record_run, value):
    sound = read_run(record_run("sound"))
    row = {"batch": 8, "images_per_s": 1.0, "latency_ms": {"p50": 1.0}}
    results = {"train": {"images_per_s": 1.0}, "inference": [row]}
    devices = [{"name": "V100", "power_w_mean": 1.0, "memory_peak_bytes": 1}]
    folder = record_run("odd", seed=1, results=results, telemetry={"devices": devices})
    original = (folder / "report.json").read_text()
    outcomes = set()
    for keys in leaves(json.loads(original)):
        (folder / "report.json").write_text(original)
        change(folder, *keys, value=value)
        try:
            odd = read_run(folder)
            combined = Combined.of(group_runs([sound, odd], ignored=()))
            json.dumps(combined_json(combined), allow_nan=False)
            combined_page(combined)
            compare_runs(sound, odd)
        except UserError as error:
            assert error.message.isprintable() and len(error.message) < 2000
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert "refused" in outcomes


def test_reports_are_found_below_a_folder(record_run, tmp_path):
    record_run("b/inner")
    record_run("a")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_reports(tmp_path)]
    assert found == ["a/report.json", "b/inner/report.json"]
    with pytest.raises(WorkspaceError, match=r"holds no report.json"):
        find_reports(empty(tmp_path))
    with pytest.raises(WorkspaceError, match=r"cannot list .*: No such file or directory"):
        find_reports(tmp_path / "none")


def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder
