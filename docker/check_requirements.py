#!/usr/bin/env python3
"""Check that all required packages are installed in a supported version. Used by Dockerfile.

    python docker/check_requirements.py pyproject.toml

A base image may bring a package that is too old, or lack one that must come from the base
(torchvision, numpy). This fails the build instead of a later run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, used by some vendors' bases
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]


def unmet(requirements: list[str]) -> Iterator[str]:
    """Yield a line for each requirement, direct or not, that the installed packages do not meet."""
    seen = set()
    queue = [(Requirement(text), "this program") for text in requirements]
    while queue:
        requirement, by = queue.pop(0)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if (requirement.name, str(requirement.specifier)) in seen:
            continue
        seen.add((requirement.name, str(requirement.specifier)))
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is not installed; {by} needs {requirement}"
            continue
        # Vendors build from a commit: 2.14.0a0+hash counts as 2.14.0.
        if not requirement.specifier.contains(found.version, prereleases=True):
            yield f"{requirement.name} is {found.version}; {by} needs {requirement}"
            continue
        # The base image is responsible for the dependencies of its torch.
        if by == "this program" and requirement.name not in ("torch", "torchvision"):
            queue += [(Requirement(text), requirement.name) for text in found.requires or ()]


def main(pyproject: Path) -> None:
    """Exit with a line for each requirement that is not met."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(unmet(project["dependencies"]))
    if lines:
        sys.exit("\n".join(f"error: {line}; use another base image" for line in lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
