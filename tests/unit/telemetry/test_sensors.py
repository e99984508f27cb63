import os
from types import SimpleNamespace

import pytest
import torch

from image_classification.telemetry.sensors import RankLocation, own_location

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def test_location_as_text():
    own = own_location(torch.device("cpu"), "EPYC")
    assert own.pid == os.getpid() and own.cpus and own.device_name == "EPYC"
    for location in (own, RankLocation("n", 1, (0, 1), "V100", ("GPU-1",), "00000000:3B:00.0")):
        assert RankLocation.from_text(location.to_text()) == location


@pytest.mark.parametrize(
    ("visible", "slices"), [("3,1", ()), (f"MIG-{TWO}", (f"MIG-{TWO}",))], ids=["index", "slice"]
)
def test_location_of_a_gpu(
    visible: str, slices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(
        name="V100", uuid=ONE, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    location = own_location(torch.device("cuda", 0), "")
    assert location.uuids == (*slices, f"MIG-{ONE}", f"GPU-{ONE}")
    assert location.bus_id == "00000000:3B:00.0" and location.device_name == "V100"
    del properties.pci_bus_id  # other vendors' builds of torch
    location = own_location(torch.device("cuda", 0), "")
    assert location.uuids == () and location.bus_id == ""
