"""A stand-in for ``pynvml``: the real library's names and exceptions over GPUs that are made up."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pynvml as real


@dataclass(frozen=True)
class FakeGpu:
    """error: the real library's code that every question about this GPU is answered with."""

    name: str
    total_bytes: int = 16 * 2**30
    free_bytes: int = 16 * 2**30
    error: int | None = None
    capability: tuple[int, int] | None = (7, 0)  # None: the library does not tell


def fake_nvml(
    gpus: tuple[FakeGpu, ...] = (),
    driver: str = "570.124.06",
    cuda: int = 12080,
    init_error: int | None = None,
    query_error: int | None = None,
) -> ModuleType:
    """Return a module to be put in the place of ``pynvml``; ``calls`` lists init and shutdown."""
    module = ModuleType("pynvml")
    calls: list[str] = []

    def init() -> None:
        if init_error is not None:
            raise real.NVMLError(init_error)
        calls.append("init")

    def answer(value: object, error: int | None) -> object:
        if error is not None:
            raise real.NVMLError(error)
        return value

    def memory(gpu: FakeGpu) -> object:
        return answer(SimpleNamespace(total=gpu.total_bytes, free=gpu.free_bytes), gpu.error)

    def capability(gpu: FakeGpu) -> object:
        error = real.NVML_ERROR_FUNCTION_NOT_FOUND if gpu.capability is None else None
        return answer(gpu.capability, error)

    vars(module).update(
        {name: kind for name, kind in vars(real).items() if name.startswith("NVMLError")},
        calls=calls,
        nvmlInit=init,
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlSystemGetDriverVersion=lambda: answer(driver, query_error),
        nvmlSystemGetCudaDriverVersion=lambda: cuda,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu.name,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetCudaComputeCapability=capability,
    )
    return module
