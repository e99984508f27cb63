"""Gradient averaging over two or three real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from image_classification.config.schema import RunConfig
from image_classification.engine.build import static_graph_allowed
from tests.support.jobs import Jobs
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).with_name("parallel_ranks.py")


@pytest.mark.slow
def test_static_graph_and_compressed_gradients_of_two_ranks(jobs: Jobs) -> None:
    found = run_ranks(jobs, SCRIPT, 2)[0]
    plain = found["static"]["losses"]
    assert found["static"]["static_graph"] and not found["accumulated"]["static_graph"]
    assert plain == found["dynamic"]["losses"]
    for compression in ("fp16", "bf16"):
        losses = found[compression]["losses"]
        assert losses == pytest.approx(plain, rel=0.02)
        assert losses != plain
        assert losses[0] == plain[0]  # no gradient has been exchanged yet


@pytest.mark.slow
def test_rebuilt_ddp_of_three_ranks_gives_equal_losses(jobs: Jobs) -> None:
    found = run_ranks(jobs, SCRIPT, 3)[0]
    assert found["static"]["losses"] == found["rebuilt"]["losses"]


def test_no_static_graph_with_accumulation_or_compilation(
    small_config: Callable[..., RunConfig],
) -> None:
    assert static_graph_allowed(small_config())
    assert not static_graph_allowed(small_config(batch__per_device=4))
    assert not static_graph_allowed(small_config(model__compile=True))
