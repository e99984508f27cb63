"""RAPL counters from a temporary folder; real processes of this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from image_classification.telemetry.cpu import CpuSensor, ProcessTree, Rapl, RaplError, open_sensors
from image_classification.telemetry.sensors import DeviceLostError, RankLocation

RANGE_UJ = 262_143_328_850


def write(root: Path, folder: str, energy_uj: int) -> None:
    (root / folder / "energy_uj").write_text(f"{energy_uj}\n")


def domain(root: Path, folder: str, name: str, energy_uj: int) -> None:
    (root / folder).mkdir(parents=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    write(root, folder, energy_uj)


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    root = tmp_path / "powercap"
    domain(root, "intel-rapl:0", "package-0", 5_000_000)
    domain(root, "intel-rapl:1", "package-1", RANGE_UJ - 1_000_000)
    domain(root, "intel-rapl:0:0", "core", 1)
    domain(root, "intel-rapl:2", "psys", 1)
    domain(root, "intel-rapl-mmio:0", "package-0", 5_000_000)
    return root


def test_packages_are_summed_across_a_counter_overflow(powercap: Path) -> None:
    rapl = Rapl(powercap)
    assert rapl.energy_j() == 0.0
    write(powercap, "intel-rapl:0", 8_000_000)
    write(powercap, "intel-rapl:1", 4_000_000)
    for other in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        write(powercap, other, 999_000_000)
    assert rapl.energy_j() == pytest.approx(3.0 + 1.0 + 4.0)
    write(powercap, "intel-rapl:1", 6_000_000)
    assert rapl.energy_j() == pytest.approx(10.0)


def test_without_package_counters_there_is_no_rapl(tmp_path: Path) -> None:
    with pytest.raises(RaplError, match="no processor package"):
        Rapl(tmp_path / "absent")
    domain(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(RaplError, match="no processor package"):
        Rapl(tmp_path)


def test_folder_without_a_readable_name_is_skipped(powercap: Path) -> None:
    (powercap / "intel-rapl:2" / "name").unlink()
    rapl = Rapl(powercap)
    write(powercap, "intel-rapl:0", 8_000_000)
    assert rapl.energy_j() == pytest.approx(3.0)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes ``energy_uj`` unreadable. Root ignores file modes: no chmod."""
    read_text = Path.read_text

    def read(self: Path, *arguments: Any, **options: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *arguments, **options)

    return lambda: monkeypatch.setattr(Path, "read_text", read)


def test_counter_without_read_permission(powercap: Path, refused: Callable[[], None]) -> None:
    refused()
    with pytest.raises(RaplError, match=r"no permission to read .*energy_uj"):
        Rapl(powercap)


def own_sensor(powercap: Path, cores: float = 2.0) -> CpuSensor:
    return CpuSensor("cpu", ProcessTree([os.getpid()]), cores, powercap)


def test_a_cpu_with_rapl_reports_energy(powercap: Path) -> None:
    sensor = own_sensor(powercap)
    assert sensor.read().energy_j == 0.0
    write(powercap, "intel-rapl:0", 6_000_000)
    assert sensor.read().energy_j == pytest.approx(1.0)
    assert "RAPL" in sensor.source and "energy_j" not in sensor.missing


def test_memory_is_read_without_rapl(powercap: Path, refused: Callable[[], None]) -> None:
    refused()
    reading = own_sensor(powercap).read()
    assert reading.energy_j is None and reading.memory_bytes


def test_permission_withdrawn_during_the_run(powercap: Path, refused: Callable[[], None]) -> None:
    sensor = own_sensor(powercap)
    assert sensor.read().energy_j == 0.0
    refused()
    assert sensor.read().energy_j is None
    assert "no longer" in sensor.missing["energy_j"]


def test_a_node_has_one_sensor_for_all_ranks() -> None:
    locations = [RankLocation("n", pid, (0, 1), "EPYC") for pid in (os.getpid(), os.getppid())]
    (sensor,) = open_sensors(locations)
    assert sensor.name == "EPYC"
    assert sensor.read().memory_bytes


def test_utilization_is_relative_to_the_cores_of_the_run(tmp_path: Path) -> None:
    sensor = own_sensor(tmp_path, cores=1.0)
    assert sensor.read().utilization is None
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < 0.3:
        pass
    utilization = sensor.read().utilization
    assert utilization is not None and 0.05 < utilization < 1.5


def test_running_and_ended_children_are_included() -> None:
    tree = ProcessTree([os.getpid()])
    before = tree.read()
    hold = "x = bytearray(200 * 2**20); print('held', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", f"import time\nwhile time.process_time() < 0.5: pass\n{hold}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    tree._next_scan_s = 0.0
    during = tree.read()
    child.communicate(b"\n")
    after = tree.read()
    assert before is not None and during is not None and after is not None
    assert during[0] - before[0] > 190 * 2**20
    assert after[0] < during[0]
    assert min(during[1], after[1]) - before[1] > 0.4
    assert tree.peak_of_one_bytes() > 0


def test_process_tree_equals_psutil() -> None:
    own = psutil.Process()
    before_s = sum(own.cpu_times()[:4])
    use = ProcessTree([os.getpid()]).read()
    # Other tests of this process may have left children, such as a fork server.
    children = own.children(recursive=True)
    tree = (own, *children)
    after_s = sum(sum(process.cpu_times()[:4]) for process in tree)
    assert use is not None
    rss_bytes = sum(process.memory_info().rss for process in tree)
    assert use[0] == pytest.approx(rss_bytes, rel=0.05)
    assert before_s <= use[1] <= after_s + 0.02


def test_a_process_that_has_ended_cannot_be_read(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    tree = ProcessTree([child.pid])
    assert tree.read() is None and tree.peak_of_one_bytes() == 0
    with pytest.raises(DeviceLostError, match="/proc"):
        CpuSensor("cpu", tree, 1.0, tmp_path).read()
