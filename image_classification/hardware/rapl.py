"""Energy of the processors' packages: Linux's powercap files of Intel's and AMD's RAPL counters."""

from __future__ import annotations

import re
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class RaplError(Exception):
    """The counters cannot be read; the text says why."""


class _Package:
    """One counter in microjoules, unwrapped."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = int(self._counter.read_text())
        self.used_uj = 0

    def read(self) -> None:
        now_uj = int(self._counter.read_text())
        # Read at least once a minute, it cannot have wrapped twice.
        wrapped_uj = self._range_uj if now_uj < self._last_uj else 0
        self.used_uj += now_uj - self._last_uj + wrapped_uj
        self._last_uj = now_uj


class Rapl:
    """The energy of all packages of this machine, whoever uses them."""

    def __init__(self, root: Path = POWERCAP) -> None:
        """Find the packages under ``root``.

        Only ``intel-rapl:N`` named ``package-…``: what lies within is part of a package, ``psys``
        is the whole board, and ``intel-rapl-mmio`` the same counters once more.

        Raises:
            RaplError: no such counters, or not for this user.
        """
        folders = [
            folder
            for folder in (sorted(root.iterdir()) if root.is_dir() else ())
            if re.fullmatch(r"intel-rapl:\d+", folder.name) and _name(folder).startswith("package")
        ]
        if not folders:
            raise RaplError(f"no processor package in {root}")
        try:
            self._packages = [_Package(folder) for folder in folders]
        except PermissionError as error:
            raise RaplError(f"no permission to read {error.filename}") from error
        except (OSError, ValueError) as error:
            raise RaplError(f"cannot read {folders[0]}: {error}") from error

    def energy_j(self) -> float:
        """Return the joules used since this was made.

        Raises:
            RaplError: a counter cannot be read any more.
        """
        try:
            for package in self._packages:
                package.read()
        except (OSError, ValueError) as error:
            raise RaplError(f"a RAPL counter cannot be read any more: {error}") from error
        return sum(package.used_uj for package in self._packages) / 1e6


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""
