"""The DALI backends on a machine without a GPU: pixels, broken images, threads, refusals."""

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torchvision import transforms as pil_transforms

from image_classification.config.schema import DataConfig
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.split import SplitRule
from image_classification.data.loaders import LoaderSpec, open_loader
from image_classification.data.loaders.dali import use_one_torch_thread
from image_classification.data.loaders.dali_decode import (
    DaliDecoder,
    HostSteps,
    Sample,
)
from image_classification.data.loaders.device_prefetch import normalization, normalize
from image_classification.data.tools.demo import write_demo
from image_classification.data.transforms import CropBox
from tests.support.loaders import (
    DATA,
    RAW_PIXELS,
    assert_same_batches,
    epoch_of,
    loader_spec,
    opened,
)

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


def spec_of(root: Path, backend: str = "dali-cpu", **changes: Any) -> LoaderSpec:
    values = {"image_size": 64, "resize": 72, "per_device_batch": 4, "num_classes": CLASSES}
    return loader_spec(root, **{"backend": backend, **RAW_PIXELS, **values, **changes})


def pixels_of(spec: LoaderSpec) -> torch.Tensor:
    return torch.cat([batch.images for batch in epoch_of(spec)])


VARIANTS: list[dict[str, Any]] = [
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
    photographs: Path, split: str, data: dict[str, Any]
) -> None:
    """Both decode with libjpeg-turbo and resample with one kernel, so the bits are equal."""
    pixels = pixels_of(spec_of(photographs, split=split, **data))
    assert len(pixels) == PER_SPLIT
    assert torch.equal(pixels, pixels_of(spec_of(photographs, "pytorch", split=split, **data)))


@pytest.fixture(scope="module")
def phone_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with JPEGs in all eight EXIF orientations, and every other format."""
    root = tmp_path_factory.mktemp("phone")
    source = Image.fromarray(load_sample_images().images[0])
    rng = np.random.default_rng(0)
    for i in range(16):
        left, top = int(rng.integers(0, 400)), int(rng.integers(0, 200))
        cut = source.crop((left, top, left + 150, top + 100))
        exif = Image.Exif()
        exif[0x0112] = i % 8 + 1
        (root / f"{i % CLASSES}").mkdir(exist_ok=True)
        cut.save(root / f"{i % CLASSES}" / f"{i:02d}.jpg", quality=90, exif=exif)
    for i, (name, mode) in enumerate(
        [("webp", "RGB"), ("bmp", "P"), ("tiff", "CMYK"), ("gif", "P"), ("png", "RGBA")]
    ):
        file_format = {"jpg": "JPEG"}.get(name, name.upper())
        source.crop((i, i, 90 + i, 120 + i)).convert(mode).save(
            root / f"{i % CLASSES}" / f"other.{name}", file_format, exif=exif
        )
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("upright", [True, False])
def test_formats_and_exif_orientation_are_as_in_the_pytorch_backend(
    phone_photographs: Path, split: str, upright: bool
) -> None:
    settings: dict[str, Any] = {"split": split, "exif_orientation": upright, "val_fraction": 0.5}
    pixels = pixels_of(spec_of(phone_photographs, **settings))
    assert torch.equal(pixels, pixels_of(spec_of(phone_photographs, "pytorch", **settings)))


def test_photographs_stand_upright(phone_photographs: Path) -> None:
    """DALI itself turns the JPEGs: all of them are given to it."""
    spec = spec_of(
        phone_photographs, split="val", exif_orientation=True, val_fraction=1.0, per_device_batch=1
    )
    index = open_index(phone_photographs, "val", CLASSES, rule=SplitRule(1.0))
    steps = pil_transforms.Compose(
        [pil_transforms.Resize(72), pil_transforms.CenterCrop(64), pil_transforms.PILToTensor()]
    )
    compared = 0
    for row, pixels in enumerate(pixels_of(spec)):
        if index.name(row).endswith(".jpg"):
            with Image.open(index.where(row)) as image:
                wanted = steps(ImageOps.exif_transpose(image)).float()
            assert (pixels - wanted).abs().max() <= 1
            compared += 1
    assert compared == 16
    decoder = HostSteps(index, spec)
    samples = [Sample(row, row) for row in range(len(index))]
    decoder.prepare(0, samples)
    assert sum(sample.content is not None for sample in samples) == 16


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


def prepared(photographs: Path, split: str, **data: Any) -> tuple[HostSteps, list[Sample]]:
    spec = spec_of(
        photographs, split=split, **{"image_size": 224, "resize": 256, "seed": 1, **data}
    )
    steps = HostSteps(open_index(photographs, split, CLASSES), spec)
    samples = [Sample(i, i) for i in range(PER_SPLIT)]
    steps.prepare(0, samples)
    return steps, samples


def test_dali_gets_every_common_jpeg(photographs: Path) -> None:
    _, samples = prepared(photographs, "train")
    assert all(s.content is not None and s.decoded is None and not s.error for s in samples)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("data", [v for v in VARIANTS[:5] if v != VARIANTS[3]], ids=str)
def test_dalis_resize_is_close_to_torchvisions(
    photographs: Path, split: str, data: dict[str, Any]
) -> None:
    """DALI's own resize, which dali-gpu uses, run on the CPU: within a fifth of one of 255."""
    steps, samples = prepared(photographs, split, **data)
    assert split == "val" or {s.is_flipped for s in samples} == {False, True}
    config = spec_of(photographs, **{"image_size": 224, **data}).data
    decoder = DaliDecoder(config, PER_SPLIT, False, None)
    decoder.submit(samples)
    for sample, part in zip(samples, decoder.collect().images, strict=True):
        sample.part = part
    expected = torch.stack([steps.finish(sample) for sample in samples])
    decoder = DaliDecoder(config, PER_SPLIT, True, None)
    decoder.submit(samples)
    found = decoder.collect().together
    assert found is not None and found.shape == (PER_SPLIT, 224, 224, 3)
    difference = (found.permute(0, 3, 1, 2).float() - expected.float()).abs()
    assert difference.mean() < 0.2
    assert difference.quantile(0.999) <= 2


BROKEN = np.frombuffer(b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9", np.uint8)


def samples_of(*contents: npt.NDArray[np.uint8]) -> list[Sample]:
    return [Sample(0, 0, CropBox(3, 5, 40, 50), content=content) for content in contents]


@pytest.fixture
def good(photographs: Path) -> list[npt.NDArray[np.uint8]]:
    """Three JPEGs."""
    return [np.fromfile(file, np.uint8) for file in sorted(photographs.glob("val/0/*.jpg"))][:3]


def test_an_image_that_dali_cannot_decode_is_none_and_the_others_are_decoded(
    good: list[npt.NDArray[np.uint8]],
) -> None:
    decoder = DaliDecoder(DataConfig(workers=1), 4, False, None)
    decoder.submit(samples_of(*good))
    expected = decoder.collect().images
    decoder.submit(samples_of(good[0], BROKEN, *good[1:]))
    first, broken, *others = decoder.collect().images
    assert broken is None
    for image, other in zip([first, *others], expected, strict=True):
        assert image is not None and other is not None and torch.equal(image, other)
    decoder.submit([])
    assert decoder.collect().images == []


def test_the_batch_after_an_undecodable_one_is_complete(good: list[npt.NDArray[np.uint8]]) -> None:
    decoder = DaliDecoder(DataConfig(workers=1), 4, False, None)
    decoder.submit(samples_of(*good))
    decoder.submit(samples_of(BROKEN))
    expected = decoder.collect().images
    decoder.submit(samples_of(*good))
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


def test_a_removed_folder_raises_an_error(photographs: Path, tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"pip install 'imagenet-by-name\[dali\]'"):
        open_loader(spec_of(photographs))


def test_dali_gpu_needs_a_gpu(photographs: Path) -> None:
    with pytest.raises(ConfigError, match="use --data-backend dali-cpu"):
        open_loader(spec_of(photographs, "dali-gpu"))


def test_an_epoch_ends_when_another_starts_and_ends_its_thread(photographs: Path) -> None:
    with opened(spec_of(photographs, prefetch=1)) as loader:
        first = loader.epoch(0)
        next(first)
        before = threading.active_count()
        next(loader.epoch(1))
        assert threading.active_count() == before
        assert list(first) == []


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


def all_images(root: Path, backend: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of ``split`` under the validation transform, and their labels."""
    as_val = root.parent / f"{split}-as-val"
    as_val.mkdir(exist_ok=True)
    if not (as_val / "val").exists():
        (as_val / "val").symlink_to(root / split)
    spec = loader_spec(as_val, backend=backend, split="val", per_device_batch=99, num_classes=10)
    kept = [(b.images[b.valid], b.labels[b.valid]) for b in epoch_of(spec)]
    return torch.cat([images for images, _ in kept]), torch.cat([labels for _, labels in kept])


def from_dali_resize(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the validation images through the graph of dali-gpu, run on the CPU."""
    spec = loader_spec(root, split="val", num_classes=10)
    index = open_index(root, "val", 10)
    samples = [Sample(i, i) for i in range(len(index))]
    HostSteps(index, spec).prepare(0, samples)
    decoder = DaliDecoder(spec.data, len(samples), True, None)
    decoder.submit(samples)
    images = decoder.collect().together
    assert images is not None
    constants = normalization(spec.data.mean, spec.data.std, torch.device("cpu"))
    return normalize(images.permute(0, 3, 1, 2), *constants), torch.from_numpy(index.labels)


def from_pil(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    steps = pil_transforms.Compose(
        [
            pil_transforms.Resize(DATA["resize"]),
            pil_transforms.CenterCrop(DATA["image_size"]),
            pil_transforms.ToTensor(),
            pil_transforms.Normalize(DataConfig().mean, DataConfig().std),
        ]
    )
    files = sorted((root / "val").glob("*/*.jpg"))
    labels = torch.tensor([int(file.parent.name) for file in files])
    return torch.stack([steps(Image.open(file)) for file in files]), labels


def test_a_trained_model_has_the_same_accuracy_with_every_decoder(tmp_path: Path) -> None:
    """Softmax regression on the demo's digits, trained on the pytorch backend's images."""
    digits = write_demo(tmp_path / "digits")
    images, labels = all_images(digits, "pytorch", "train")
    model = torch.nn.Linear(images[0].numel(), 10)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images.flatten(1)), labels).backward()
        optimizer.step()
    sources = {
        "PIL": from_pil(digits),
        "pytorch": all_images(digits, "pytorch", "val"),
        "dali-cpu": all_images(digits, "dali-cpu", "val"),
        "DALI's resize": from_dali_resize(digits),
    }
    top1 = {
        name: 100 * (model(images.flatten(1)).argmax(1) == labels).double().mean().item()
        for name, (images, labels) in sources.items()
    }
    assert min(top1.values()) > 90
    assert max(top1.values()) - min(top1.values()) <= 0.3
