"""The PyTorch loader: micro-batches, worker processes, shared memory."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.loaders import LoaderSpec, open_loader, pytorch
from image_classification.data.loaders.device_prefetch import HostBatch
from image_classification.data.loaders.pytorch import (
    NO_SHARED_MEMORY,
    ImageBatches,
    TorchvisionLoader,
)
from image_classification.data.tools import quarantine
from image_classification.data.tools.pack import FORMATS, pack
from tests.support.loaders import assert_same_batches, epoch_of, loader_spec, opened

ROOT = Path(__file__).parents[4]
SMALL_SHM = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'

MakeSpec = Callable[..., LoaderSpec]


def test_an_epoch_does_not_use_torchs_global_generator(make_spec: MakeSpec) -> None:
    """Otherwise a resumed run, which starts fewer epochs, would draw other numbers."""
    before = torch.get_rng_state()
    with opened(make_spec(augmentation="autoaugment")) as loader:
        assert len(list(loader.epoch(0))) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_undecodable_train_images_are_replaced_up_to_the_budget(
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
    with pytest.raises(DataError, match="3 of 12 train images cannot be decoded"):
        epoch_of(make_spec(error_budget=0.24, per_device_batch=6))


def test_quarantined_images_are_counted(make_spec: MakeSpec, image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "0.JPEG").write_bytes(b"not an image")
    quarantine.save(image_folder / "quarantine.json", {"train/cat/0.JPEG": "broken"})
    with opened(make_spec()) as loader:
        assert (loader.num_images, loader.num_quarantined) == (11, 1)
        assert len(list(loader.epoch(0))) == 3
        assert loader.undecodable == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_removed_shard_ends_the_run(
    make_spec: MakeSpec, image_folder: Path, tmp_path: Path, name: str
) -> None:
    pack(image_folder, tmp_path / "packed", name)
    with opened(loader_spec(tmp_path / "packed", workers=1)) as loader:
        list(loader.epoch(0))
        shutil.rmtree(tmp_path / "packed")
        with pytest.raises(DataError, match=r"shard .* was removed or replaced"):
            list(loader.epoch(1))


def test_a_missing_data_set_is_an_error_at_opening(make_spec: MakeSpec, image_folder: Path) -> None:
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
        assert_same_batches(run, runs[0])


@pytest.mark.slow
def test_workers_start_once_and_end_with_close(make_spec: MakeSpec) -> None:
    expected = epoch_of(make_spec(), 1)
    before = set(multiprocessing.active_children())
    with opened(make_spec(workers=2)) as loader:
        abandoned = loader.epoch(0)
        next(abandoned)
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        assert_same_batches(list(loader.epoch(1)), expected)
        assert set(multiprocessing.active_children()) - before == workers
        next(loader.epoch(2))
    assert set(multiprocessing.active_children()) == before
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_an_undecodable_validation_image_raises_a_one_line_error(
    make_spec: MakeSpec, image_folder: Path
) -> None:
    bad = image_folder / "val" / "dog" / "0.JPEG"
    bad.write_bytes(b"not an image")
    with opened(make_spec(split="val", workers=1)) as loader:
        with pytest.raises(DataError) as caught:
            list(loader.epoch(0))
        assert caught.value.message.startswith(f"cannot decode {bad}: ")
        assert "Traceback" not in caught.value.message
        # The workers still run.
        shutil.copy(image_folder / "val" / "dog" / "1.JPEG", bad)
        assert len(list(loader.epoch(0))) == 2


@pytest.mark.slow
def test_stop_signals_to_the_whole_job_leave_the_workers_running(make_spec: MakeSpec) -> None:
    """Slurm and torchrun signal every process; the step before saving still needs data."""
    expected = epoch_of(make_spec())
    before = set(multiprocessing.active_children())
    with opened(make_spec(workers=1, prefetch=1)) as loader:
        epoch = loader.epoch(0)
        batches = [next(epoch)]
        for worker in set(multiprocessing.active_children()) - before:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(worker.pid or 0, number)
        assert_same_batches([*batches, *epoch], expected)


@pytest.mark.slow
def test_ctrl_c_while_the_workers_server_imports_torch_leaves_it_running() -> None:
    code = """
import os, signal, sys
from multiprocessing import forkserver
from image_classification.data.loaders.pytorch import worker_context
context = worker_context()
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)
process = context.Process(target=print, args=("started",))
process.start()
process.join()
sys.exit(process.exitcode)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("between_epochs", [False, True])
def test_a_dead_worker_raises_a_one_line_error(make_spec: MakeSpec, between_epochs: bool) -> None:
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


def test_a_batch_lost_with_its_worker_is_the_same_error(
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

    with opened(make_spec()) as loader:
        assert isinstance(loader, TorchvisionLoader)
        monkeypatch.setattr(loader, "_guard", Gone())
        with pytest.raises(DataError, match="loader process died"):
            next(loader._checked(refused()))


def test_other_errors_of_the_dataloader_are_not_changed(make_spec: MakeSpec) -> None:
    def broken() -> Iterator[HostBatch]:
        raise ConnectionRefusedError(111, "Connection refused")
        yield

    with opened(make_spec()) as loader, pytest.raises(ConnectionRefusedError):
        assert isinstance(loader, TorchvisionLoader)
        next(loader._checked(broken()))


def may_mount() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    command = ["unshare", "--mount", "sh", "-c", SMALL_SHM, "1m", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.faults(
    "/dev/shm is too small for one queue, or for one batch",
    "refused: `shared memory ran out …`",
)
@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "2m"], ids=["no queue fits", "no batch fits"])
def test_a_full_dev_shm_raises_a_one_line_error(
    image_folder: Path, tmp_path: Path, size: str
) -> None:
    if not may_mount():
        pytest.skip("mounting a small /dev/shm needs root and unshare")
    command = [sys.executable, str(ROOT / "launch.py"), str(image_folder), "--model=resnet18"]
    command += ["--precision=FP32", "--mode=benchmark_data", "--platform=CPU", "--num_classes=2"]
    command += ["--data-backend=pytorch", "--workers=2", "--image-size=512", "--batch-size=8"]
    command += ["--optimizer-batch-size=8", f"--workspace={tmp_path / 'run'}"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SMALL_SHM, size, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {NO_SHARED_MEMORY}" in done.stderr.splitlines()
    # Workers that only half started may print more.
    assert size == "64k" or "Traceback" not in done.stderr


def test_other_errors_of_sharing_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(RuntimeError, match="something else"):
        pytorch._share(HostBatch(torch.zeros(1), torch.zeros(1), torch.zeros(1)))


MakeBatches = Callable[..., ImageBatches]


@pytest.fixture
def make_batches(make_spec: MakeSpec, image_folder: Path) -> MakeBatches:
    def make(**changes: object) -> ImageBatches:
        spec = make_spec(**changes)
        return ImageBatches(open_index(image_folder, spec.split, 2), spec)

    return make


def images_of(batches: ImageBatches, epoch: int, *indices: int) -> torch.Tensor:
    batch = batches[(epoch, np.array(indices, dtype=np.int64))]
    assert batch.error == ""
    return batch.images


@pytest.mark.parametrize("augmentation", ["none", "autoaugment"])
def test_pixels_depend_only_on_seed_epoch_and_index(
    make_batches: MakeBatches, augmentation: str
) -> None:
    batches = make_batches(augmentation=augmentation)
    image = images_of(batches, 3, 5)[0]
    torch.manual_seed(1234)
    assert torch.equal(images_of(batches, 3, 1, 5, 2)[1], image)
    assert torch.equal(images_of(make_batches(augmentation=augmentation), 3, 5)[0], image)
    assert not torch.equal(images_of(batches, 4, 5)[0], image)
    assert not torch.equal(images_of(make_batches(seed=1, augmentation=augmentation), 3, 5), image)


def test_autoaugment_does_not_use_torchs_global_generator(
    make_batches: MakeBatches,
) -> None:
    plain, augmented = make_batches(), make_batches(augmentation="autoaugment")
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    changed = images_of(augmented, 0, *range(12)) != images_of(plain, 0, *range(12))
    assert torch.equal(torch.rand(4), expected)
    assert int(changed.flatten(1).any(1).sum()) >= 6


def test_flips_happen_with_hflip_prob(make_batches: MakeBatches) -> None:
    def whole(hflip_prob: float) -> torch.Tensor:
        batches = make_batches(hflip_prob=hflip_prob)
        return torch.cat([images_of(batches, epoch, *range(12)) for epoch in range(20)])

    never, always, half = whole(0.0), whole(1.0), whole(0.5)
    assert torch.equal(always, never.flip(-1))
    flipped = (half == always).flatten(1).all(1)
    assert torch.equal(half[~flipped], never[~flipped])
    assert 90 <= int(flipped.sum()) <= 150  # 120 expected, standard deviation 7.7


def test_an_undecodable_train_image_is_replaced_by_the_next(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    request = (0, np.array([2, 8, 9, 3], dtype=np.int64))
    whole = make_batches()[request]
    (image_folder / "train" / "dog" / "1.JPEG").write_bytes(b"not an image")
    (image_folder / "train" / "dog" / "2.JPEG").write_bytes(b"")
    batch = make_batches()[request]
    assert batch.error == ""
    assert torch.equal(batch.images, whole.images[[0, 3, 3, 3]])
    assert batch.labels.tolist() == [0, 0, 0, 0]
    assert bool(batch.valid.all())
    names = [name for name, _ in batch.undecodable]
    assert names == ["train/dog/1.JPEG", "train/dog/2.JPEG"]
    assert all(str(image_folder / name) in reason for name, reason in batch.undecodable)


def test_a_micro_batch_without_a_decoded_image_is_an_error(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    (image_folder / "train" / "dog" / "1.JPEG").write_bytes(b"not an image")
    batch = make_batches()[(0, np.array([8], dtype=np.int64))]
    assert "no image of a micro-batch of 1" in batch.error
    assert "dog/1.JPEG" in batch.error


def test_an_undecodable_validation_image_is_an_error(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    (image_folder / "val" / "dog" / "1.JPEG").write_bytes(b"not an image")
    batch = make_batches(split="val")[(0, np.arange(5, dtype=np.int64))]
    assert batch.error.startswith(f"cannot decode {image_folder / 'val' / 'dog' / '1.JPEG'}: ")
    assert batch.undecodable == ()


def test_a_removed_data_set_is_an_error(make_batches: MakeBatches, image_folder: Path) -> None:
    batches = make_batches()
    (image_folder / "train").rename(image_folder / "elsewhere")
    assert "has gone" in batches[(0, np.array([1, 2], dtype=np.int64))].error


def test_batches_can_be_pickled(make_batches: MakeBatches) -> None:
    batches = make_batches()
    expected = images_of(batches, 0, 3, 9)
    copy = pickle.loads(pickle.dumps(batches))
    assert torch.equal(images_of(copy, 0, 3, 9), expected)


# Content that cannot be pickled fails in the queue's own thread, as too many open files would.
LOST_BATCH = """
import multiprocessing, time
from image_classification.data.loaders.pytorch import init_worker

def work(queue):
    init_worker(0)
    queue.put(lambda: "a batch")
    time.sleep(60)

context = multiprocessing.get_context("fork")
process = context.Process(target=work, args=(context.Queue(),))
process.start()
process.join(30)
print(process.exitcode)
process.kill()
"""
MIDWAY = """
import multiprocessing, os, signal
import torch  # __main__ has torch: a torch object pickled by its name would be looked up here
from image_classification.data.loaders import open_loader
from tests.support.loaders import loader_spec

if __name__ == "__main__":
    epoch = open_loader(loader_spec({folder!r}, workers=2)).epoch(0)
    next(epoch)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {ending}
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=180
    )


def test_a_process_that_cannot_send_a_batch_ends_with_one_line() -> None:
    done = run("-c", LOST_BATCH)
    assert done.stdout == "1\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("a loader process cannot send its batch: ")


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
    script.write_text(textwrap.dedent(MIDWAY.format(folder=str(image_folder), ending=ending)))
    done = run(str(script))
    assert done.returncode == status
    if status == 0:
        assert done.stderr == ""  # after SIGKILL, Python's resource tracker reports what it cleans
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
