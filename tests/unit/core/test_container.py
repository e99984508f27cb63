from pathlib import Path

from image_classification.core.host import (
    BASE_VARIABLE,
    IMAGE_VARIABLE,
    Mount,
    container_kind,
    container_text,
)

ENROOT = [Mount("/etc/passwd", "tmpfs", "/user/enroot/passwd", True)]


def test_each_kind_by_its_mark(tmp_path: Path) -> None:
    def kind(environ: dict[str, str], mounts: list[Mount] | None = None) -> str:
        return container_kind(environ, mounts or [], tmp_path)

    assert kind({}) == ""
    assert kind({"container": "lxc"}) == "lxc"
    assert kind({}, ENROOT) == "enroot"
    (tmp_path / ".singularity.d").mkdir()
    assert kind({}) == "apptainer"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert kind({"container": "podman"}) == "podman"
    (tmp_path / ".dockerenv").touch()
    assert kind({}) == "docker"
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert kind(pod) == "kubernetes"
    assert kind({**pod, "APPTAINER_CONTAINER": "/x.sif"}) == "apptainer"
    assert kind({"SINGULARITY_CONTAINER": "/x.sif"}) == "apptainer"


def test_the_image_is_told_as_far_as_it_is_known() -> None:
    image = {IMAGE_VARIABLE: "image-classification 0.1.0 cpu"}
    assert container_text("docker", {}) == "docker"
    assert container_text("", {}) == ""
    assert container_text("docker", {BASE_VARIABLE: "python:3.11"}) == "docker"
    assert container_text("docker", image) == "docker, image-classification 0.1.0 cpu"
    assert container_text("docker", {**image, BASE_VARIABLE: ""}) == container_text("docker", image)
    both = {**image, BASE_VARIABLE: "python:3.11-slim"}
    told = "image-classification 0.1.0 cpu on python:3.11-slim"
    assert container_text("podman", both) == f"podman, {told}"
    assert container_text("", both) == f"container, {told}"
