"""What the container image was built with, as written down when it was built: no torch needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
