import json
from pathlib import Path

import pytest
import torch

from image_classification.cli.container_start import read_build_facts

ROOT = Path(__file__).parents[3]


def recorded() -> dict[str, object]:
    """What docker/record_build.py writes down here."""
    namespace: dict[str, object] = {"__name__": "record_build"}
    exec((ROOT / "docker" / "record_build.py").read_text(), namespace)
    facts = namespace["facts"]
    assert callable(facts)
    content = facts()
    assert isinstance(content, dict)
    return content


def test_what_an_image_writes_down_is_read_back(tmp_path: Path) -> None:
    content = recorded()
    file = tmp_path / "build.json"
    file.write_text(json.dumps(content))
    facts = read_build_facts(file)
    assert facts is not None
    assert (facts.torch, facts.cuda) == (torch.__version__, torch.version.cuda)
    # A build with CUDA knows its architectures without a GPU.
    assert bool(facts.arch_list) is (torch.version.cuda is not None)
    assert all(arch.startswith(("sm_", "compute_")) for arch in facts.arch_list)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"torch": "2.10.0", "arch_list": 7}'])
def test_a_file_of_another_kind_says_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "build.json"
    file.write_text(text)
    assert read_build_facts(file) is None
    assert read_build_facts(tmp_path / "absent") is None
