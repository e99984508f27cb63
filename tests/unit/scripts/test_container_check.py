"""scripts/container_check.sh with a stub of docker: its runs, comparisons and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "container_check.sh"
DOCKER_STUB = ROOT / "tests" / "support" / "docker_stub.py"
NVIDIA_SMI = "#!/bin/sh\necho 580.65.06\necho 580.65.06\n"

Image = Callable[..., Path]


class Bench:
    """A folder with stubs on PATH, images, and results below ``runs``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.command("docker", f'#!/bin/sh\nexec "{sys.executable}" "{DOCKER_STUB}" "$@"\n')
        self.command("nvidia-smi", "#!/bin/sh\nexit 9\n")

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        lines = (self.images / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def launches(self, mode: str) -> list[list[str]]:
        return [c for c in self.calls if "launch.py" in c and mode in c and "--explain" not in c]

    def start(self, *argv: object, results: str | None = "check") -> subprocess.Popen[str]:
        where = () if results is None else ("--results", self.folder / "runs" / results)
        environ = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "DOCKER_STUB": str(self.images),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder),
        }
        return subprocess.Popen(
            [str(part) for part in (SCRIPT, *where, *argv)],
            cwd=self.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, *argv: object, results: str | None = "check", code: int = 0) -> tuple[str, str]:
        process = self.start(*argv, results=results)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        assert not list(self.folder.glob("tmp.*"))
        return out, err

    def usage_error(self, *argv: object, **options: Any) -> str:
        out, err = self.check(*argv, code=2, **options)
        assert not out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    def summary(self, results: str = "check") -> dict[str, Any]:
        found = json.loads((self.folder / "runs" / results / "summary.json").read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def image(bench: Bench, record_run: Callable[..., Path], run_results: Any) -> Image:
    """Make an image whose runs leave reports with the given speeds and accuracy."""

    def make(name: str, speed: float = 100.0, top1: float = 97.0) -> Path:
        options: dict[str, Any] = {"platform": "CPU", "device": "cpu", "recipe": None}
        options["environment"] = {"container": f"docker, image-classification 0.1.0 on {name}"}
        latencies = {key: 1000 / speed for key in ("mean", "p50", "p90", "p95", "p99")}
        row = {"batch": 1, "images_per_s": speed, "latency_ms": latencies}
        results = {
            "benchmark_training_short": {"train": {"images_per_s": speed}},
            "benchmark_inference": {"inference": [row]},
            "benchmark_data": {"data": {"images_per_s": speed}},
            "convergence": run_results(speed, top1),
        }
        for mode, found in results.items():
            record_run(f"images/{name}/{mode}", mode=mode, results=found, **options)
        return bench.images / name

    return make


def test_images_are_compared_with_the_first(bench, image):
    for name, speed in (("a", 100.0), ("b", 97.0), ("c", 110.0)):
        image(name, speed)
    out, _ = bench.check("a", "b", "c")
    assert out.count("No figure of 3 runs regressed.") == 2
    assert "== a -> b" in out
    assert "== a -> c" in out
    assert out.index("Environments differ") < out.index("== a -> c")
    summary = bench.summary()
    assert summary["outcome"] == "held"
    assert [(i["image"], i["id"]) for i in summary["images"]] == [(n, f"sha256:{n}") for n in "abc"]
    assert [run["exit"] for run in summary["runs"]] == [0] * 9
    assert "outcome  held" in (bench.folder / "runs/check/summary.txt").read_text()
    kept = (bench.folder / "runs/check/comparison.txt").read_text()
    assert "== a -> b" in kept
    assert "banner" not in kept
    # The newest image makes the comparison.
    (compared, _) = (call for call in bench.calls if "compare" in call)
    assert compared[compared.index("python") - 1] == "c"


def test_slower_image_is_a_regression(bench, image):
    image("a")
    image("b", speed=90.0)
    out, _ = bench.check("a", "b", code=4)
    assert "-10.0 %, worse by more than 5 %" in out
    assert bench.summary()["outcome"] == "regressed"
    bench.check("--threshold-throughput", 11, "--threshold-latency", 12, "a", "b", results="wide")


def test_top1_threshold(bench, image):
    image("a", top1=97.0)
    image("b", top1=96.0)
    image("c", top1=95.0)
    bench.check("a", "b")
    out, _ = bench.check("a", "c", code=4, results="worse")
    assert "top-1: -2.00 points (± 0.12, " in out and "worse by more than 1.5 points" in out


def test_failed_run(bench, image):
    image("a")
    shutil.rmtree(image("b", speed=50.0) / "benchmark_inference")
    out, err = bench.check("a", "b", code=1)
    log = bench.folder / "runs/check/b/benchmark_inference.log"
    line = "this image has no results of benchmark_inference"
    failure = f"failed: b, benchmark_inference: exit 3, {line}; see {log}"
    assert failure in err
    assert log.read_text() == f"banner\n{line}\n"
    assert "training speed: -50.0 %" in out
    assert bench.summary()["outcome"] == "failed"


def test_image_without_a_completed_run(bench, image):
    image("a")
    (bench.images / "b").mkdir()
    out, err = bench.check("a", "b", code=1)
    assert err.count("failed: b, ") == 3
    assert "not compared: one of them has no completed run" in out


def test_single_image_is_compared_with_the_latest_earlier_check(bench, image):
    image("a", speed=100.0)
    image("b", speed=80.0)
    out, _ = bench.check("a", results="1")
    assert bench.summary("1")["outcome"] == "recorded"
    assert "no earlier check with the same settings next to" in out
    assert "training speed" in out
    first = bench.folder / "runs/1/summary.txt"
    first.write_text(first.read_text().replace("date     20", "date     19"))
    # A check with other settings or with a failed run is not compared with.
    bench.check("--repeat", 2, "b", results="2")
    shutil.rmtree(image("failing", speed=200.0) / "convergence")
    bench.check("failing", results="3", code=1)
    out, _ = bench.check("b", results="4", code=4)
    assert f"== {bench.folder}/runs/1/a -> b" in out
    assert "training speed: -20.0 %" in out


def test_repeated_runs_alternate_and_medians_are_compared(bench, image):
    image("a")
    image("b")
    out, _ = bench.check("--repeat", 3, "a", "b")
    assert out.count("old: median of 3 runs (accuracy: mean)") == 3
    runs = [(run["folder"], run["run"]) for run in bench.summary()["runs"]]
    assert len(runs) == 18
    assert runs[2:4] == [("a", "convergence-1"), ("b", "benchmark_training_short-1")]


def test_container_options(bench, image):
    image("a")
    data = bench.folder / "image net"
    data.mkdir()
    bench.check("--model", "resnet34", "--precision", "FP32", "--data", data, "a")
    (call,) = bench.launches("benchmark_data")
    joined = " ".join(call)
    user = f"--user {os.getuid()}:{os.getgid()}"
    for flags in ("--rm", user, "--read-only", "--tmpfs /tmp:exec", "--ipc=host"):
        assert f" {flags} " in joined
    assert " --ulimit memlock=-1 --ulimit stack=67108864 " in joined
    assert f" --volume {data}:/imagenet:ro " in joined
    assert f" --volume {bench.folder}/runs/check/a:/workspace/runs " in joined
    assert "--gpus" not in joined
    names = "--model resnet34 --precision FP32 --mode benchmark_data --platform CPU /imagenet"
    assert f"launch.py {names} " in joined
    (call,) = bench.launches("convergence")
    assert call[call.index("--platform") + 2] == "demo"


def test_engine_refuses_a_limit(bench, image):
    image("a")
    (bench.images / "refuses").write_text("memlock=-1")
    _, err = bench.check("a")
    assert "note: this engine refuses --ulimit memlock=-1 --ulimit stack=67108864" in err
    for call in bench.launches("convergence"):
        assert "memlock=-1" not in call
        assert "stack=67108864" in call


def test_host_with_gpus(bench, image):
    image("a")
    bench.command("nvidia-smi", NVIDIA_SMI)
    assert "this host has NVIDIA GPUs; give --platform" in bench.usage_error("a")
    bench.check("--platform", "H200", "a")
    (training,) = bench.launches("benchmark_training_short")
    assert training[training.index("--gpus") + 1] == "all"
    assert training[training.index("--platform") + 1] == "H200"
    (demo,) = bench.launches("convergence")
    assert " --platform CPU --set platform.device=cuda " in " ".join(demo)
    assert bench.summary()["driver"] == "580.65.06"
    bench.check("--platform", "CPU", "a", results="cpu")
    assert "--gpus" not in bench.launches("convergence")[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_the_container(bench, image, number):
    (image("a") / "waits").touch()
    process = bench.start("a")
    log = bench.folder / "runs/check/a/benchmark_training_short.log"
    for _ in range(200):
        if log.exists() and log.read_text():
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, out + err
    assert "interrupted: stopping the running container" in err
    stopped = [call for call in bench.calls if call[0] == "stop"]
    assert len(stopped) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(stopped[0][-1]), 0)
    assert bench.summary()["outcome"] == "interrupted"
    assert not list(bench.folder.glob("tmp.*"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no image given"),
        (["none"], "there is no image none here; docker pull it, or build it"),
        (["a", "a"], "a is given twice"),
        (["--fast", "a"], "there is no option --fast"),
        (["a", "--repeat"], "--repeat needs a value"),
        (["--repeat", "0", "a"], "--repeat 0 is not a number from 1 to 99"),
        (["--threshold-top1", "x", "a"], "--threshold-top1 x is not a number of 0 or more"),
        (["--data", "/no/such", "a"], "--data /no/such is not a folder"),
        (["--model", 'a"b', "a"], "are not valid names"),
        (["--model", "nothing", "a"], "a cannot run .*: there is no model 'nothing'"),
    ],
)
def test_usage_errors(bench, image, argv, words):
    image("a")
    error = bench.usage_error(*argv)
    assert pytest.raises(AssertionError, match=words).matches(AssertionError(error)), error


def test_results_folder_must_be_empty(bench, image):
    image("a")
    bench.check("a")
    assert "give another folder with --results" in bench.usage_error("a")


def test_no_engine(bench, image):
    image("a")
    bench.command("docker", "#!/bin/sh\nexit 1\n")
    assert bench.usage_error("a").startswith("no docker engine answers; start it")


def test_help(bench):
    out, _ = bench.check("--help", results=None)
    assert "--quick" in out
    assert "Exit 0: no regression, or nothing to compare with; 4: a figure regressed" in out
    assert "set -uo" not in out
