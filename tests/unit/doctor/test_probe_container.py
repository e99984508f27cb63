import getpass
import os
from pathlib import Path

import pytest

from image_classification.core.host import Mount
from image_classification.doctor.host import check_container, check_home, check_user


def test_the_root_file_system() -> None:
    check = check_container("docker", "", [Mount("/", "overlay", "/", True)])
    assert check.found == "docker container; root file system read-only"
    assert check_container("", "", []).found == "no container; root file system writable"


def test_the_image_is_named() -> None:
    image = "image-classification 0.1.0 on a:1"
    assert check_container("podman", image, []).found.startswith(f"podman container, {image}; ")
    assert check_container("", image, []).found.startswith(f"container, {image}; ")


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
