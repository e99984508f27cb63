"""The doctor's line on Apex: imported in a process of its own, only where there is one."""

from pathlib import Path

import pytest

from image_classification.devices.accelerator import get_accelerator
from image_classification.doctor import checks as checkup_apex
from image_classification.doctor.probe import IsolatedError
from image_classification.launch.recorder import torch_environment


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    targets: list[str] = []
    monkeypatch.setattr(checkup_apex, "call", lambda target, limit_s: targets.append(target))
    return targets


def test_an_absent_one_is_not_imported(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup_apex, "find_apex", lambda: None)
    check = checkup_apex.check_apex()
    assert (check.name, check.status, called) == ("apex", "skipped", [])


def test_one_that_is_there_is_imported(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "standins")
    check = checkup_apex.check_apex()
    assert check.status == "ok" and check.found.endswith("(fused optimizers, amp)")
    assert called == ["image_classification.doctor.software:import_apex"]
    environment = torch_environment(get_accelerator("cpu"))
    assert environment["apex"] == check.found

    def broken(target: str, limit_s: float) -> None:
        raise IsolatedError("ImportError: undefined symbol")

    monkeypatch.setattr(checkup_apex, "call", broken)
    check = checkup_apex.check_apex()
    assert check.status == "warn" and "undefined symbol" in check.found
