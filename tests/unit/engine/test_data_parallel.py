"""Gradient averaging over two or three real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_classification.engine.build import static_graph_allowed
from tests.support.jobs import free_port
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).with_name("parallel_ranks.py")


def curves(world_size: int) -> dict[str, dict[str, list[float]]]:
    """Run the script once per rank; return rank 0's curves."""
    port = free_port()
    printed = run_ranks(SCRIPT, world_size, lambda rank: (rank, world_size, port))
    return json.loads(printed[0])


@pytest.fixture(scope="module")
def two() -> dict[str, dict[str, list[float]]]:
    return curves(2)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["fp16", "bf16"])
def test_compressed_gradients_give_nearly_the_same_losses(two, format_):
    plain, compressed = two["static"]["losses"], two[format_]["losses"]
    assert compressed == pytest.approx(plain, rel=0.02)
    assert compressed != plain
    assert compressed[0] == plain[0]  # no gradient has been exchanged yet


@pytest.mark.slow
def test_static_graph_gives_equal_losses(two):
    assert two["static"]["static_graph"] and not two["accumulated"]["static_graph"]
    assert two["static"]["losses"] == two["dynamic"]["losses"]


@pytest.mark.slow
def test_rebuilt_ddp_of_three_ranks_gives_equal_losses():
    found = curves(3)
    assert found["static"]["losses"] == found["rebuilt"]["losses"]


def test_no_static_graph_with_accumulation_or_compilation(small_config):
    assert static_graph_allowed(small_config())
    assert not static_graph_allowed(small_config(batch__per_device=4))
    assert not static_graph_allowed(small_config(model__compile=True))
