"""The checks that the image's entrypoint makes before it starts a command.

``python -m image_classification.cli.container_start COMMAND…`` prints versions, GPUs, data and
shared memory, and ends with exit code 2 if COMMAND is a run that would fail later. It takes 0.1 s
without torch, whose facts were recorded when the image was built; the doctor checks more.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from image_classification import __version__
from image_classification.core.errors import EXIT_DONE, EXIT_USER, ConfigError
from image_classification.core.host import REVISION_VARIABLE, image_text
from image_classification.devices.capabilities import build_lacks
from image_classification.doctor.gpu import (
    Driver,
    check_driver,
    check_driver_runs_cuda,
    counted,
    read_driver,
)
from image_classification.doctor.host import judge_shared_memory
from image_classification.doctor.report import (
    FAIL,
    WARN,
    CheckResult,
    fail,
    ok,
    result_line,
    skipped,
    warn,
)

BUILD_FILE = Path("/opt/image-classification/build.json")


@dataclass(frozen=True)
class BuildFacts:
    """Package versions in the image, None if not installed.

    cuda: the CUDA version of torch's build; None without CUDA. arch_list: that of
    ``torch.cuda.get_arch_list()``.
    """

    torch: str
    cuda: str | None
    arch_list: tuple[str, ...]
    torchvision: str | None
    dali: str | None
    apex: str | None


def read_build_facts(file: Path = BUILD_FILE) -> BuildFacts | None:
    """Return the content of ``file``, written by docker/record_build.py; None if not valid."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        facts = {f.name: content[f.name] for f in fields(BuildFacts)}
        return BuildFacts(**{**facts, "arch_list": tuple(facts["arch_list"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


# Options with which launch only prints something.
_PRINT_OPTIONS = ("-h", "--help", "--list", "--explain", "--emit")
_SWITCH = "IMAGE_CLASSIFICATION_CHECKS"


@dataclass(frozen=True)
class Paths:
    """The paths in the container that are checked, and the image's build facts."""

    data: Path = Path("/imagenet")
    runs: Path = Path("/workspace/runs")
    shared_memory: Path = Path("/dev/shm")
    cuda_compat: Path = Path("/usr/local/cuda/compat")
    build: BuildFacts | None = field(default_factory=read_build_facts)


def main(command: Sequence[str], paths: Paths | None = None) -> int:
    """Print the checks; return 0, or 2 if ``command`` is a run and a check failed."""
    reaction = os.environ.get(_SWITCH, "refuse")
    if reaction not in ("refuse", "warn"):
        raise ConfigError(f"{_SWITCH}={reaction}; set it to refuse (the default) or warn")
    checks = run_checks(command, paths or Paths(), read_driver())
    print(title(os.environ), *map(result_line, checks), "", sep="\n", flush=True)
    failed = next((check for check in checks if check.status == FAIL), None)
    if failed is None or reaction == "warn" or not is_run(command):
        return EXIT_DONE
    print(
        f"error: {failed.name}: {failed.found}; {failed.remedy} ({_SWITCH}=warn starts it anyway)",
        file=sys.stderr,
    )
    return EXIT_USER


def title(environ: Mapping[str, str]) -> str:
    """Return the image's name, version, base and revision, as far as known."""
    name = image_text(environ) or f"image-classification {__version__}"
    revision = environ.get(REVISION_VARIABLE)
    return f"{name}, revision {revision[:12]}" if revision else name


def run_checks(command: Sequence[str], paths: Paths, driver: Driver) -> list[CheckResult]:
    """Return the results. A check only fails for something that ``command`` would use."""
    checks = [_software(paths.build), _gpus(driver)]
    if driver.version and paths.build is not None:
        checks += _kernels(paths.build, driver, paths.cuda_compat, on_cpu=is_on_cpu(command))
    memory = judge_shared_memory(None, paths.shared_memory)
    # With Docker's default size, loader processes and NCCL would fail during the run.
    if memory.status == WARN:
        memory = fail(memory.name, memory.found, memory.remedy)
    return [*checks, _data(paths.data), _runs(paths.runs), memory]


def is_run(command: Sequence[str]) -> bool:
    """Return whether ``command`` trains, benchmarks or evaluates, rather than print a text."""
    programs = [Path(word).name for word in command]
    launches = "launch.py" in programs or any(
        program in ("image_classification", "image-classification") and verb == "launch"
        for program, verb in itertools.pairwise(programs)
    )
    return launches and not any(word.partition("=")[0] in _PRINT_OPTIONS for word in command)


def is_on_cpu(command: Sequence[str]) -> bool:
    """Return whether the arguments of ``command`` select the CPU."""
    pairs = itertools.pairwise(command)
    return (
        "--platform=CPU" in command
        or ("--platform", "CPU") in pairs
        or any(word.endswith("platform.device=cpu") for word in command)
    )


def _software(build: BuildFacts | None) -> CheckResult:
    name, python = "software", f"python {platform.python_version()}"
    if build is None:
        found = f"{python}; other versions are unknown: no {BUILD_FILE}"
        return warn(name, found, "run the doctor")
    cuda = "no CUDA"
    if build.cuda is not None and build.arch_list:
        cuda = f"CUDA {build.cuda}, {build.arch_list[0]} to {build.arch_list[-1]}"
    parts = [python, f"torch {build.torch} ({cuda})"]
    others = {"torchvision": build.torchvision, "DALI": build.dali, "Apex": build.apex}
    for package, version in others.items():
        parts.append(f"{package} {version}" if version else f"no {package}")
    return ok(name, ", ".join(parts))


def _gpus(driver: Driver) -> CheckResult:
    name = "gpus"
    if driver.is_absent:
        return skipped(name, "no NVIDIA driver in this container (docker run --gpus all adds it)")
    state = check_driver(driver, needs_gpu=True)
    if state.status == FAIL:
        # Runs on the CPU still work; for others, launch reports the error itself.
        return warn(name, state.found, state.remedy)
    lost = [gpu for gpu in driver.gpus if gpu.error]
    if lost:
        found = f"GPU {lost[0].index} {lost[0].name}: {lost[0].error}"
        return warn(name, found, "nvidia-smi -q and dmesg (Xid) on the host show more")
    if not driver.gpus:
        return skipped(name, f"none, driver {driver.version}")
    return ok(name, f"{counted(driver.gpus)}, driver {state.found}")


def _kernels(build: BuildFacts, driver: Driver, compat: Path, on_cpu: bool) -> list[CheckResult]:
    """Return problems of torch's build with these GPUs and this driver."""
    checks = []
    known = (gpu for gpu in driver.gpus if gpu.capability != (0, 0))
    for gpu in {gpu.name: gpu for gpu in known}.values():
        lacking = build_lacks(gpu.capability, build.arch_list, gpu.name, build.torch)
        if lacking:
            found, _, remedy = lacking.rpartition("; ")
            remedy = f"{remedy} (scripts/docker/build.sh PLATFORM selects it)"
            checks.append((warn if on_cpu else fail)("gpu-kernels", found, remedy))
    if build.cuda is not None and driver.gpus:
        major, minor = (int(part) for part in build.cuda.split(".")[:2])
        # With NVIDIA's forward-compatibility package, data center GPUs may work with an older
        # driver; the doctor finds out by running a kernel.
        check = check_driver_runs_cuda("driver-cuda", (major, minor), driver, False, "torch")
        if check.status == FAIL and (on_cpu or compat.is_dir()):
            check = warn(check.name, check.found, check.remedy)
        if check.status in (WARN, FAIL):
            checks.append(check)
    return checks


def _data(folder: Path) -> CheckResult:
    name = "data"
    if not folder.is_dir():
        return skipped(name, f"{folder} is not mounted (docker run -v DIR:{folder}:ro)")
    try:
        inside = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        remedy = "make it readable for the user, or select another: docker run --user UID:GID"
        return warn(name, f"{folder}: {error.strerror}", remedy)
    if not inside:
        return warn(name, f"{folder} is empty", f"mount the data: docker run -v DIR:{folder}:ro")
    shown = ", ".join(inside[:4]) + (", …" if len(inside) > 4 else "")
    return ok(name, f"{folder}: {shown}")


def _runs(folder: Path) -> CheckResult:
    name = "runs"
    if not os.access(folder, os.W_OK | os.X_OK):
        return warn(
            name,
            f"{folder} is not writable for user {os.getuid()}:{os.getgid()}",
            "create the folder on the host before docker run mounts it, and pass its owner: "
            "docker run --user $(id -u):$(id -g)",
        )
    if os.path.ismount(folder):
        return ok(name, f"{folder} is writable")
    return ok(name, f"{folder} is writable, but not mounted: its files are lost with the container")


if __name__ == "__main__":
    from image_classification.cli.command_line import exit_with_one_line

    sys.exit(exit_with_one_line(main, sys.argv[1:]))
