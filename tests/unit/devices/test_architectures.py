import pytest

from image_classification.devices.architectures import arch_covers, build_lacks

V100 = (7, 0)
CU128 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "archs", "covered"),
    [
        (V100, CU128, True),
        (V100, CU130, False),
        ((8, 9), CU128, True),  # sm_86 machine code runs on 8.9
        ((8, 0), ["sm_86"], False),  # but not on an earlier minor
        ((10, 3), CU128, True),
        ((11, 0), CU128, False),  # no PTX to compile from
        ((13, 0), CU130, True),  # the driver compiles compute_120
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f"], False),
        ((10, 3), ["compute_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((9, 0), ["gfx942"], False),
        ((9, 0), [], False),
    ],
)
def test_which_architectures_cover_a_device(
    capability: tuple[int, int], archs: list[str], covered: bool
) -> None:
    assert arch_covers(capability, archs) is covered


def test_the_message_names_device_architectures_and_remedy() -> None:
    assert build_lacks(V100, CU128, "V100", "2.10.0+cu128") is None
    message = build_lacks(V100, CU130, "Tesla V100", "2.11.0+cu130")
    assert message is not None
    for part in ("2.11.0+cu130", "Tesla V100", "sm_70", "sm_75", "cu128"):
        assert part in message
    newer = build_lacks((11, 0), CU128, "Thor", "2.10.0+cu128")
    assert newer is not None and "sm_110" in newer and "cu128)" not in newer
