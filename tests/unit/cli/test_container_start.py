import os
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.cli.container_start import (
    BuildFacts,
    Place,
    is_on_cpu,
    is_run,
    look,
    main,
    title,
)
from image_classification.core.errors import ConfigError
from image_classification.doctor import host as probe_memory
from image_classification.doctor.gpu import Driver, GpuState

RUN = ["python", "/workspace/launch.py", "--model", "resnet50", "--platform", "DGX1V"]
CU128 = BuildFacts(
    "2.10.0+cu128", "12.8", ("sm_70", "sm_75", "sm_90", "sm_120"), "0.25.0", "2.4.0", None
)
CU130 = BuildFacts(
    "2.14.0", "13.4", ("sm_75", "sm_90", "sm_120", "compute_120"), "0.29.0", "2.4.0", "0.1"
)
NO_DRIVER = Driver(error="NVML Shared Library Not Found", error_kind="NVMLError_LibraryNotFound")


def driver(name: str, capability: tuple[int, int], version: str = "580.65.06") -> Driver:
    gpu = GpuState(0, name, 16 * 2**30, 16 * 2**30, capability=capability)
    return Driver(version, (13, 0), (gpu, gpu))


V100 = driver("Tesla V100-SXM2-16GB", (7, 0))
H100 = driver("NVIDIA H100 80GB HBM3", (9, 0))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("imagenet", "runs", "shm"):
        (tmp_path / name).mkdir()
    return Place(
        tmp_path / "imagenet", tmp_path / "runs", tmp_path / "shm", tmp_path / "compat", CU128
    )


def by_name(command: list[str], place: Place, found: Driver) -> dict[str, tuple[str, str, str]]:
    return {c.name: (c.status, c.found, c.remedy) for c in look(command, place, found)}


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (RUN, True),
        (["torchrun", "--nproc-per-node=2", "launch.py", "--model", "resnet50"], True),
        ([*RUN, "--explain"], False),
        ([*RUN, "--emit=slurm"], False),
        (["python", "-m", "image_classification", "launch", "--model", "resnet50"], True),
        (["image-classification", "launch", "--model", "resnet50"], True),
        (["image-classification", "report", "plots", "launch"], False),
        (["python", "/workspace/launch.py", "--help"], False),
        (["python", "/workspace/launch.py", "--list", "runs"], False),
        (["python", "-m", "image_classification", "doctor"], False),
        (["bash"], False),
        ([], False),
    ],
)
def test_what_is_a_run(command: list[str], runs: bool) -> None:
    assert is_run(command) is runs


def test_what_leaves_the_gpus_alone() -> None:
    assert is_on_cpu(["launch.py", "--platform", "CPU"])
    assert is_on_cpu(["launch.py", "--platform=CPU"])
    assert is_on_cpu([*RUN, "--set", "platform.device=cpu"])
    assert not is_on_cpu(RUN)
    assert not is_on_cpu(["launch.py", "CPU"])


def test_the_title_says_what_the_image_says() -> None:
    environ = {
        "IMAGE_CLASSIFICATION_IMAGE": "image-classification 1.2.3",
        "IMAGE_CLASSIFICATION_REVISION": "0123456789abcdef0123",
        "IMAGE_CLASSIFICATION_BASE": "python:3.11-slim-bookworm",
    }
    assert title(environ) == (
        "image-classification 1.2.3 on python:3.11-slim-bookworm, revision 0123456789ab"
    )
    assert title({}).startswith("image-classification ")


def test_a_gpu_the_image_has_kernels_for(place: Place) -> None:
    checks = by_name(RUN, place, H100)
    assert checks["gpus"][:2] == (
        "ok",
        "2 x NVIDIA H100 80GB HBM3, driver 580.65.06, runs up to CUDA 13.0 by itself",
    )
    assert not {"gpu-kernels", "driver-cuda"} & set(checks)
    assert checks["software"][0] == "ok"
    for part in ("torch 2.10.0+cu128 (CUDA 12.8, sm_70 to sm_120)", "DALI 2.4.0", "no Apex"):
        assert part in checks["software"][1]


def test_a_gpu_the_image_has_no_kernels_for(place: Place) -> None:
    newer = Place(place.data, place.runs, place.shared_memory, place.cuda_compat, CU130)
    status, found, remedy = by_name(RUN, newer, V100)["gpu-kernels"]
    assert status == "fail" and "V100" in found and "sm_70" in found
    assert "build.sh" in remedy
    # What leaves the GPUs alone is not kept from running.
    assert by_name(["launch.py", "--platform", "CPU"], newer, V100)["gpu-kernels"][0] == "warn"


def test_a_gpu_of_unknown_architecture_is_left_to_the_run(place: Place) -> None:
    assert "gpu-kernels" not in by_name(RUN, place, driver("BI-V100", (0, 0)))


def test_a_driver_too_old_for_the_image(place: Place) -> None:
    newer = Place(place.data, place.runs, place.shared_memory, place.cuda_compat, CU130)
    old = driver("NVIDIA H100 80GB HBM3", (9, 0), version="535.104.05")
    status, found, remedy = by_name(RUN, newer, old)["driver-cuda"]
    assert (status, "535.104.05" in found) == ("fail", True)
    assert "driver 580" in remedy
    # With NVIDIA's forward-compatibility package it may yet run: the doctor tries.
    newer.cuda_compat.mkdir()
    assert by_name(RUN, newer, old)["driver-cuda"][0] == "warn"


def test_no_driver_and_one_that_does_not_answer(place: Place) -> None:
    status, found, _ = by_name(RUN, place, NO_DRIVER)["gpus"]
    assert status == "skipped" and "--gpus all" in found
    broken = Driver(error="Driver Not Loaded", error_kind="NVMLError_DriverNotLoaded")
    status, _, remedy = by_name(RUN, place, broken)["gpus"]
    assert status == "warn" and "modprobe" in remedy
    lost = Driver("580.65.06", (13, 0), (GpuState(3, "H100", error="GPU is lost"),))
    assert by_name(RUN, place, lost)["gpus"][:2] == ("warn", "GPU 3 H100: GPU is lost")


def test_the_data_mounted_empty_and_absent(place: Place) -> None:
    assert by_name(RUN, place, NO_DRIVER)["data"][0] == "warn"
    for name in ("train", "val"):
        (place.data / name).mkdir()
    assert by_name(RUN, place, NO_DRIVER)["data"] == ("ok", f"{place.data}: train, val", "")
    elsewhere = Place(place.data / "none", place.runs, place.shared_memory, build=CU128)
    status, found, _ = by_name(RUN, elsewhere, NO_DRIVER)["data"]
    assert status == "skipped" and "-v DIR" in found


def test_runs_that_cannot_be_written(place: Place) -> None:
    assert by_name(RUN, place, NO_DRIVER)["runs"][0] == "ok"
    absent = Place(place.data, place.runs / "none", place.shared_memory, build=CU128)
    status, _, remedy = by_name(RUN, absent, NO_DRIVER)["runs"]
    assert status == "warn" and "--user" in remedy


def test_dockers_shared_memory_refuses_a_run_and_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = os.statvfs(place.shared_memory)
    monkeypatch.setattr(probe_memory, "DOCKER_DEFAULT_SHM_BYTES", status.f_blocks * status.f_frsize)
    assert main(RUN, place) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: shared-memory: ") and told.err.count("\n") == 1
    assert "--ipc=host" in told.err
    assert main(["bash"], place) == 0
    assert main([*RUN, "--explain"], place) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CHECKS", "warn")
    assert main(RUN, place) == 0
    assert "--ipc=host" in capsys.readouterr().out
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CHECKS", "no")
    with pytest.raises(ConfigError, match="refuse"):
        main(RUN, place)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from image_classification.cli.container_start import main; main(['bash']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
