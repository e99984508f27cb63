"""The doctor's checks in order, and their runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_classification.config.catalogue import load_catalogue
from image_classification.doctor import data_set, gpu, host, requirements, software
from image_classification.doctor.probe import Prober, one_line
from image_classification.doctor.report import CheckResult, fail


@dataclass
class Context:
    """What checks share: the doctor's options, and what earlier checks found.

    platform, data: None if not given. workspace: of the run.
    """

    platform: str | None = None
    data: str | None = None
    workspace: Path = Path("runs")
    prober: Prober = field(default_factory=Prober)
    limit_s: float = 60.0
    start_wall_s: float = field(default_factory=time.time)
    start_monotonic_s: float = field(default_factory=time.monotonic)
    driver: gpu.Driver = field(default_factory=gpu.Driver)
    torch: gpu.TorchGpus = field(default_factory=gpu.TorchGpus)
    needs: requirements.RunNeeds = field(default_factory=requirements.RunNeeds)
    largest_model: str = ""
    checkpoint_bytes: int | None = None

    def probe(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the child process, within the time limit of the current check."""
        return self.prober.call(function, *arguments, limit_s=self.limit_s)

    @property
    def num_gpus(self) -> int:
        """Number of GPUs that torch sees."""
        return len(self.torch.gpus)

    @property
    def platform_settings(self) -> Mapping[str, Any]:
        """The platform's own settings by key; none without a platform."""
        if self.platform is None:
            return {}
        block = load_catalogue().platforms[self.platform]
        return {key: value for key, (value, _) in block.settings.items()}


@dataclass(frozen=True)
class Check:
    """A generator function of results; limit_s: time limit of each of its probes.

    Whatever needs torch, DALI or a disk that may hang is a probe, which runs in a child process.
    """

    name: str
    function: Callable[[Context], Iterable[CheckResult]]
    limit_s: float = 0.0


CHECKS = (
    Check("python", software.check_python),
    Check("torch", software.check_torch, 60),
    Check("nvidia-ml-py", software.check_nvml_package),
    Check("apex", software.check_apex, 60),
    Check("gpus", gpu.check_gpus, 60),
    Check("platform", requirements.check_platform, 60),
    Check("dali", software.check_dali, 60),
    Check("gloo", software.check_gloo, 90),
    Check("nccl", software.check_nccl, 90),
    Check("shared-memory", host.check_shared_memory),
    Check("memory", host.check_memory),
    Check("limits", host.check_limits),
    Check("cpus", host.check_cpus),
    Check("gpu-affinity", gpu.check_affinity, 60),
    Check("disk", host.check_disk, 20),
    Check("data-set", data_set.check_data_set, 20),
    Check("container", host.check_container),
    Check("clock", host.check_clock),
)


def run_checks(context: Context) -> Iterator[CheckResult]:
    """Yield the results of all checks as they are made, and end the child process."""
    try:
        for check in CHECKS:
            yield from run_check(check, context)
    finally:
        context.prober.close()


def run_check(check: Check, context: Context) -> Iterator[CheckResult]:
    """Yield the results of one check; an exception becomes a failed result."""
    context.limit_s = check.limit_s
    try:
        yield from check.function(context)
    except Exception as error:
        remedy = "an error in the doctor, or in a system file that it read: please report it"
        yield fail(check.name, f"the check itself failed: {one_line(error)}", remedy)
