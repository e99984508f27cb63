"""The doctor's checks in order, and their runner.

Each check is a function that yields results. Whatever needs torch, DALI or a disk that may hang is
a probe: it runs in a child process, within the check's time limit. An exception in a check is one
failed result, and the next checks still run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from image_classification.config.catalogue import load_catalogue
from image_classification.core.errors import UserError
from image_classification.core.host import (
    container_kind,
    image_text,
    mount_of,
    read_cgroup,
    read_mounts,
)
from image_classification.core.program import command
from image_classification.core.types import DevicesFound
from image_classification.doctor import collectives, data_set, gpu, host, software
from image_classification.doctor.probe import ProbeError, Prober, call_together, one_line
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn
from image_classification.doctor.requirements import RunNeeds, largest_state, platform_needs


@dataclass(frozen=True)
class Options:
    """The doctor's options. platform, data: None if not given. workspace: of the run."""

    platform: str | None = None
    data: str | None = None
    workspace: Path = Path("runs")


@dataclass
class Context:
    """What checks share: the options, and what earlier checks found."""

    options: Options
    prober: Prober = field(default_factory=Prober)
    limit_s: float = 0.0
    start: host.Instant = field(default_factory=host.Instant.now)
    driver: gpu.Driver = field(default_factory=gpu.Driver)
    torch: gpu.TorchGpus | None = None
    needs: RunNeeds = field(default_factory=RunNeeds)
    largest_model: str = ""
    checkpoint_bytes: int | None = None

    def probe(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the child process, within the time limit of the current check."""
        return self.prober.call(function, *arguments, limit_s=self.limit_s)

    @property
    def num_gpus(self) -> int:
        """Number of GPUs that torch sees."""
        return 0 if self.torch is None else len(self.torch.gpus)

    @property
    def platform_settings(self) -> Mapping[str, Any]:
        """The platform's own settings by key; none without a platform."""
        if self.options.platform is None:
            return {}
        block = load_catalogue().platforms[self.options.platform]
        return {key: setting.value for key, setting in block.settings.items()}


CheckFunction = Callable[[Context], Iterable[CheckResult]]


@dataclass(frozen=True)
class Check:
    """limit_s: time limit of each of the check's probes."""

    name: str
    function: CheckFunction
    limit_s: float


CHECKS: list[Check] = []
"""All checks, in the order in which they run."""


def check(name: str, limit_s: float = 0.0) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the next check."""

    def register(function: CheckFunction) -> CheckFunction:
        CHECKS.append(Check(name, function, limit_s))
        return function

    return register


def run_checks(options: Options) -> Iterator[CheckResult]:
    """Yield the results of all checks as they are made."""
    context = Context(options)
    try:
        for each in CHECKS:
            yield from run_check(each, context)
    finally:
        context.prober.close()


def run_check(each: Check, context: Context) -> Iterator[CheckResult]:
    """Yield the results of one check; an exception becomes a failed result."""
    context.limit_s = each.limit_s
    try:
        yield from each.function(context)
    except Exception as error:
        remedy = "an error in the doctor, or in a system file that it read: please report it"
        yield fail(each.name, f"the check itself failed: {one_line(error)}", remedy)


@check("python")
def _python(context: Context) -> Iterator[CheckResult]:
    yield software.check_python()


@check("torch", limit_s=60)
def _torch(context: Context) -> Iterator[CheckResult]:
    """Yield torch, torchvision, pillow."""
    try:
        versions = context.probe(software.import_versions)
    except ProbeError as error:
        yield fail("torch", f"cannot be imported: {error}", software.TORCH_REMEDY)
        return
    yield software.check_torch(versions)
    yield software.check_torchvision(versions, software.torchvision_wants())
    yield ok("pillow", versions["pillow"])


@check("nvidia-ml-py")
def _nvml_package(context: Context) -> Iterator[CheckResult]:
    yield software.check_nvml_package()


@check("apex", limit_s=60)
def _apex(context: Context) -> Iterator[CheckResult]:
    try:
        apex = software.ApexState(**context.probe(software.import_apex))
    except ProbeError as error:
        apex = software.ApexState("Apex", error=str(error))
    yield software.check_apex(apex)


@check("gpus", limit_s=60)
def _gpus(context: Context) -> Iterator[CheckResult]:
    """Yield driver, gpu-health, gpu-memory, gpus, gpu-kernels, driver-cuda."""
    platform = context.platform_settings
    needs_gpu = platform.get("platform.device") == "cuda"
    driver = context.driver = gpu.read_driver()  # before a CUDA context uses memory
    error = ""
    try:
        found = context.probe(gpu.try_kernels)
        gpus = tuple(
            gpu.TorchGpu(**{**each, "capability": tuple(each["capability"])})
            for each in found["gpus"]
        )
        context.torch = gpu.TorchGpus(found["torch"], found["cuda"], gpus)
    except ProbeError as failed:
        error = str(failed)
    # Other makers' GPUs support torch's CUDA interface without NVIDIA's driver.
    yield gpu.check_driver(driver, needs_gpu and not context.num_gpus)
    yield from gpu.check_gpus(driver)
    torch = context.torch
    if torch is None:
        remedy = "see nvidia-smi and dmesg (Xid) for the GPU, python -c 'import torch' for torch"
        yield fail("gpus", f"torch cannot list them: {error}", remedy)
        return
    name = str(platform.get("platform.device_name", ""))
    count = platform.get("platform.num_devices", 1) if needs_gpu else None
    hint = ""
    if "V100" in name and gpu.too_new_for_volta(driver):
        hint = f"install driver 580, the last for V100, instead of {driver.version}"
    yield gpu.check_devices(torch, name, count, hint)
    yield gpu.check_kernels(torch)
    if torch.cuda is not None and driver.version:
        major, minor = (int(part) for part in f"{torch.cuda}.0".split(".")[:2])
        yield gpu.check_driver_runs_cuda(
            "driver-cuda", (major, minor), driver, torch.kernels_run, "torch"
        )


@check("platform", limit_s=60)
def _platform(context: Context) -> Iterator[CheckResult]:
    """Resolve the platform's runs on the devices found; later checks use what they need."""
    name = context.options.platform
    if name is None:
        yield skipped("platform", "none given: the needs of a run are not compared")
        return
    list_platforms = f"{command('launch')} --list platforms"
    device = str(context.platform_settings.get("platform.device"))
    if device not in ("cuda", "cpu"):
        try:
            context.probe(gpu.check_accelerator, device)
        except ProbeError as error:
            yield fail("platform", f"{name}: {error}", f"choose another one: {list_platforms}")
            return
    found = None  # as published
    if device == "cuda" and context.torch is not None and context.torch.gpus:
        gpus = context.torch.gpus
        capabilities = tuple("{}.{}".format(*each.capability) for each in gpus)
        found = DevicesFound("cuda", tuple(each.name for each in gpus), capabilities)
    try:
        needs = context.needs = platform_needs(name, found, context.options.data)
    except UserError as error:
        yield fail("platform", error.message, f"choose another one: {list_platforms}")
        return
    devices = f"{needs.num_devices} x {needs.device_name or needs.device}"
    text = f"{name}: {needs.num_runs} configurations on {devices}, {needs.backend}"
    if needs.refused:
        run, why = next(iter(needs.refused.items()))
        text += f"; {len(needs.refused)} more cannot run here ({run}: {why})"
        yield warn("platform", text, "choose one of those that can, or other devices")
    else:
        yield ok("platform", text)
    state = context.probe(largest_state, needs.states)
    context.largest_model, context.checkpoint_bytes = state


@check("dali", limit_s=60)
def _dali(context: Context) -> Iterator[CheckResult]:
    """Yield dali, dali-cpu, dali-gpu, dali-cuda."""
    wheels = software.installed_dali_wheels()
    yield software.check_dali_package(wheels, context.needs.is_on_dali)
    if not wheels:
        return
    for name, on_gpu in (("dali-cpu", False), ("dali-gpu", True)):
        if on_gpu and not context.num_gpus:
            yield skipped(name, "no GPU to decode on")
            continue
        try:
            decoded = software.Decoded(**context.probe(software.decode_with_dali, on_gpu))
        except ProbeError as error:
            yield fail(name, f"DALI did not decode: {error}", software.DALI_REMEDIES[name])
            continue
        yield software.check_decoded(name, decoded)
        if on_gpu and context.driver.version:
            major, minor = decoded.cuda
            yield gpu.check_driver_runs_cuda(
                "dali-cuda", (major, minor), context.driver, True, "DALI"
            )


@check("gloo", limit_s=90)
def _gloo(context: Context) -> Iterator[CheckResult]:
    yield _collective("gloo", 2, "processes on the CPU", context.limit_s)


@check("nccl", limit_s=90)
def _nccl(context: Context) -> Iterator[CheckResult]:
    if context.num_gpus < 2:
        yield skipped("nccl", f"needs 2 GPUs or more, here: {context.num_gpus}")
        return
    yield _collective("nccl", context.num_gpus, "GPUs", context.limit_s)


def _collective(name: str, count: int, devices: str, limit_s: float) -> CheckResult:
    with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
        arguments = [(rank, count, name, f"{folder}/store") for rank in range(count)]
        try:
            answers = call_together(collectives.all_reduce, arguments, limit_s)
        except ProbeError as error:
            return fail(name, f"{count} {devices}: {error}", collectives.REMEDIES[name])
    measured = [collectives.AllReduce(**answer) for answer in answers]
    return collectives.check_collective(name, measured, devices)


@check("shared-memory")
def _shared_memory(context: Context) -> Iterator[CheckResult]:
    yield host.check_shared_memory(context.needs.loader_shm_bytes)


@check("memory")
def _memory(context: Context) -> Iterator[CheckResult]:
    needs, needed_bytes = context.needs, 0
    if context.checkpoint_bytes is not None:
        needed_bytes = needs.loader_shm_bytes or 0
        # Weights, gradients and the optimizer's values, which a CPU platform has on the host.
        if needs.device == "cpu":
            needed_bytes += 2 * needs.num_devices * context.checkpoint_bytes
    available = psutil.virtual_memory().available
    yield host.check_memory(available, read_cgroup(), needed_bytes or None)


@check("limits")
def _limits(context: Context) -> Iterator[CheckResult]:
    """Yield open-files, locked-memory, stack, processes, core-files."""
    needs = context.needs
    num_cpus = len(os.sched_getaffinity(0))
    threads = 2 * num_cpus + 8 * needs.num_devices + 2 * needs.loader_threads
    yield from host.check_limits(
        host.read_soft_limits(),
        read_cgroup(),
        needs.open_files,
        threads,
        context.num_gpus > 0,
        host.core_pattern(),
    )


@check("cpus")
def _cpus(context: Context) -> Iterator[CheckResult]:
    """Yield cpus, numa, omp-threads."""
    needs, allowed = context.needs, os.sched_getaffinity(0)
    present = os.cpu_count() or len(allowed)
    loader_threads = needs.loader_threads if needs.platform else None
    yield host.check_cores(len(allowed), present, read_cgroup(), needs.num_devices, loader_threads)
    yield host.check_numa(host.numa_nodes(), allowed)
    computes_on_cpu = needs.device == "cpu"
    yield host.check_omp_threads(os.environ, len(allowed), needs.num_devices, computes_on_cpu)


@check("gpu-affinity", limit_s=60)
def _gpu_affinity(context: Context) -> Iterator[CheckResult]:
    if not context.num_gpus:
        yield skipped("gpu-affinity", "no GPU here")
        return
    needs = context.needs
    count = needs.num_devices if needs.platform else context.num_gpus
    errors = context.probe(gpu.try_affinity_modes, count)
    yield gpu.check_affinity(errors, needs.gpu_affinity)


@check("disk", limit_s=20)
def _disk(context: Context) -> Iterator[CheckResult]:
    """Yield file-system, disk-space, disk-speed of the workspace."""
    folder = str(host.existing_folder(context.options.workspace))
    mounts = read_mounts()
    kind = container_kind(os.environ, mounts)
    yield host.check_file_system(folder, mount_of(Path(folder), mounts), bool(kind))
    try:
        test = host.WriteTest(**context.probe(host.write_and_sync, folder))
    except ProbeError as error:
        remedy = "give a --workspace that is writable and has space"
        yield fail("disk-space", f"cannot write to {folder}: {error}", remedy)
        return
    size = context.checkpoint_bytes
    yield host.check_disk_space(test, size, context.needs.kept, context.largest_model)
    yield host.check_disk_speed(test, size)


@check("data-set", limit_s=20)
def _data_set(context: Context) -> Iterator[CheckResult]:
    """Yield data-set, data-sample."""
    needs = context.needs
    path = context.options.data or needs.data_path
    if path is None or path == "synthetic":
        why = "neither --data nor --platform given" if path is None else "synthetic data"
        yield skipped("data-set", why)
        return
    try:
        answer = context.probe(data_set.find_layout, path, needs.data_format, needs.num_classes)
    except ProbeError as error:
        yield _data_failure("data-set", path, error, context.limit_s)
        return
    layout = data_set.Layout(**answer)
    yield data_set.check_layout(layout)
    # Shards must be indexed whole, so the sample is of the smaller validation split.
    is_folder = layout.formats["train"] == "folder"
    split = "train" if is_folder or "val" not in layout.formats else "val"
    try:
        answer = context.probe(data_set.read_sample, layout.root, split, layout.formats[split])
    except ProbeError as error:
        if error.is_late and not is_folder:
            remedy = "a run indexes the shards at its start and takes as long; later runs do not"
            yield warn("data-sample", f"not indexed within {context.limit_s:g} s", remedy)
        else:
            yield _data_failure("data-sample", layout.root, error, context.limit_s)
        return
    yield data_set.check_sample(data_set.Sample(**answer), layout.root)


def _data_failure(name: str, path: str, error: ProbeError, limit_s: float) -> CheckResult:
    if error.is_late:
        found = f"{path} did not answer within {limit_s:g} s"
        return fail(name, found, "check the disk or its mount (df, ls)")
    found, _, remedy = str(error).partition(": ")
    if not error.is_user_error or not remedy:
        return fail(name, f"{path}: {error}", "check the disk, its mount and its permissions")
    return fail(name, found, remedy)


@check("container")
def _container(context: Context) -> Iterator[CheckResult]:
    """Yield container, user, home."""
    mounts = read_mounts()
    kind = container_kind(os.environ, mounts)
    yield host.check_container(kind, image_text(os.environ), mounts)
    yield host.check_user(kind, os.getuid())
    yield host.check_home(os.environ)


@check("clock")
def _clock(context: Context) -> Iterator[CheckResult]:
    """Yield clock and clock-offset, over the time since the first check."""
    yield from host.check_clock(context.start, host.Instant.now())
