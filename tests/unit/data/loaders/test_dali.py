"""The DALI backends on a machine without a GPU: parity, broken images, threads, refusals."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as pil_transforms

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError, DataError
from image_classification.core.types import Batch
from image_classification.data.formats.folder import open_index
from image_classification.data.loaders.dali_samples import Sample, SampleWork
from image_classification.data.loaders.protocol import Loader, LoaderSpec, open_loader
from image_classification.data.transforms import CropBox, eval_transform, train_transform

pytest.importorskip("nvidia.dali")

CLASSES = 4
PER_SPLIT = 16
Make = Callable[..., LoaderSpec]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cuts of two photographs as JPEGs of all usual qualities and colour samplings."""
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


def spec_of(
    root: Path, backend: str = "dali-cpu", split: str = "train", **data: object
) -> LoaderSpec:
    values: dict[str, object] = {
        "image_size": 64,
        "resize": 72,
        "workers": 0,
        # Normalised values are the pixels themselves.
        "mean": (0.0, 0.0, 0.0),
        "std": (1 / 255, 1 / 255, 1 / 255),
        **data,
    }
    return LoaderSpec(
        data=DataConfig(path=str(root), backend=backend, **values),  # type: ignore[arg-type]
        split=split,
        per_device_batch=4,
        accumulation=1,
        num_classes=CLASSES,
        rank=0,
        world_size=1,
        seed=5,
        device="cpu",
        memory_format="nchw",
    )


def epoch_of(spec: LoaderSpec) -> list[Batch]:
    loader = open_loader(spec)
    try:
        return list(loader.epoch(0))
    finally:
        loader.close()


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
    mine = pixels_of(spec_of(photographs, split=split, **data))
    assert len(mine) == PER_SPLIT
    assert torch.equal(mine, pixels_of(spec_of(photographs, "pytorch", split, **data)))


def test_validation_is_that_of_pil(photographs: Path) -> None:
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


def test_dali_gets_every_usual_jpeg(photographs: Path) -> None:
    index = open_index(photographs, "train", CLASSES)
    work = SampleWork(index, train_transform(DataConfig()), seed=0)
    samples = [Sample(i, i) for i in range(PER_SPLIT)]
    work.prepare(0, samples)
    assert all(s.content is not None and s.decoded is None and not s.lost for s in samples)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("data", [v for v in VARIANTS[:5] if v != VARIANTS[3]], ids=str)
def test_the_graph_for_the_gpu_resamples_alike(
    photographs: Path, split: str, data: dict[str, object]
) -> None:
    """DALI's own resize, which dali-gpu uses, run on the CPU: within a fifth of one of 255."""
    from image_classification.data.loaders.dali_decoder import DaliDecoder, Resample

    config = DataConfig(**data)  # type: ignore[arg-type]
    index = open_index(photographs, split, CLASSES)
    transform = train_transform(config) if split == "train" else eval_transform(config)
    work = SampleWork(index, transform, seed=1)
    samples = [Sample(i, i) for i in range(PER_SPLIT)]
    work.prepare(0, samples)
    assert split == "val" or {s.is_flipped for s in samples} == {False, True}
    decoder = DaliDecoder(PER_SPLIT, 1, None, None)
    decoder.submit([work.cut(s) for s in samples])
    parts = decoder.collect().images
    wanted = torch.stack([work.finish(s, p) for s, p in zip(samples, parts, strict=True)])
    resample = Resample(config.image_size, config.interpolation, config.antialias)
    decoder = DaliDecoder(PER_SPLIT, 1, resample, None)
    decoder.submit([work.cut(s) for s in samples])
    found = decoder.collect().together
    assert found is not None and found.shape == (PER_SPLIT, 224, 224, 3)
    difference = (found.permute(0, 3, 1, 2).float() - wanted.float()).abs()
    assert difference.mean() < 0.2
    assert difference.quantile(0.999) <= 2


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_threads_changes_nothing(photographs: Path, workers: int) -> None:
    mine = pixels_of(spec_of(photographs, workers=workers, prefetch=workers))
    assert torch.equal(mine, pixels_of(spec_of(photographs)))


def test_an_image_dali_cannot_decode_costs_only_itself(photographs: Path) -> None:
    from image_classification.data.loaders.dali_decoder import DaliDecoder
    from image_classification.data.loaders.dali_samples import Cut

    good = [np.fromfile(file, np.uint8) for file in sorted(photographs.glob("val/0/*.jpg"))]
    broken = np.frombuffer(b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9", np.uint8)
    box, whole = CropBox(3, 5, 40, 50), (0.0, 0.0, 40.0, 50.0)
    decoder = DaliDecoder(4, 1, None, None)
    decoder.submit([Cut(content, box, whole) for content in good[:3]])
    wanted = decoder.collect().images
    decoder.submit([Cut(content, box, whole) for content in (good[0], broken, *good[1:3])])
    found = decoder.collect().images
    assert [image is None for image in found] == [False, True, False, False]
    kept = [image for image in found if image is not None]
    for image, other in zip(kept, wanted, strict=True):
        assert other is not None and torch.equal(image, other)
    decoder.submit([])
    assert decoder.collect().images == []


def test_the_batch_behind_one_that_dali_cannot_decode_is_whole(photographs: Path) -> None:
    from image_classification.data.loaders.dali_decoder import DaliDecoder
    from image_classification.data.loaders.dali_samples import Cut

    good = [np.fromfile(file, np.uint8) for file in sorted(photographs.glob("val/0/*.jpg"))][:3]
    broken = np.frombuffer(b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9", np.uint8)
    box, whole = CropBox(3, 5, 40, 50), (0.0, 0.0, 40.0, 50.0)
    decoder = DaliDecoder(4, 1, None, None)
    decoder.submit([Cut(content, box, whole) for content in good])
    decoder.submit([Cut(broken, box, whole)])
    wanted = decoder.collect().images
    decoder.submit([Cut(content, box, whole) for content in good])
    assert decoder.num_running == 2
    assert decoder.collect().images == [None]
    for image, other in zip(decoder.collect().images, wanted, strict=True):
        assert image is not None and other is not None and torch.equal(image, other)


@pytest.fixture
def damaged(photographs: Path, tmp_path: Path) -> Path:
    """The photographs with a truncated, an empty and a text file among the train images."""
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    files = sorted((root / "train").glob("*/*.jpg"))
    files[1].write_bytes(files[1].read_bytes()[:700])
    files[6].write_bytes(b"")
    files[9].write_text("no image\n")
    # Passes for a whole JPEG until it is decoded.
    content = files[12].read_bytes()
    files[12].write_bytes(content[:400] + b"\xff\xd9")
    # And one of the wrong name, which is none the worse for it.
    Image.fromarray(np.full((80, 90, 3), 99, np.uint8)).save(files[14], format="PNG")
    return root


def test_broken_train_images_are_lost_as_in_the_pytorch_backend(damaged: Path) -> None:
    lost, batches = {}, {}
    for backend in ("dali-cpu", "pytorch"):
        loader: Loader = open_loader(spec_of(damaged, backend, error_budget=0.5))
        batches[backend] = list(loader.epoch(0))
        lost[backend] = dict(loader.undecodable)
        loader.close()
    assert len(lost["pytorch"]) >= 3
    assert lost["dali-cpu"] == lost["pytorch"]
    for mine, other in zip(batches["dali-cpu"], batches["pytorch"], strict=True):
        assert torch.equal(mine.images, other.images)
        assert torch.equal(mine.labels, other.labels)


def test_the_error_budget_ends_the_epoch(damaged: Path) -> None:
    with pytest.raises(DataError, match="error_budget"):
        epoch_of(spec_of(damaged, error_budget=0.1))


def test_a_broken_validation_image_is_named(photographs: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "images"
    shutil.copytree(photographs, root)
    file = sorted((root / "val").glob("*/*.jpg"))[5]
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=file.name):
        epoch_of(spec_of(root, split="val"))


def test_a_folder_that_vanishes_is_an_error_and_no_hang(photographs: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "images"
    shutil.copytree(photographs, root)
    loader = open_loader(spec_of(root, error_budget=1.0))
    shutil.rmtree(root)
    with pytest.raises(DataError, match="has gone"):
        list(loader.epoch(0))
    loader.close()


def test_close_ends_every_thread(photographs: Path) -> None:
    before = set(threading.enumerate())
    loader = open_loader(spec_of(photographs, workers=2))
    next(loader.epoch(0))
    assert set(threading.enumerate()) - before
    loader.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("before", "after"), [(None, "1M"), ("64k", "64k")])
def test_dali_keeps_a_pool_unless_told_otherwise(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv("DALI_MALLOC_POOL_THRESHOLD", "")  # so that it is put back at the end
    monkeypatch.delenv("DALI_MALLOC_POOL_THRESHOLD")
    if before is not None:
        monkeypatch.setenv("DALI_MALLOC_POOL_THRESHOLD", before)
    loader = open_loader(spec_of(photographs))
    loader.close()
    assert os.environ["DALI_MALLOC_POOL_THRESHOLD"] == after


def test_loaders_leave_torchs_number_of_threads_alone(photographs: Path) -> None:
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
