"""The doctor's look at NVIDIA Apex.

The doctor's look at the data set, in processes of their own: a network disk can hang.

The doctor's checks in their order, each one guarded: whatever goes wrong is a line, no crash.

What needs torch, DALI or a disk that may hang runs in a process of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_classification.config.catalogue import load_catalogue
from image_classification.core.errors import UserError
from image_classification.core.host import (
    container_kind,
    image_text,
    mount_of,
    read_cgroup,
    read_mounts,
)
from image_classification.core.types import DevicesFound
from image_classification.doctor import (
    collectives as probe_collectives,
)
from image_classification.doctor import data_set as probe_data_set
from image_classification.doctor import (
    disk as probe_disk,
)
from image_classification.doctor import (
    gpu as probe_driver,
)
from image_classification.doctor import (
    gpu as probe_gpu,
)
from image_classification.doctor import (
    host as probe_clock,
)
from image_classification.doctor import (
    host as probe_container,
)
from image_classification.doctor import (
    host as probe_cpu,
)
from image_classification.doctor import (
    host as probe_limits,
)
from image_classification.doctor import (
    host as probe_memory,
)
from image_classification.doctor import software as probe_dali
from image_classification.doctor import software as probe_software
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    skipped,
    warn,
)
from image_classification.doctor.probe import (
    Call,
    IsolatedError,
    call,
    call_together,
    one_line,
)
from image_classification.doctor.requirements import OPEN_FILES_BASE, RunNeeds, platform_needs
from image_classification.engine.precision.apex import find_apex

_LIMIT_S = 60.0


def check_apex() -> Check:
    """Look for Apex, and where it could be used, import it in a process of its own."""
    apex, error = find_apex(), ""
    if apex is not None and apex.is_nvidia and apex.has_kernels:
        try:
            call("image_classification.doctor.software:import_apex", limit_s=_LIMIT_S)
        except IsolatedError as failed:
            error = str(failed)
    return probe_software.check_apex(apex, error)


_PROBE = "image_classification.doctor.data_set"
_DATA_LIMIT_S = 20.0


def data_set_checks(data: str | None, needs: RunNeeds | None) -> Iterator[Check]:
    """Yield data-set and data-sample. data: where the user says; None: the platform's own."""
    path = data or (needs.data_path if needs is not None else None)
    if path is None or path == "synthetic":
        why = "neither --data nor --platform given" if path is None else "synthetic data"
        yield skipped("data-set", why)
        return
    layout = "auto" if needs is None else needs.data_format
    classes = None if needs is None else needs.num_classes
    try:
        target = f"{_PROBE}:look"
        found: probe_data_set.Layout = call(target, path, layout, classes, limit_s=_DATA_LIMIT_S)
    except IsolatedError as error:
        yield _data_failure("data-set", path, error)
        return
    yield probe_data_set.check_layout(found)
    # Shards are indexed whole; the validation split is the small one.
    is_folder = found.formats["train"] == "folder"
    split = "train" if is_folder or "val" not in found.formats else "val"
    try:
        target = f"{_PROBE}:sample"
        sampled = call(target, found.root, split, found.formats[split], limit_s=_DATA_LIMIT_S)
    except IsolatedError as error:
        if error.is_late and not is_folder:
            later = "a run indexes the shards at its start and takes as long; later runs do not"
            yield warn("data-sample", f"not indexed within {_DATA_LIMIT_S:g} s", later)
        else:
            yield _data_failure("data-sample", found.root, error)
        return
    yield probe_data_set.check_sample(sampled, found.root)


def _data_failure(name: str, path: str, error: IsolatedError) -> Check:
    if error.is_late:
        found = f"{path} did not answer within {_DATA_LIMIT_S:g} s"
        return fail(name, found, "check the disk or its mount (df, ls)")
    found, _, remedy = str(error).partition(": ")
    if not error.is_user_error or not remedy:
        return fail(name, f"{path}: {error}", "check the disk, its mount and its permissions")
    return fail(name, found, remedy)


_PACKAGE = "image_classification"
_COLLECTIVE_LIMIT_S = 20.0
_DISK_LIMIT_S = 20.0
_GLOO_PROCESSES = 2
_REPORT_IT = "a fault of the doctor, or of a file of the system it read: please report it"


@dataclass(frozen=True)
class Asked:
    """What the doctor was asked. platform, data: None where not given. workspace: the run's."""

    platform: str | None = None
    data: str | None = None
    workspace: Path = Path("runs")


@dataclass
class Checkup:
    """One visit; what an earlier check found out is here for the later ones."""

    asked: Asked
    start: probe_clock.Instant = field(default_factory=probe_clock.Instant.now)
    driver: probe_driver.Driver = field(default_factory=probe_driver.Driver)
    gpus: probe_gpu.TorchGpus | None = None
    needs: RunNeeds | None = None
    largest_state: tuple[str, int] | None = None

    def run(self) -> Iterator[Check]:
        """Yield the checks as they are made."""
        steps: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
            ("software", self.software),
            ("gpus", self.devices),
            ("platform", self.platform),
            ("dali", self.dali),
            ("gloo", self.gloo),
            ("nccl", self.nccl),
            ("memory", self.memory),
            ("limits", self.limits),
            ("cpus", self.processors),
            ("disk", self.disk),
            ("data-set", self.data_set),
            ("container", self.container),
            ("clock", self.clock),
        )
        for name, step in steps:
            yield from guarded(name, step)

    def software(self) -> Iterator[Check]:
        """Yield python, torch, torchvision, pillow, nvidia-ml-py, apex."""
        yield probe_software.check_python()
        try:
            versions = call(f"{_PACKAGE}.doctor.software:import_versions", limit_s=_LIMIT_S)
        except IsolatedError as error:
            yield fail("torch", f"cannot be imported: {error}", probe_software.import_remedy())
        else:
            yield probe_software.check_torch(versions)
            yield probe_software.check_torchvision(versions, probe_software.torchvision_wants())
            yield probe_software.check_pillow(versions)
        yield probe_software.check_nvml_package()
        yield check_apex()

    def devices(self) -> Iterator[Check]:
        """Yield driver, gpu-health, gpu-memory; look at torch's GPUs for the checks after."""
        platform = platform_settings(self.asked.platform)
        needs_gpu = platform.get("platform.device") == "cuda"
        self.driver = probe_driver.read_driver()  # before a CUDA context takes memory
        try:
            self.gpus = call(f"{_PACKAGE}.doctor.gpu:look", limit_s=_LIMIT_S)
        except IsolatedError as error:
            yield probe_driver.check_driver(self.driver, needs_gpu)
            yield from probe_driver.check_gpus(self.driver)
            remedy = "nvidia-smi and dmesg (Xid) tell of the GPU, python -c 'import torch' of torch"
            yield fail("gpus", f"torch could not look: {error}", remedy)
            return
        assert self.gpus is not None
        # GPUs of other makers answer to torch's CUDA interface without NVIDIA's driver.
        yield probe_driver.check_driver(self.driver, needs_gpu and not self.gpus.gpus)
        yield from probe_driver.check_gpus(self.driver)
        name = str(platform.get("platform.device_name", ""))
        count = platform.get("platform.num_devices", 1) if needs_gpu else None
        hint = ""
        if "V100" in name and probe_driver.too_new_for_volta(self.driver):
            hint = f"install driver 580, the last for V100, instead of {self.driver.version}"
        yield probe_gpu.check_devices(self.gpus, name, count, hint)
        yield probe_gpu.check_kernels(self.gpus)
        if self.gpus.cuda is not None and self.driver.version:
            yield probe_driver.check_driver_runs_cuda(
                "driver-cuda", _release(self.gpus.cuda), self.driver, self._has_run(), "torch"
            )

    def platform(self) -> Iterator[Check]:
        """Yield platform: its runs, resolved on the devices there are."""
        name = self.asked.platform
        if name is None:
            yield skipped("platform", "none given: nothing is compared with a run's needs")
            return
        device = str(platform_settings(name).get("platform.device"))
        found_here: DevicesFound | None = None
        if device == "cuda":
            found_here = self._found()
        elif device != "cpu":
            try:
                call(
                    f"{_PACKAGE}.devices.accelerator:get_accelerator",
                    device,
                    limit_s=_LIMIT_S,
                )
            except IsolatedError as error:
                remedy = "choose another platform: launch.py --list platforms"
                yield fail("platform", f"{name}: {error}", remedy)
                return
        try:
            self.needs = platform_needs(name, found_here, self.asked.data)
        except UserError as error:
            remedy = "python launch.py --list platforms shows the others"
            yield fail("platform", error.message, remedy)
            return
        needs = self.needs
        devices = f"{needs.num_devices} x {needs.device_name or needs.device}"
        found = f"{name}: {needs.num_runs} configurations on {devices}, {needs.backend}"
        if needs.refused:
            run, why = next(iter(needs.refused.items()))
            found += f"; {len(needs.refused)} more cannot run here ({run}: {why})"
            yield warn("platform", found, "choose one of those that can, or other devices")
        else:
            yield ok("platform", found)
        self.largest_state = call(
            f"{_PACKAGE}.models.size:largest_state_bytes",
            list(needs.states),
            limit_s=_LIMIT_S,
        )

    def dali(self) -> Iterator[Check]:
        """Yield dali, dali-cpu, dali-gpu and dali-cuda."""
        wheels = probe_dali.installed_wheels()
        needed = self.needs is not None and self.needs.is_on_dali
        installed = probe_dali.check_installed(wheels, needed)
        yield installed
        if not wheels:
            return
        decoded = None
        for name, on_gpu in (("dali-cpu", False), ("dali-gpu", True)):
            if on_gpu and not self._num_gpus:
                yield skipped(name, "no GPU to try it on")
                continue
            try:
                target = f"{_PACKAGE}.doctor.software:decode"
                result: probe_dali.Decoded = call(target, on_gpu, limit_s=_LIMIT_S)
            except IsolatedError as error:
                yield fail(name, f"DALI did not decode: {error}", probe_dali.decode_remedy(name))
                continue
            decoded = result
            yield probe_dali.check_decoded(name, result)
            if on_gpu and self.driver.version:
                yield probe_driver.check_driver_runs_cuda(
                    "dali-cuda", decoded.cuda, self.driver, True, "DALI"
                )

    def gloo(self) -> Iterator[Check]:
        """Yield gloo: two processes on the CPU."""
        yield self._collective("gloo", _GLOO_PROCESSES, "processes on the CPU")

    def nccl(self) -> Iterator[Check]:
        """Yield nccl: every GPU."""
        if self._num_gpus < 2:
            yield skipped("nccl", f"needs 2 GPUs or more, here: {self._num_gpus}")
            return
        yield self._collective("nccl", self._num_gpus, "GPUs")

    def memory(self) -> Iterator[Check]:
        """Yield shared-memory and memory."""
        needs = self.needs
        loader = None if needs is None else needs.loader_shm_bytes
        yield probe_memory.check_shared_memory(loader)
        least = None
        if needs is not None and self.largest_state is not None:
            least = needs.loader_shm_bytes
            # Weights, their gradients and the optimizer's values, where they are on the host.
            if needs.device == "cpu":
                least += 2 * needs.num_devices * self.largest_state[1]
        available = probe_memory.available_memory_bytes()
        yield probe_memory.check_memory(available, read_cgroup(), least or None)

    def limits(self) -> Iterator[Check]:
        """Yield open-files, locked-memory, stack, processes, core-files."""
        needs = self.needs
        cpus = len(probe_cpu.allowed_cpus())
        processes = 1 if needs is None else needs.num_devices
        limit_needs = probe_limits.LimitNeeds(
            open_files=OPEN_FILES_BASE if needs is None else needs.open_files,
            threads=2 * cpus + 8 * processes + (0 if needs is None else 2 * needs.loader_threads),
            has_gpus=self._num_gpus > 0,
        )
        yield from probe_limits.check_limits(
            probe_limits.read_soft_limits(),
            read_cgroup(),
            limit_needs,
            probe_limits.core_pattern(),
        )

    def processors(self) -> Iterator[Check]:
        """Yield cpus, numa, omp-threads, gpu-affinity."""
        needs = self.needs
        allowed = probe_cpu.allowed_cpus()
        cpu_needs = None
        if needs is not None:
            cpu_needs = probe_cpu.CpuNeeds(needs.num_devices, needs.loader_threads)
        present = os.cpu_count() or len(allowed)
        yield probe_cpu.check_cores(len(allowed), present, read_cgroup(), cpu_needs)
        yield probe_cpu.check_numa(probe_cpu.numa_nodes(), allowed)
        yield probe_cpu.check_omp_threads(
            os.environ,
            len(allowed),
            1 if needs is None else needs.num_devices,
            needs is not None and needs.device == "cpu",
        )
        if not self._num_gpus:
            yield skipped("gpu-affinity", "no GPU here")
            return
        count = self._num_gpus if needs is None else needs.num_devices
        modes = call(f"{_PACKAGE}.doctor.gpu:affinity_modes", count, limit_s=_LIMIT_S)
        yield probe_gpu.check_affinity(modes, "none" if needs is None else needs.gpu_affinity)

    def disk(self) -> Iterator[Check]:
        """Yield file-system, disk-space, disk-speed of the workspace."""
        workspace = self.asked.workspace
        folder = str(probe_disk.existing_folder(workspace))
        mounts = read_mounts()
        kind = container_kind(os.environ, mounts)
        mount = mount_of(Path(folder), mounts)
        yield probe_disk.check_file_system(folder, mount, in_container=bool(kind))
        try:
            target = f"{_PACKAGE}.doctor.disk:write_and_sync"
            written: probe_disk.Written = call(target, folder, limit_s=_DISK_LIMIT_S)
        except IsolatedError as error:
            remedy = "give a --workspace that can be written and has room"
            yield fail("disk-space", f"cannot write to {folder}: {error}", remedy)
            return
        name, size = self.largest_state or ("", None)
        kept = 1 if self.needs is None else self.needs.kept
        yield probe_disk.check_space(written, size, kept, name)
        yield probe_disk.check_speed(written, size)

    def data_set(self) -> Iterator[Check]:
        """Yield data-set and data-sample."""
        yield from data_set_checks(self.asked.data, self.needs)

    def container(self) -> Iterator[Check]:
        """Yield container, user, home."""
        mounts = read_mounts()
        kind = container_kind(os.environ, mounts)
        yield probe_container.check_container(kind, image_text(os.environ), mounts)
        yield probe_container.check_user(kind, os.getuid())
        yield probe_container.check_home(os.environ)

    def clock(self) -> list[Check]:
        """Return clock and clock-offset; the clocks are compared over the whole visit."""
        return probe_clock.check_clock(self.start, probe_clock.Instant.now())

    @property
    def _num_gpus(self) -> int:
        return 0 if self.gpus is None else len(self.gpus.gpus)

    def _has_run(self) -> bool:
        gpus = () if self.gpus is None else self.gpus.gpus
        return bool(gpus) and not any(gpu.error or gpu.lacks for gpu in gpus)

    def _found(self) -> DevicesFound | None:
        """Return the GPUs a run would be fitted to; None leaves the platform as published."""
        if self.gpus is None or not self.gpus.gpus:
            return None
        return DevicesFound(
            "cuda",
            tuple(gpu.name for gpu in self.gpus.gpus),
            tuple("{}.{}".format(*gpu.capability) for gpu in self.gpus.gpus),
        )

    def _collective(self, name: str, count: int, devices: str) -> Check:
        with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
            target = f"{_PACKAGE}.doctor.collectives:all_reduce"
            meeting = str(Path(folder) / "ranks")
            calls = [
                Call(target, (rank, count, name, meeting, _COLLECTIVE_LIMIT_S))
                for rank in range(count)
            ]
            try:
                measured = call_together(calls, 2 * _COLLECTIVE_LIMIT_S)
            except IsolatedError as error:
                found = f"{count} {devices}: {error}"
                return fail(name, found, probe_collectives.collective_remedy(name))
        return probe_collectives.check_collective(name, measured, devices)


def guarded(name: str, step: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield what ``step`` yields; an exception of it becomes a check ``name`` that failed."""
    try:
        yield from step()
    except Exception as error:
        yield fail(name, f"the check itself failed: {one_line(error)}", _REPORT_IT)


def platform_settings(platform: str | None) -> Mapping[str, Any]:
    """Return a platform's own settings by key, from the catalogue; none for None."""
    if platform is None:
        return {}
    block = load_catalogue().platforms[platform]
    return {key: setting.value for key, setting in block.settings.items()}


def _release(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)
