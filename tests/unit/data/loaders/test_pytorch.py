import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from image_classification.core.errors import DataError
from image_classification.core.types import Batch
from image_classification.data.loaders.device_prefetch import HostBatch
from image_classification.data.loaders.protocol import LoaderSpec
from image_classification.data.loaders.pytorch import TorchvisionLoader, open_loader
from image_classification.data.tools import quarantine
from image_classification.data.tools.pack import FORMATS, pack

MakeSpec = Callable[..., LoaderSpec]


@contextmanager
def opened(spec: LoaderSpec) -> Iterator[TorchvisionLoader]:
    loader = open_loader(spec)
    try:
        yield loader
    finally:
        loader.close()


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.valid, b.valid)


def test_an_epoch_leaves_torchs_global_generator_alone(make_spec: MakeSpec) -> None:
    """Else a resumed run, which starts fewer epochs, would draw other numbers."""
    before = torch.get_rng_state()
    with opened(make_spec(augmentation="autoaugment")) as loader:
        assert len(list(loader.epoch(0))) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_epoch_ends_the_one_before(make_spec: MakeSpec) -> None:
    with opened(make_spec()) as loader:
        expected = list(loader.epoch(1))
        abandoned = loader.epoch(0)
        next(abandoned)
        assert_same(list(loader.epoch(1)), expected)
        assert list(abandoned) == []


def test_close_twice_and_use_after(make_spec: MakeSpec) -> None:
    loader = open_loader(make_spec())
    running = loader.epoch(0)
    next(running)
    loader.close()
    loader.close()
    assert list(running) == []
    with pytest.raises(ValueError, match="closed"):
        loader.epoch(0)


def test_undecodable_image_is_named(make_spec: MakeSpec, image_folder: Path) -> None:
    bad = image_folder / "val" / "dog" / "0.JPEG"
    bad.write_bytes(b"not an image")
    with opened(make_spec(split="val")) as loader:
        epoch = loader.epoch(0)
        next(epoch)
        with pytest.raises(DataError, match=f"cannot decode {bad}"):
            next(epoch)


def test_broken_train_images_cost_their_samples_up_to_the_budget(
    make_spec: MakeSpec, image_folder: Path
) -> None:
    for name in ("cat/0", "cat/4", "dog/3"):
        (image_folder / "train" / f"{name}.JPEG").write_bytes(b"not an image")
    with opened(make_spec(error_budget=0.25, per_device_batch=6)) as loader:
        for _ in range(2):
            for epoch in range(4):
                assert [len(batch.images) for batch in loader.epoch(epoch)] == [6, 6]
        assert sorted(loader.undecodable) == [
            "train/cat/0.JPEG",
            "train/cat/4.JPEG",
            "train/dog/3.JPEG",
        ]
    with (
        opened(make_spec(error_budget=0.24, per_device_batch=6)) as loader,
        pytest.raises(DataError, match="3 of 12 train images cannot be decoded"),
    ):
        list(loader.epoch(0))


def test_quarantined_images_are_counted(make_spec: MakeSpec, image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "0.JPEG").write_bytes(b"not an image")
    quarantine.save(image_folder / "quarantine.json", {"train/cat/0.JPEG": "broken"})
    with opened(make_spec()) as loader:
        assert (loader.num_images, loader.num_quarantined) == (11, 1)
        assert len(list(loader.epoch(0))) == 3
        assert loader.undecodable == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_that_vanishes_ends_the_run_at_once(
    make_spec: MakeSpec, image_folder: Path, tmp_path: Path, name: str
) -> None:
    pack(image_folder, tmp_path / "packed", name)
    with opened(make_spec(path=str(tmp_path / "packed"), workers=1)) as loader:
        list(loader.epoch(0))
        shutil.rmtree(tmp_path / "packed")
        with pytest.raises(DataError, match=r"shard .* was removed or replaced"):
            list(loader.epoch(1))


def test_a_missing_data_set_is_said_at_opening(make_spec: MakeSpec, image_folder: Path) -> None:
    shutil.rmtree(image_folder)
    with pytest.raises(DataError, match="no data set at"):
        open_loader(make_spec())


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["none", "autoaugment"])
def test_worker_count_changes_nothing(make_spec: MakeSpec, augmentation: str) -> None:
    runs = []
    for workers in (0, 1, 2):
        with opened(make_spec(workers=workers, augmentation=augmentation)) as loader:
            runs.append([*loader.epoch(0), *loader.epoch(1), *loader.epoch(1, start_step=2)])
    for run in runs[1:]:
        assert_same(run, runs[0])


@pytest.mark.slow
def test_workers_start_once_survive_a_broken_epoch_and_end_with_close(make_spec: MakeSpec) -> None:
    with opened(make_spec()) as loader:
        expected = list(loader.epoch(1))
    before = set(multiprocessing.active_children())
    with opened(make_spec(workers=2)) as loader:
        abandoned = loader.epoch(0)
        next(abandoned)
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        assert_same(list(loader.epoch(1)), expected)
        assert set(multiprocessing.active_children()) - before == workers
        next(loader.epoch(2))
    assert set(multiprocessing.active_children()) == before
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_undecodable_image_crosses_the_process_boundary_as_one_line(
    make_spec: MakeSpec, image_folder: Path
) -> None:
    bad = image_folder / "val" / "dog" / "0.JPEG"
    bad.write_bytes(b"not an image")
    with opened(make_spec(split="val", workers=1)) as loader:
        with pytest.raises(DataError) as caught:
            list(loader.epoch(0))
        assert caught.value.message.startswith(f"cannot decode {bad}: ")
        assert "Traceback" not in caught.value.message
        # The workers are still good.
        shutil.copy(image_folder / "val" / "dog" / "1.JPEG", bad)
        assert len(list(loader.epoch(0))) == 2


@pytest.mark.slow
def test_stop_signals_to_the_whole_job_leave_the_workers_running(make_spec: MakeSpec) -> None:
    """Slurm and torchrun signal every process; the last step before saving still needs data."""
    with opened(make_spec()) as loader:
        expected = list(loader.epoch(0))
    before = set(multiprocessing.active_children())
    with opened(make_spec(workers=1, prefetch=1)) as loader:
        epoch = loader.epoch(0)
        batches = [next(epoch)]
        for worker in set(multiprocessing.active_children()) - before:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(worker.pid or 0, number)
        assert_same([*batches, *epoch], expected)


@pytest.mark.slow
@pytest.mark.parametrize("between_epochs", [False, True])
def test_a_dead_worker_is_one_line(make_spec: MakeSpec, between_epochs: bool) -> None:
    before = set(multiprocessing.active_children())
    with opened(make_spec(workers=1, prefetch=1)) as loader:
        epoch = loader.epoch(0)
        next(epoch)
        if between_epochs:
            list(epoch)
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(DataError, match=r"loader process died.*--ipc=host"):
            list(loader.epoch(1) if between_epochs else epoch)
    assert set(multiprocessing.active_children()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [("pass", 0), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exit", "SIGKILL"],
)
def test_no_process_outlives_the_training_process(
    image_folder: Path, tmp_path: Path, ending: str, status: int
) -> None:
    script = tmp_path / "midway.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, os, signal
            import torch  # a torch object pickled by its name would be looked for here
            from image_classification.config.schema import DataConfig
            from image_classification.data.loaders.protocol import LoaderSpec, open_loader

            if __name__ == "__main__":
                data = DataConfig(path={str(image_folder)!r}, image_size=24, resize=28, workers=2)
                spec = LoaderSpec(data, "train", 2, 1, 2, 0, 1, 0, "cpu", "nchw")
                loader = open_loader(spec)
                epoch = loader.epoch(0)
                next(epoch)
                pids = [child.pid for child in multiprocessing.active_children()]
                print(*pids, flush=True)
                {ending}
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    if status == 0:
        assert done.stderr == ""  # killed, Python's resource tracker says what it cleans up
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_a_batch_lost_with_its_worker_is_the_same_line(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may die between announcing a batch and handing over its shared memory."""

    class Gone:
        processes = ()

        def any_dead(self) -> bool:
            return True

        def end(self) -> None:
            pass

    def refused() -> Iterator[HostBatch]:
        raise ConnectionRefusedError(111, "Connection refused")
        yield

    with opened(make_spec(workers=0)) as loader:
        monkeypatch.setattr(loader, "_guard", Gone())
        with pytest.raises(DataError, match="loader process died"):
            next(loader._checked(refused()))


def test_another_failure_to_read_is_not_taken_for_a_dead_worker(make_spec: MakeSpec) -> None:
    def broken() -> Iterator[HostBatch]:
        raise ConnectionRefusedError(111, "Connection refused")
        yield

    with opened(make_spec(workers=0)) as loader, pytest.raises(ConnectionRefusedError):
        next(loader._checked(broken()))
