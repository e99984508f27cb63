"""Gradient averaging over two or three real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.engine.build import static_graph_allowed

SCRIPT = Path(__file__).with_name("parallel_ranks.py")
ROOT = Path(__file__).parents[3]


def curves(world_size: int) -> dict[str, dict[str, list[float]]]:
    """Run the script once a rank; return rank 0's curves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world_size), str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    ends = [process.communicate(timeout=200) for process in processes]
    for process, (_, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0, err
    return json.loads(ends[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def two() -> dict[str, dict[str, list[float]]]:
    return curves(2)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["fp16", "bf16"])
def test_compressed_gradients_learn_nearly_the_same(two, format_):
    plain, compressed = two["static"]["losses"], two[format_]["losses"]
    assert compressed == pytest.approx(plain, rel=0.02)
    assert compressed != plain
    assert compressed[0] == plain[0]  # nothing has been exchanged yet


@pytest.mark.slow
def test_a_static_graph_changes_no_bit(two):
    assert two["static"]["static_graph"] and not two["accumulated"]["static_graph"]
    assert two["static"]["losses"] == two["dynamic"]["losses"]


@pytest.mark.slow
def test_three_ranks_that_begin_anew_round_as_if_they_had_not():
    found = curves(3)
    assert found["static"]["losses"] == found["begun anew"]["losses"]


def test_the_static_graph_is_left_where_it_fails(small_config):
    assert static_graph_allowed(small_config())
    assert not static_graph_allowed(small_config(batch__per_device=4))
    assert not static_graph_allowed(small_config(model__compile=True))
