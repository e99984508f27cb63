import os
from types import SimpleNamespace

import torch

from image_classification.telemetry.sensors import RankLocation, cuda_ids, own_location

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def test_location_as_text():
    own = own_location(torch.device("cpu"), "EPYC")
    assert own.pid == os.getpid() and own.cpus and own.device_name == "EPYC"
    for location in (own, RankLocation("n", 1, (0, 1), "V100", ("GPU-1",), "00000000:3B:00.0")):
        assert RankLocation.from_text(location.to_text()) == location


def test_cuda_ids():
    properties = SimpleNamespace(uuid=ONE, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    uuids, bus_id = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert uuids == (f"MIG-{ONE}", f"GPU-{ONE}") and bus_id == "00000000:3B:00.0"
    uuids, _ = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": f"MIG-{TWO}"})
    assert uuids == (f"MIG-{TWO}", f"MIG-{ONE}", f"GPU-{ONE}")
