import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from image_classification.cli.container_start import (
    BuildFacts,
    Paths,
    is_on_cpu,
    is_run,
    main,
    read_build_facts,
    run_checks,
    title,
)
from image_classification.core.errors import ConfigError
from image_classification.doctor import host as probe_memory
from image_classification.doctor.gpu import Driver, GpuState

ROOT = Path(__file__).parents[3]
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
def paths(tmp_path: Path) -> Paths:
    for name in ("imagenet", "runs", "shm"):
        (tmp_path / name).mkdir()
    return Paths(
        tmp_path / "imagenet", tmp_path / "runs", tmp_path / "shm", tmp_path / "compat", CU128
    )


def by_name(command: list[str], paths: Paths, found: Driver) -> dict[str, tuple[str, str, str]]:
    return {c.name: (c.status, c.found, c.remedy) for c in run_checks(command, paths, found)}


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
def test_is_run(command: list[str], runs: bool) -> None:
    assert is_run(command) is runs


def test_is_on_cpu() -> None:
    assert is_on_cpu(["launch.py", "--platform", "CPU"])
    assert is_on_cpu(["launch.py", "--platform=CPU"])
    assert is_on_cpu([*RUN, "--set", "platform.device=cpu"])
    assert not is_on_cpu(RUN)
    assert not is_on_cpu(["launch.py", "CPU"])


def test_title() -> None:
    environ = {
        "IMAGE_CLASSIFICATION_IMAGE": "image-classification 1.2.3",
        "IMAGE_CLASSIFICATION_REVISION": "0123456789abcdef0123",
        "IMAGE_CLASSIFICATION_BASE": "python:3.11-slim-bookworm",
    }
    assert title(environ) == (
        "image-classification 1.2.3 on python:3.11-slim-bookworm, revision 0123456789ab"
    )
    assert title({}).startswith("image-classification ")


def test_a_gpu_that_torch_has_kernels_for(paths: Paths) -> None:
    checks = by_name(RUN, paths, H100)
    assert checks["gpus"][:2] == (
        "ok",
        "2 x NVIDIA H100 80GB HBM3, driver 580.65.06, runs up to CUDA 13.0 by itself",
    )
    assert not {"gpu-kernels", "driver-cuda"} & set(checks)
    assert checks["software"][0] == "ok"
    for part in ("torch 2.10.0+cu128 (CUDA 12.8, sm_70 to sm_120)", "DALI 2.4.0", "no Apex"):
        assert part in checks["software"][1]


def test_a_gpu_that_torch_has_no_kernels_for(paths: Paths) -> None:
    newer = Paths(paths.data, paths.runs, paths.shared_memory, paths.cuda_compat, CU130)
    status, found, remedy = by_name(RUN, newer, V100)["gpu-kernels"]
    assert status == "fail" and "V100" in found and "sm_70" in found
    assert "build.sh" in remedy
    assert by_name(["launch.py", "--platform", "CPU"], newer, V100)["gpu-kernels"][0] == "warn"


def test_a_gpu_of_unknown_architecture_is_not_checked(paths: Paths) -> None:
    assert "gpu-kernels" not in by_name(RUN, paths, driver("BI-V100", (0, 0)))


def test_a_driver_too_old_for_the_image(paths: Paths) -> None:
    newer = Paths(paths.data, paths.runs, paths.shared_memory, paths.cuda_compat, CU130)
    old = driver("NVIDIA H100 80GB HBM3", (9, 0), version="535.104.05")
    status, found, remedy = by_name(RUN, newer, old)["driver-cuda"]
    assert (status, "535.104.05" in found) == ("fail", True)
    assert "driver 580" in remedy
    newer.cuda_compat.mkdir()
    assert by_name(RUN, newer, old)["driver-cuda"][0] == "warn"


def test_no_driver_and_a_driver_that_fails(paths: Paths) -> None:
    status, found, _ = by_name(RUN, paths, NO_DRIVER)["gpus"]
    assert status == "skipped" and "--gpus all" in found
    broken = Driver(error="Driver Not Loaded", error_kind="NVMLError_DriverNotLoaded")
    status, _, remedy = by_name(RUN, paths, broken)["gpus"]
    assert status == "warn" and "modprobe" in remedy
    lost = Driver("580.65.06", (13, 0), (GpuState(3, "H100", error="GPU is lost"),))
    assert by_name(RUN, paths, lost)["gpus"][:2] == ("warn", "GPU 3 H100: GPU is lost")


def test_data_folder_empty_mounted_and_missing(paths: Paths) -> None:
    assert by_name(RUN, paths, NO_DRIVER)["data"][0] == "warn"
    for name in ("train", "val"):
        (paths.data / name).mkdir()
    assert by_name(RUN, paths, NO_DRIVER)["data"] == ("ok", f"{paths.data}: train, val", "")
    elsewhere = Paths(paths.data / "none", paths.runs, paths.shared_memory, build=CU128)
    status, found, _ = by_name(RUN, elsewhere, NO_DRIVER)["data"]
    assert status == "skipped" and "-v DIR" in found


def test_run_folder_writable_and_missing(paths: Paths) -> None:
    assert by_name(RUN, paths, NO_DRIVER)["runs"][0] == "ok"
    absent = Paths(paths.data, paths.runs / "none", paths.shared_memory, build=CU128)
    status, _, remedy = by_name(RUN, absent, NO_DRIVER)["runs"]
    assert status == "warn" and "--user" in remedy


def test_docker_default_shared_memory_refuses_runs_only(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = os.statvfs(paths.shared_memory)
    monkeypatch.setattr(probe_memory, "DOCKER_DEFAULT_SHM_BYTES", status.f_blocks * status.f_frsize)
    assert main(RUN, paths) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: shared-memory: ") and output.err.count("\n") == 1
    assert "--ipc=host" in output.err
    assert main(["bash"], paths) == 0
    assert main([*RUN, "--explain"], paths) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CHECKS", "warn")
    assert main(RUN, paths) == 0
    assert "--ipc=host" in capsys.readouterr().out
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CHECKS", "no")
    with pytest.raises(ConfigError, match="refuse"):
        main(RUN, paths)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from image_classification.cli.container_start import main; main(['bash']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def recorded() -> dict[str, object]:
    """Return the facts that docker/record_build.py records in this environment."""
    namespace: dict[str, object] = {"__name__": "record_build"}
    exec((ROOT / "docker" / "record_build.py").read_text(), namespace)
    facts = namespace["facts"]
    assert callable(facts)
    content = facts()
    assert isinstance(content, dict)
    return content


def test_recorded_build_facts_are_read(tmp_path: Path) -> None:
    content = recorded()
    file = tmp_path / "build.json"
    file.write_text(json.dumps(content))
    facts = read_build_facts(file)
    assert facts is not None
    assert (facts.torch, facts.cuda) == (torch.__version__, torch.version.cuda)
    # A build with CUDA lists its architectures without a GPU.
    assert bool(facts.arch_list) is (torch.version.cuda is not None)
    assert all(arch.startswith(("sm_", "compute_")) for arch in facts.arch_list)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"torch": "2.10.0", "arch_list": 7}'])
def test_an_invalid_file_of_build_facts_is_ignored(text: str, tmp_path: Path) -> None:
    file = tmp_path / "build.json"
    file.write_text(text)
    assert read_build_facts(file) is None
    assert read_build_facts(tmp_path / "absent") is None
