import json
import math
import shutil
import subprocess

import pytest

from image_classification.core.errors import EXIT_DIVERGED, WorkspaceError
from image_classification.core.host import BASE_VARIABLE, IMAGE_VARIABLE, REVISION_VARIABLE
from image_classification.reporting.build_report import (
    build_report,
    complete,
    cpu_name,
    git_commit,
    host_environment,
)
from image_classification.reporting.published.verdict import newest
from image_classification.reporting.report import (
    DeviceTelemetry,
    Exit,
    Results,
    Telemetry,
    to_json,
    write_report,
)
from image_classification.reporting.run_folder import read_run


def fill_results(results):
    return to_json(complete(Results, results, "results"))


ENVIRONMENT = {"torch": "2.10.0", "devices": [{"name": "Tesla V100-SXM2-16GB"}]}


def test_every_key_that_was_not_measured_is_null():
    empty = {"top1": None, "top5": None, "loss": None, "images": None}
    assert fill_results({}) == {
        "train": {
            "images_per_s": None,
            "images_per_s_per_device": None,
            "step_time_s": {"p50": None, "p95": None, "p99": None, "histogram": None},
            "data_wait_fraction": None,
            "epochs": None,
            "steps": None,
            "images": None,
        },
        "validation": empty,
        "validation_ema": empty,
        "best": {"top1": None, "epoch": None, "step": None},
        "last": {"top1": None, "epoch": None, "step": None},
        "evaluated": {"checkpoint": None, "which": None, "epoch": None, "step": None},
        "evaluation": {
            "folder": None,
            "images": None,
            "mistakes": None,
            "worst_classes": None,
            "best_classes": None,
            "confused": None,
        },
        "validation_set": None,
        "weights_sha256": None,
        "target": {"stop_at_top1": None, "top1": None, "epoch": None, "step": None, "time_s": None},
        "starts": None,
        "inference": None,
        "data": {"images_per_s": None},
        "time_s": {"total": None, "train": None, "validation": None, "first_step": None},
    }


def test_given_values_are_kept_and_nan_becomes_null(results):
    results["validation"]["loss"] = math.nan
    filled = fill_results({**results, "inference": [{"batch": 8, "latency_ms": {"p99": 3.0}}]})
    assert filled["train"] == results["train"]
    assert filled["validation"]["loss"] is None
    assert filled["inference"] == [
        {
            "batch": 8,
            "images_per_s": None,
            "latency_ms": {"mean": None, "p50": None, "p90": None, "p95": None, "p99": 3.0},
        }
    ]


@pytest.mark.parametrize(
    ("results", "where"),
    [
        ({"trian": {}}, "results has no key trian"),
        ({"train": {"ips": 1.0}}, "results.train has no key ips"),
        ({"inference": [{"size": 1}]}, "results.inference has no key size"),
    ],
)
def test_an_unknown_key_is_a_value_error(results, where):
    with pytest.raises(ValueError, match=where):
        fill_results(results)


def test_the_report_of_a_finished_run(make_config, dgx1, results):
    report = build_report(make_config(), devices=dgx1, environment=ENVIRONMENT, results=results)
    assert report.schema_version == 1
    assert to_json(report.name) == {
        "model": "resnet50",
        "precision": "AMP",
        "mode": "convergence",
        "platform": "DGX1V",
        "recipe": "90e",
    }
    batch = report.config["batch"]
    assert (batch["per_device"], batch["global"], batch["accumulation"]) == (256, 2048, 1)
    assert report.environment.torch == "2.10.0"
    assert report.environment.dali is None
    assert report.environment.python == host_environment()["python"]
    assert {entry.verdict for entry in newest(report.published)} == {"reproduced"}
    assert report.telemetry == Telemetry(devices=None, energy_j=None, images_per_joule=None)
    assert report.exit == Exit(status="done", code=0, message="")


def test_telemetry_of_a_device_has_every_key(make_config, dgx1, results):
    report = build_report(
        make_config(),
        devices=dgx1,
        environment={},
        results=results,
        telemetry={"devices": [{"name": "V100", "power_w_mean": 250.0}], "source": "nvml"},
    )
    assert report.telemetry.devices is not None
    (device,) = report.telemetry.devices
    assert device == DeviceTelemetry(name="V100", power_w_mean=250.0, memory_peak_bytes=None)
    assert len(to_json(device)) == 13


def test_the_report_of_a_run_without_results(make_config, dgx1):
    report = build_report(
        make_config(),
        devices=dgx1,
        environment={},
        results=None,
        exit_code=EXIT_DIVERGED,
        exit_message="loss is not finite at step 7",
    )
    assert report.exit == Exit(status="diverged", code=3, message="loss is not finite at step 7")
    assert {entry.why for entry in report.published} == {"not measured"}
    with pytest.raises(ValueError, match="no status for exit code 9"):
        build_report(make_config(), devices=dgx1, environment={}, results=None, exit_code=9)


def test_a_written_report_is_read_back_equal(tmp_path, make_config, dgx1, results):
    results["validation"]["loss"] = math.nan
    report = build_report(make_config(), devices=dgx1, environment=ENVIRONMENT, results=results)
    path = write_report(report, tmp_path)
    assert path == tmp_path / "report.json"
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert list(content) == [
        "name",
        "config",
        "environment",
        "results",
        "telemetry",
        "published",
        "exit",
        "warnings",
        "schema_version",
        "classes",
    ]
    assert read_run(path).report == report
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_failed_write_keeps_the_old_report(tmp_path, make_config, dgx1, results, monkeypatch):
    report = build_report(make_config(), devices=dgx1, environment={}, results=results)
    path = write_report(report, tmp_path)
    before = path.read_bytes()

    def full_disk(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(WorkspaceError, match="no space left: free some"):
        write_report(report, tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ('{"schema_version": 2}', "has schema version 2, this release reads 1"),
        ("[]", "has schema version None"),
        ('{"schema_version": 1, "name": {}}', "is damaged: name.model is missing"),
    ],
)
def test_errors_of_files_that_are_not_reports(tmp_path, content, message):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WorkspaceError, match=message):
        read_run(path)


def test_cpu_name_has_model_and_usable_cores(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t: fpu\n")
    assert cpu_name(cpuinfo).startswith("AMD EPYC 9B14, ")
    assert cpu_name(cpuinfo).endswith(" usable cores")
    assert ", " in cpu_name(tmp_path / "absent")


def test_the_container_and_its_image_are_named(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", IMAGE_VARIABLE, BASE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert host_environment()["container"] == "kubernetes"
    monkeypatch.setenv(IMAGE_VARIABLE, "image-classification 0.1.0")
    monkeypatch.setenv(BASE_VARIABLE, "python:3.11-slim-bookworm")
    container = host_environment()["container"]
    assert container == "kubernetes, image-classification 0.1.0 on python:3.11-slim-bookworm"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_of_this_checkout_only(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    image = {REVISION_VARIABLE: "0123abcd"}
    assert git_commit(tmp_path, {}) is None
    assert git_commit(tmp_path, {REVISION_VARIABLE: ""}) is None
    assert git_commit(tmp_path, image) == "0123abcd"
    git("init")
    (tmp_path / "file").write_text("a")
    (tmp_path / "lib").mkdir()
    git("add", ".")
    git("commit", "-m", "first", "--no-gpg-sign")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path, image) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path, {}) == f"{commit}-dirty"
    assert git_commit(tmp_path / "lib", {}) is None


def test_the_title_names_the_configuration_and_what_it_ran_on(make_config, dgx1):
    def titled(**platform):
        environment = {"devices": list(dgx1.names), "cpu": "AMD EPYC, 2 usable cores"}
        config = make_config(platform=platform)
        report = build_report(config, devices=dgx1, environment=environment, results=None)
        return report.title, report.devices_text

    configured = "resnet50 AMP, configuration DGX1V, run on "
    v100s = "8 x Tesla V100-SXM2-16GB"
    assert titled() == (configured + v100s, v100s)
    assert titled(device="cpu", num_devices=1) == (
        f"{configured}2 CPU cores",
        "2 CPU cores (AMD EPYC)",
    )
    assert titled(device="cpu")[0] == f"{configured}8 processes on 2 CPU cores"


def test_each_warning_is_listed_once_and_many_are_cut(make_config, dgx1):
    def listed(*warnings):
        report = build_report(
            make_config(), devices=dgx1, environment={}, results=None, warnings=warnings
        )
        return report.warnings

    assert listed("a", "b", "a") == ("a", "b")
    many = listed(*map(str, range(30)))
    assert (len(many), many[-1]) == (21, "and 10 more in metrics.jsonl")
