import os
from types import SimpleNamespace

import torch

from image_classification.telemetry.rank_location import RankLocation, cuda_ids, own_location

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def test_a_location_survives_its_text():
    own = own_location(torch.device("cpu"), "EPYC")
    assert own.pid == os.getpid() and own.cpus and own.device_name == "EPYC"
    for location in (own, RankLocation("n", 1, (0, 1), "V100", ("GPU-1",), "00000000:3B:00.0")):
        assert RankLocation.from_text(location.to_text()) == location


def test_ids_come_from_torch_and_a_mig_slice_from_the_environment():
    properties = SimpleNamespace(uuid=ONE, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    uuids, bus_id = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert uuids == (f"MIG-{ONE}", f"GPU-{ONE}") and bus_id == "00000000:3B:00.0"
    uuids, _ = cuda_ids(properties, {"CUDA_VISIBLE_DEVICES": f"MIG-{TWO}"})
    assert uuids == (f"MIG-{TWO}", f"MIG-{ONE}", f"GPU-{ONE}")
