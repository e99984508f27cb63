import sys

import pytest

from image_classification.distributed.world import interface_towards


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are read as Linux has them")
def test_loopback_interface() -> None:
    assert interface_towards("127.0.0.1", 29500) == "lo"


def test_unknown_host_has_no_interface() -> None:
    assert interface_towards("no-such-host.invalid", 29500) is None
