"""RAPL counters in a folder that is made up; processes as this machine has them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_classification.telemetry.cpu import CpuSensor, ProcessTree, Rapl, RaplError, open_sensors
from image_classification.telemetry.rank_location import Place
from image_classification.telemetry.sensors import LostError

RANGE_UJ = 262_143_328_850


def domain(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


@pytest.fixture
def powercap(tmp_path):
    root = tmp_path / "powercap"
    domain(root, "intel-rapl:0", "package-0", 5_000_000)
    domain(root, "intel-rapl:1", "package-1", RANGE_UJ - 1_000_000)
    domain(root, "intel-rapl:0:0", "core", 1)
    domain(root, "intel-rapl:2", "psys", 1)
    domain(root, "intel-rapl-mmio:0", "package-0", 5_000_000)
    return root


def write(root: Path, folder: str, energy_uj: int) -> None:
    (root / folder / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_summed_and_a_wrap_is_no_loss(powercap):
    rapl = Rapl(powercap)
    assert rapl.energy_j() == 0.0
    write(powercap, "intel-rapl:0", 8_000_000)
    write(powercap, "intel-rapl:1", 4_000_000)
    for other in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        write(powercap, other, 999_000_000)
    assert rapl.energy_j() == pytest.approx(3.0 + 1.0 + 4.0)
    write(powercap, "intel-rapl:1", 6_000_000)
    assert rapl.energy_j() == pytest.approx(10.0)


def test_no_counters_no_folder(tmp_path):
    with pytest.raises(RaplError, match="no processor package"):
        Rapl(tmp_path / "absent")
    domain(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(RaplError, match="no processor package"):
        Rapl(tmp_path)


@pytest.fixture
def refused(monkeypatch):
    """Refuse ``energy_uj`` from now on; root may read a file of any mode, so no chmod."""
    read_text = Path.read_text

    def refuse(self, *arguments, **options):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *arguments, **options)

    return lambda: monkeypatch.setattr(Path, "read_text", refuse)


def test_no_permission_is_said_with_the_file(powercap, refused):
    refused()
    with pytest.raises(RaplError, match=r"no permission to read .*energy_uj"):
        Rapl(powercap)


def own_tree() -> ProcessTree:
    return ProcessTree([os.getpid()])


def test_a_cpu_with_rapl_has_energy(powercap):
    sensor = CpuSensor("cpu", own_tree(), 2.0, powercap)
    assert sensor.read().energy_j == 0.0
    write(powercap, "intel-rapl:0", 6_000_000)
    assert sensor.read().energy_j == pytest.approx(1.0)
    assert "RAPL" in sensor.source and "energy_j" not in sensor.missing


def test_a_cpu_without_permission_has_the_rest(powercap, refused):
    refused()
    reading = CpuSensor("cpu", own_tree(), 2.0, powercap).read()
    assert reading.energy_j is None and reading.memory_bytes


def test_permission_taken_away_on_the_way(powercap, refused):
    sensor = CpuSensor("cpu", own_tree(), 2.0, powercap)
    assert sensor.read().energy_j == 0.0
    refused()
    assert sensor.read().energy_j is None
    assert "any more" in sensor.missing["energy_j"]


def test_a_node_has_one_sensor_over_all_its_ranks_and_cores(tmp_path):
    places = [Place("n", os.getpid(), (0, 1), "EPYC"), Place("n", os.getppid(), (2, 3), "EPYC")]
    (sensor,) = open_sensors(places)
    assert sensor.name == "EPYC"
    assert sensor.read().memory_bytes > 0


def test_utilisation_is_of_the_cores_the_run_may_use(tmp_path):
    sensor = CpuSensor("cpu", own_tree(), 1.0, tmp_path)
    assert sensor.read().utilization is None
    begun_s = time.thread_time()
    while time.thread_time() - begun_s < 0.3:
        pass
    assert 0.05 < sensor.read().utilization < 1.5


def test_children_count_and_so_do_those_that_ended():
    tree = own_tree()
    before = tree.read()
    hold = "x = bytearray(200 * 2**20); print('held', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", f"import time\nwhile time.process_time() < 0.5: pass\n{hold}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"held\n"
    tree._next_scan_s = 0.0
    during = tree.read()
    child.communicate(b"\n")
    after = tree.read()
    assert during.resident_bytes - before.resident_bytes > 190 * 2**20
    assert after.resident_bytes < during.resident_bytes
    assert min(during.cpu_s, after.cpu_s) - before.cpu_s > 0.4
    assert tree.peak_of_one_bytes() > 0


def test_a_name_with_brackets_and_spaces(tmp_path):
    stat = "7 (a) b) (c) S 1 7 7 0 -1 0 0 0 0 0 100 50 25 25 20 0 1 0 0 0 10 0"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    use = ProcessTree([7], tmp_path).read()
    assert use.cpu_s == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    assert use.resident_bytes == 10 * os.sysconf("SC_PAGE_SIZE")


def test_without_a_proc_the_device_is_given_up(tmp_path):
    tree = ProcessTree([1], tmp_path / "absent")
    assert tree.read() is None and tree.peak_of_one_bytes() is None
    with pytest.raises(LostError, match="/proc"):
        CpuSensor("cpu", tree, 1.0, tmp_path).read()
