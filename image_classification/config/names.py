"""Names as users write them: upper or lower case, other spellings, and words that fit several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from image_classification.core.errors import ConfigError, unknown

_ALIASES: Mapping[str, Mapping[str, str]] = {
    "precision": {
        "fp16": "AMP",
        "float16": "AMP",
        "half": "AMP",
        "mixed": "AMP",
        "float32": "FP32",
        "bfloat16": "BF16",
    },
    "platform": {
        "cuda": "GPU",
        "gpus": "GPU",
        "nvidia": "GPU",
        "dgx1": "DGX1V",
        "dgx2": "DGX2V",
        "teslat4": "T4",
    },
    "mode": {
        "train": "convergence",
        "training": "convergence",
        "eval": "evaluate",
        "evaluation": "evaluate",
        "validate": "evaluate",
        "inference": "benchmark_inference",
    },
}
# Words that fit several names.
_SEVERAL: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "platform": {
        "v100": ("DGX1V-16G", "DGX1V-32G", "DGX2V", "GPU"),
        "dgx": ("DGX1V-16G", "DGX1V-32G", "DGX2V", "DGXA100", "DGXH100", "DGXH200", "DGXB200"),
        "biv100": ("BI-V100x1", "BI-V100x4", "BI-V100x8", "BI-V100x16"),
        "iluvatar": ("BI-V100x1", "BI-V100x4", "BI-V100x8", "BI-V100x16"),
        "habana": ("GAUDI", "GAUDI2"),
        "hpu": ("GAUDI", "GAUDI2"),
    },
}


def read_name(
    kind: str, name: str, valid: Iterable[str], about: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return the valid name that ``name`` means, and a note if more than its case differs.

    Case, hyphens, underscores, dots and spaces do not matter, and the first words of a name are
    enough if they fit no other. kind: ``model``, ``precision``, ``platform``, ``mode`` or
    ``recipe``, and more words for messages. about: descriptions of names, for messages.

    Raises:
        ConfigError: the name is unknown, or fits several; the message lists them.
    """
    valid, table, plain = list(valid), kind.split()[0], _plain(name)
    if name in valid:
        return name, ""
    found = [each for each in valid if _plain(each) == plain]
    if not found and table == "recipe":
        found = [each for each in valid if plain in (each[:-1], f"{each}pochs")]
    if not found and plain in _ALIASES.get(table, {}):
        found = [_ALIASES[table][plain]]
    if not found:
        found = list(_SEVERAL.get(table, {}).get(plain, ()))
    if not found and plain:
        found = [each for each in valid if plain in _beginnings(each)]
    found = [each for each in found if each in valid]
    if len(found) == 1:
        same = name.casefold() == found[0].casefold()
        return found[0], "" if same else f"{table} {name!r} is read as {found[0]}"
    if found:
        shown = [f"{each} ({about[each]})" if about and each in about else each for each in found]
        raise ConfigError(f"{table} {name!r} fits several names; give one of {', '.join(shown)}")
    hint = "; GPU is any NVIDIA GPU" if table == "platform" and "GPU" in valid else ""
    raise ConfigError(unknown(kind, name, valid) + hint)


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.casefold())


def _beginnings(name: str) -> set[str]:
    """Return the first words of a name, without hyphens: ``se`` and ``seresnext101`` of …-32x4d."""
    words = re.split(r"[-_. ]", name.casefold())
    return {"".join(words[:count]) for count in range(1, len(words))}
