"""The DALI backends on a machine without a GPU: pixels, broken images, threads, refusals."""

import os
import shutil
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as pil_transforms

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.loaders.dali import BackgroundIterator, use_one_torch_thread
from image_classification.data.loaders.dali_decode import (
    Cut,
    DaliDecoder,
    HostSteps,
    Resample,
    Sample,
)
from image_classification.data.loaders.protocol import LoaderSpec, open_loader
from image_classification.data.transforms import CropBox, image_transform
from tests.support.loaders import RAW_PIXELS, assert_same_batches, epoch_of, loader_spec, opened

pytest.importorskip("nvidia.dali")

CLASSES = 4
PER_SPLIT = 16


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photographs as JPEGs of common qualities and color samplings."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for split in ("train", "val"):
        for i in range(PER_SPLIT):
            width, height = int(random.integers(90, 400)), int(random.integers(90, 400))
            left, top = (
                int(random.integers(0, 641 - width)),
                int(random.integers(0, 428 - height)),
            )
            target = root / split / f"{i % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            cut = sources[i % 2].crop((left, top, left + width, top + height))
            quality, subsampling = (75, 90, 95)[i % 3], (0, 1, 2)[i % 3]
            cut.save(
                target / f"{i:02d}.jpg",
                quality=quality,
                subsampling=subsampling,
                progressive=i % 5 == 0,
            )
    return root


def spec_of(root: Path, backend: str = "dali-cpu", **changes: object) -> LoaderSpec:
    values = {"image_size": 64, "resize": 72, "per_device_batch": 4, "num_classes": CLASSES}
    return loader_spec(root, **{"backend": backend, **RAW_PIXELS, **values, **changes})


def pixels_of(spec: LoaderSpec) -> torch.Tensor:
    return torch.cat([batch.images for batch in epoch_of(spec)])


VARIANTS = [
    {},
    {"antialias": False},
    {"interpolation": "bicubic"},
    {"interpolation": "nearest"},
    {"resize_mode": "squash"},
    {"augmentation": "randaugment", "random_erasing": 0.5, "colour_jitter_hue": 0.1},
]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("data", VARIANTS, ids=str)
def test_pixels_are_those_of_the_pytorch_backend(
    photographs: Path, split: str, data: dict[str, object]
) -> None:
    """Both decode with libjpeg-turbo and resample with one kernel, so the bits are equal."""
    pixels = pixels_of(spec_of(photographs, split=split, **data))
    assert len(pixels) == PER_SPLIT
    assert torch.equal(pixels, pixels_of(spec_of(photographs, "pytorch", split=split, **data)))


def test_validation_pixels_are_those_of_pil(photographs: Path) -> None:
    """Measured on these files: 0.015 of 255 on average, never more than 1."""
    steps = pil_transforms.Compose(
        [
            pil_transforms.Resize(72),
            pil_transforms.CenterCrop(64),
            pil_transforms.PILToTensor(),
        ]
    )
    files = sorted((photographs / "val").glob("*/*.jpg"))
    wanted = torch.stack([steps(Image.open(file)) for file in files]).float()
    difference = (pixels_of(spec_of(photographs, split="val")) - wanted).abs()
    assert difference.mean() < 0.03
    assert difference.max() <= 1


def prepared(photographs: Path, split: str, **data: object) -> tuple[HostSteps, list[Sample]]:
    transform = image_transform(DataConfig(**data), split)  # type: ignore[arg-type]
    steps = HostSteps(open_index(photographs, split, CLASSES), transform, seed=1)
    samples = [Sample(i, i) for i in range(PER_SPLIT)]
    steps.prepare(0, samples)
    return steps, samples


def test_dali_gets_every_common_jpeg(photographs: Path) -> None:
    _, samples = prepared(photographs, "train")
    assert all(s.content is not None and s.decoded is None and not s.error for s in samples)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("data", [v for v in VARIANTS[:5] if v != VARIANTS[3]], ids=str)
def test_the_graph_for_the_gpu_resizes_alike(
    photographs: Path, split: str, data: dict[str, object]
) -> None:
    """DALI's own resize, which dali-gpu uses, run on the CPU: within a fifth of one of 255."""
    config = DataConfig(**data)  # type: ignore[arg-type]
    steps, samples = prepared(photographs, split, **data)
    assert split == "val" or {s.is_flipped for s in samples} == {False, True}
    decoder = DaliDecoder(PER_SPLIT, 1, None, None)
    decoder.submit([steps.cut(s) for s in samples])
    parts = decoder.collect().images
    expected = torch.stack([steps.finish(s, p) for s, p in zip(samples, parts, strict=True)])
    resample = Resample(config.image_size, config.interpolation, config.antialias)
    decoder = DaliDecoder(PER_SPLIT, 1, resample, None)
    decoder.submit([steps.cut(s) for s in samples])
    found = decoder.collect().together
    assert found is not None and found.shape == (PER_SPLIT, 224, 224, 3)
    difference = (found.permute(0, 3, 1, 2).float() - expected.float()).abs()
    assert difference.mean() < 0.2
    assert difference.quantile(0.999) <= 2


BROKEN = np.frombuffer(b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9", np.uint8)


def cuts_of(*contents: np.ndarray) -> list[Cut]:
    box, source = CropBox(3, 5, 40, 50), (0.0, 0.0, 40.0, 50.0)
    return [Cut(content, box, source) for content in contents]


@pytest.fixture
def good(photographs: Path) -> list[np.ndarray]:
    """Three JPEGs."""
    return [np.fromfile(file, np.uint8) for file in sorted(photographs.glob("val/0/*.jpg"))][:3]


def test_what_dali_cannot_decode_is_none_and_spares_the_rest(good: list[np.ndarray]) -> None:
    decoder = DaliDecoder(4, 1, None, None)
    decoder.submit(cuts_of(*good))
    expected = decoder.collect().images
    decoder.submit(cuts_of(good[0], BROKEN, *good[1:]))
    first, broken, *others = decoder.collect().images
    assert broken is None
    for image, other in zip([first, *others], expected, strict=True):
        assert image is not None and other is not None and torch.equal(image, other)
    decoder.submit([])
    assert decoder.collect().images == []


def test_the_batch_after_one_that_dali_cannot_decode_is_complete(good: list[np.ndarray]) -> None:
    decoder = DaliDecoder(4, 1, None, None)
    decoder.submit(cuts_of(*good))
    decoder.submit(cuts_of(BROKEN))
    expected = decoder.collect().images
    decoder.submit(cuts_of(*good))
    assert decoder.num_running == 2
    assert decoder.collect().images == [None]
    for image, other in zip(decoder.collect().images, expected, strict=True):
        assert image is not None and other is not None and torch.equal(image, other)


@pytest.fixture
def damaged(photographs: Path, tmp_path: Path) -> Path:
    """The photographs with a truncated, an empty and a text file among the train images."""
    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    files = sorted((root / "train").glob("*/*.jpg"))
    files[1].write_bytes(files[1].read_bytes()[:700])
    files[6].write_bytes(b"")
    files[9].write_text("no image\n")
    # Looks like a complete JPEG until it is decoded.
    content = files[12].read_bytes()
    files[12].write_bytes(content[:400] + b"\xff\xd9")
    # A PNG called .jpg is decoded all the same.
    Image.fromarray(np.full((80, 90, 3), 99, np.uint8)).save(files[14], format="PNG")
    return root


def test_undecodable_train_images_are_those_of_the_pytorch_backend(damaged: Path) -> None:
    lost, batches = {}, {}
    for backend in ("dali-cpu", "pytorch"):
        with opened(spec_of(damaged, backend, error_budget=0.5)) as loader:
            batches[backend] = list(loader.epoch(0))
            lost[backend] = dict(loader.undecodable)
    assert len(lost["pytorch"]) >= 3
    assert lost["dali-cpu"] == lost["pytorch"]
    assert_same_batches(batches["dali-cpu"], batches["pytorch"])


def test_the_error_budget_ends_the_epoch(damaged: Path) -> None:
    with pytest.raises(DataError, match="error_budget"):
        epoch_of(spec_of(damaged, error_budget=0.1))


def test_a_broken_validation_image_is_named(photographs: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(photographs, root)
    file = sorted((root / "val").glob("*/*.jpg"))[5]
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=file.name):
        epoch_of(spec_of(root, split="val"))


def test_a_removed_folder_is_an_error(photographs: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(photographs, root)
    with opened(spec_of(root, error_budget=1.0)) as loader:
        shutil.rmtree(root)
        with pytest.raises(DataError, match="has gone"):
            list(loader.epoch(0))


def test_close_ends_every_thread(photographs: Path) -> None:
    before = set(threading.enumerate())
    loader = open_loader(spec_of(photographs, workers=2))
    next(loader.epoch(0))
    assert set(threading.enumerate()) - before
    loader.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("before", "after"), [(None, "1M"), ("64k", "64k")])
def test_dali_has_a_memory_pool_unless_the_environment_sets_one(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv("DALI_MALLOC_POOL_THRESHOLD", "")  # so that pytest restores it
    monkeypatch.delenv("DALI_MALLOC_POOL_THRESHOLD")
    if before is not None:
        monkeypatch.setenv("DALI_MALLOC_POOL_THRESHOLD", before)
    with opened(spec_of(photographs)):
        pass
    assert os.environ["DALI_MALLOC_POOL_THRESHOLD"] == after


def test_loaders_do_not_change_torchs_number_of_threads(photographs: Path) -> None:
    before = torch.get_num_threads()
    epoch_of(spec_of(photographs, workers=2))
    assert torch.get_num_threads() == before


def test_without_dali_the_extra_is_named(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"pip install 'image-classification\[dali\]'"):
        open_loader(spec_of(photographs))


def test_dali_gpu_needs_a_gpu(photographs: Path) -> None:
    with pytest.raises(ConfigError, match="use --data-backend dali-cpu"):
        open_loader(spec_of(photographs, "dali-gpu"))


def test_a_background_iterator_keeps_the_order_and_ends_once() -> None:
    running = BackgroundIterator((i for i in range(20)), depth=3)
    assert list(running) == list(range(20))
    assert list(running) == []


def test_a_background_iterator_draws_depth_items_ahead() -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Generator[int, None, None]:
        for i in range(10):
            made.append(i)
            if i == 2:  # two wait in the queue, this one for a place
                reached.set()
            yield i

    running = BackgroundIterator(items(), depth=2)
    assert reached.wait(10)
    assert made == [0, 1, 2]
    assert next(running) == 0
    running.stop()


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    running = BackgroundIterator(items(), depth=4)
    assert next(running) == 1
    with pytest.raises(ValueError, match="broken"):
        next(running)
    assert list(running) == []


def test_stop_closes_the_items_and_may_be_called_twice() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    running = BackgroundIterator(items(), depth=1)
    assert next(running) == 0
    running.stop()
    running.stop()
    assert closed.is_set()
    assert threading.active_count() == before
    assert list(running) == []


def test_one_torch_thread_is_a_setting_of_the_calling_thread_alone() -> None:
    def number_in_a_new_thread(limit: bool) -> int:
        numbers: list[int] = []

        def note() -> None:
            if limit:
                use_one_torch_thread()
            numbers.append(torch.get_num_threads())

        thread = threading.Thread(target=note)
        thread.start()
        thread.join()
        return numbers[0]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert number_in_a_new_thread(limit=True) == 1
        assert torch.get_num_threads() == 3
        assert number_in_a_new_thread(limit=False) == 3
    finally:
        torch.set_num_threads(before)
