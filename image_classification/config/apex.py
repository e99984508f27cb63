"""Where NVIDIA Apex can be asked for: decided from the settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_classification.core.errors import ConfigError


def check_apex(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse ``apex`` where it has no meaning; every value is already right by itself.

    Raises:
        ConfigError: naming the key, where it came from, and a remedy.
    """
    device = values["platform.device"]
    for key in ("precision.amp_backend", "optim.implementation"):
        if values[key] == "apex" and device != "cuda":
            raise ConfigError(
                f"{key} apex ({origins[key]}) needs an NVIDIA GPU and this run is on {device} "
                f"({origins['platform.device']}); leave it out"
            )
    _check_amp(values, origins["precision.amp_backend"])
    if values["optim.implementation"] == "apex" and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.implementation apex ({origins['optim.implementation']}) has no "
            f"{values['optim.name']} ({origins['optim.name']}); leave it out, or use "
            "--optimizer sgd"
        )


def _check_amp(values: Mapping[str, Any], origin: str) -> None:
    if values["precision.amp_backend"] != "apex":
        return
    name, dtype = values["precision.name"], values["precision.dtype"]
    if name != "AMP" or dtype != "float16":
        instead = "set precision.dtype=float16" if name == "AMP" else "use --precision AMP"
        raise ConfigError(
            f"precision.amp_backend apex ({origin}) is for precision AMP in float16 and this run "
            f"is {name} in {dtype}; leave it out, or {instead}"
        )
    if values["model.compile"]:
        raise ConfigError(
            f"precision.amp_backend apex ({origin}) replaces torch's functions, which "
            "torch.compile does not follow; leave it out, or set model.compile=false"
        )
