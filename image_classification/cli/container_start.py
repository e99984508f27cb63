"""``python -m image_classification.cli.container_start COMMAND…``: the start-up checks.

The entrypoint calls it before it starts the command: versions, GPUs, data, shared memory. It takes
a tenth of a second, since torch's own words were written down when the image was built; the doctor
looks closer. A training run that would only break later is refused here, with exit code 2.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from image_classification import __version__
from image_classification.core.errors import EXIT_DONE, EXIT_USER, ConfigError
from image_classification.core.host import REVISION_VARIABLE, image_text
from image_classification.devices.architectures import build_lacks
from image_classification.doctor.gpu import (
    Driver,
    check_driver,
    check_driver_runs_cuda,
    counted,
    read_driver,
)
from image_classification.doctor.host import check_shared_memory
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
    """Versions in the image. cuda: the release torch is built for; None: a build without CUDA.

    arch_list: torch's architectures, as ``torch.cuda.get_arch_list()`` has them. torchvision, dali,
    apex: None where not there.
    """

    torch: str
    cuda: str | None
    arch_list: tuple[str, ...]
    torchvision: str | None
    dali: str | None
    apex: str | None


def read_build_facts(file: Path = BUILD_FILE) -> BuildFacts | None:
    """Return what ``file`` says; None where it is not there or not of this kind."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return BuildFacts(
            torch=content["torch"],
            cuda=content["cuda"],
            arch_list=tuple(content["arch_list"]),
            torchvision=content["torchvision"],
            dali=content["dali"],
            apex=content["apex"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


# Options with which launch.py only prints.
_PRINTS = ("-h", "--help", "--list", "--explain", "--emit")
_SWITCH = "IMAGE_CLASSIFICATION_CHECKS"


@dataclass(frozen=True)
class Place:
    """Where the greeting looks, as a container has it; tests have another."""

    data: Path = Path("/imagenet")
    runs: Path = Path("/workspace/runs")
    shared_memory: Path = Path("/dev/shm")
    cuda_compat: Path = Path("/usr/local/cuda/compat")
    build: BuildFacts | None = field(default_factory=read_build_facts)


def main(command: Sequence[str], place: Place | None = None) -> int:
    """Greet; return 0, or 2 where ``command`` is a run that this container cannot make."""
    place = place or Place()
    refuses = _refuses(os.environ)
    checks = look(command, place, read_driver())
    print(title(os.environ))
    for check in checks:
        print(result_line(check))
    print(flush=True)
    failed = next((check for check in checks if check.status == FAIL), None)
    if failed is None or not refuses or not is_run(command):
        return EXIT_DONE
    print(
        f"error: {failed.name}: {failed.found}; {failed.remedy} ({_SWITCH}=warn starts it anyway)",
        file=sys.stderr,
    )
    return EXIT_USER


def title(environ: Mapping[str, str]) -> str:
    """Return which image this is; as much as it says of itself."""
    name = image_text(environ) or f"image-classification {__version__}"
    revision = environ.get(REVISION_VARIABLE)
    return f"{name}, revision {revision[:12]}" if revision else name


def look(command: Sequence[str], place: Place, driver: Driver) -> list[CheckResult]:
    """Return what there is. A check fails only for what ``command`` would use."""
    checks = [_software(place.build), _gpus(driver)]
    if driver.version and place.build is not None:
        checks += _fit(place.build, driver, place.cuda_compat, on_cpu=is_on_cpu(command))
    return [*checks, _data(place.data), _runs(place.runs), _shared_memory(place.shared_memory)]


def is_run(command: Sequence[str]) -> bool:
    """Return whether ``command`` trains, benchmarks or evaluates, rather than print a text."""
    programs = [Path(word).name for word in command]
    pairs = list(itertools.pairwise(programs))
    launches = "launch.py" in programs or any(
        (program, "launch") in pairs for program in ("image_classification", "image-classification")
    )
    return launches and not any(word.partition("=")[0] in _PRINTS for word in command)


def is_on_cpu(command: Sequence[str]) -> bool:
    """Whether ``command`` says that it leaves the GPUs alone."""
    pairs = itertools.pairwise(command)
    return (
        "--platform=CPU" in command
        or ("--platform", "CPU") in pairs
        or any(word.endswith("platform.device=cpu") for word in command)
    )


def _refuses(environ: Mapping[str, str]) -> bool:
    said = environ.get(_SWITCH, "refuse")
    if said not in ("refuse", "warn"):
        raise ConfigError(f"{_SWITCH}={said}; set it to refuse (the default) or warn")
    return said == "refuse"


def _software(build: BuildFacts | None) -> CheckResult:
    name, python = "software", f"python {platform.python_version()}"
    if build is None:
        return warn(name, f"{python}; the image does not say what it holds", "run the doctor")
    parts = [python, f"torch {build.torch} ({_built_for(build)})"]
    for package, version in (
        ("torchvision", build.torchvision),
        ("DALI", build.dali),
        ("Apex", build.apex),
    ):
        parts.append(f"{package} {version}" if version else f"no {package}")
    return ok(name, ", ".join(parts))


def _built_for(build: BuildFacts) -> str:
    if build.cuda is None or not build.arch_list:
        return "no CUDA"
    first, last = build.arch_list[0], build.arch_list[-1]
    return f"CUDA {build.cuda}, {first} to {last}"


def _gpus(driver: Driver) -> CheckResult:
    name = "gpus"
    if driver.is_absent:
        return skipped(name, "no NVIDIA driver in here (docker run --gpus all brings it)")
    state = check_driver(driver, needs_gpu=True)
    if state.status == FAIL:
        # The runs on a CPU go on; the others meet launch.py's own error.
        return warn(name, state.found, state.remedy)
    lost = [gpu for gpu in driver.gpus if gpu.error]
    if lost:
        found = f"GPU {lost[0].index} {lost[0].name}: {lost[0].error}"
        return warn(name, found, "nvidia-smi -q and dmesg (Xid) on the host show more")
    if not driver.gpus:
        return skipped(name, f"none, driver {driver.version}")
    return ok(name, f"{counted(driver.gpus)}, driver {state.found}")


def _fit(build: BuildFacts, driver: Driver, compat: Path, on_cpu: bool) -> list[CheckResult]:
    """Hold the image against the GPUs and the driver; only what does not fit is a line."""
    checks = []
    known = (gpu for gpu in driver.gpus if gpu.capability != (0, 0))
    for gpu in {gpu.name: gpu for gpu in known}.values():
        lacking = build_lacks(gpu.capability, build.arch_list, gpu.name, build.torch)
        if lacking:
            found, _, remedy = lacking.rpartition("; ")
            remedy = f"{remedy} (scripts/docker/build.sh PLATFORM chooses it)"
            checks.append((warn if on_cpu else fail)("gpu-kernels", found, remedy))
    if build.cuda is not None and driver.gpus:
        major, minor = (int(part) for part in build.cuda.split(".")[:2])
        # NVIDIA's forward-compatibility package lets data centre GPUs run on an older driver; only
        # a kernel shows whether it does (the doctor runs one).
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
        remedy = "let the container's user read it, or choose the user: docker run --user UID:GID"
        return warn(name, f"{folder}: {error.strerror}", remedy)
    if not inside:
        return warn(name, f"{folder} is empty", f"docker run -v DIR:{folder}:ro with the data's")
    shown = ", ".join(inside[:4]) + (", …" if len(inside) > 4 else "")
    return ok(name, f"{folder}: {shown}")


def _runs(folder: Path) -> CheckResult:
    name, user = "runs", f"{os.getuid()}:{os.getgid()}"
    if os.access(folder, os.W_OK | os.X_OK):
        mounted = "" if os.path.ismount(folder) else ", not mounted: lost with the container"
        return ok(name, f"{folder} can be written{mounted}")
    return warn(
        name,
        f"{folder} cannot be written by user {user}",
        "make the folder on the host before docker run mounts it, and give its owner: "
        "docker run --user $(id -u):$(id -g)",
    )


def _shared_memory(folder: Path) -> CheckResult:
    check = check_shared_memory(None, folder)
    # Docker's default: loader processes and NCCL would run out of it in the middle of a run.
    if check.status == WARN:
        return fail(check.name, check.found, check.remedy)
    return check


if __name__ == "__main__":
    from image_classification.cli.command_line import exit_with_one_line

    sys.exit(exit_with_one_line(main, sys.argv[1:]))
