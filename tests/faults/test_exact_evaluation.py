"""Exact evaluation of sets that neither the batch nor the number of ranks divides."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).with_name("evaluate_on_ranks.py")
CLASSES = 10
FULL = os.environ.get("FAULTS") == "full"
SETS = (1, 7, 49, 999) if FULL else (1, 7, 49)
BATCHES = (1, 3, 8, 64) if FULL else (3, 8)
WORLDS = (1, 2, 3, 4) if FULL else (1, 2)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Write ``<n>/val-000000.tar``, a WebDataset of n images in ten classes, for each n."""
    random = np.random.default_rng(4)
    for images in SETS:
        (tmp_path / str(images)).mkdir()
        with tarfile.open(tmp_path / str(images) / "val-000000.tar", "w") as shard:
            for n in range(images):
                encoded = io.BytesIO()
                pixels = random.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((36, 36)).save(encoded, "PNG")
                label = str(int(random.integers(CLASSES))).encode()
                for name, content in ((f"{n}.png", encoded.getvalue()), (f"{n}.cls", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return tmp_path


def counts(jobs, folder: Path, world_size: int) -> dict[str, list[float]]:
    """Evaluate on ``world_size`` ranks: ``{"<images> <batch>": [images, top1, top5, loss]}``."""
    texts = [",".join(map(str, values)) for values in (SETS, BATCHES)]
    job = jobs.start_ranks(SCRIPT, [str(folder), *texts], world_size)
    assert job.wait(timeout_s=600) == 0, job.stderr
    return json.loads(job.out.read_text())


@pytest.mark.timeout(900)
def test_exact_counts(jobs, sets: Path, record_outcome) -> None:
    """1 to 999 images are evaluated on 1 to 4 ranks with several batch sizes."""
    found = {world_size: counts(jobs, sets, world_size) for world_size in WORLDS}
    for images in SETS:
        # The reference of a set: the first world size with the first batch size.
        expected = found[WORLDS[0]][f"{images} {BATCHES[0]}"]
        assert expected[0] == images
        assert 0 <= expected[1] <= expected[2] <= images
        if images >= 49:
            assert 0 < expected[1] < expected[2] < images, "the counts distinguish nothing"
        for world_size in WORLDS:
            for batch in BATCHES:
                case = found[world_size][f"{images} {batch}"]
                assert case[:3] == expected[:3], (images, world_size, batch)
                assert case[3] == pytest.approx(expected[3], rel=1e-6), (images, world_size, batch)
    record_outcome(
        f"exact: equal numbers of images, top-1 and top-5 counts, loss within 1e-6, for {SETS} "
        f"images, {WORLDS} ranks, batches of {BATCHES}",
        len(SETS) * len(WORLDS) * len(BATCHES),
    )
