import getpass
import os
from pathlib import Path

import pytest

from image_classification.hardware.mounts import Mount
from image_classification.hardware.probe_container import (
    check_container,
    check_home,
    check_user,
    container_kind,
)

ENROOT = [Mount("/etc/passwd", "tmpfs", "/user/enroot/passwd", True)]


def test_each_kind_by_its_mark(tmp_path: Path) -> None:
    def kind(environ: dict[str, str], mounts: list[Mount] | None = None) -> str:
        return container_kind(environ, mounts or [], tmp_path)

    assert kind({}) == ""
    assert kind({"container": "lxc"}) == "lxc"
    assert kind({}, ENROOT) == "enroot"
    assert kind({"APPTAINER_CONTAINER": "/x.sif"}) == "apptainer"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert kind({"container": "podman"}) == "podman"
    (tmp_path / ".dockerenv").touch()
    assert kind({}) == "docker"
    assert kind({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "kubernetes"


def test_the_root_file_system() -> None:
    check = check_container("docker", [Mount("/", "overlay", "/", True)])
    assert check.found == "docker container; root file system read-only"
    assert check_container("", []).found == "no container; root file system writable"


def test_root_in_docker_is_told_of_its_files() -> None:
    assert "belongs to root" in check_user("docker", 0).found
    assert "belongs to root" not in check_user("", 0).found


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    check = check_user("docker", 1234)
    assert check.status == "warn" and "USER=user1234" in check.remedy


def test_home(tmp_path: Path) -> None:
    assert check_home({"HOME": str(tmp_path)}).status == "ok"
    assert list(tmp_path.iterdir()) == []
    missing = check_home({"HOME": str(tmp_path / "gone")})
    assert missing.status == "warn" and os.strerror(2) in missing.found
    assert check_home({}).status == "warn"
