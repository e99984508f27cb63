"""A model trained on the demo data is as good through each decoder and resampler."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms as pil_transforms
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from image_classification.config.resolve import resolve
from image_classification.config.schema import DataConfig
from image_classification.core.types import WorldInfo
from image_classification.data.formats.folder import open_index
from image_classification.data.loaders.dali_decode import HostSteps, Sample
from image_classification.data.loaders.decode import resized_crop
from image_classification.data.loaders.protocol import LoaderSpec, open_loader
from image_classification.data.tools.demo import write_demo
from image_classification.data.transforms import (
    CropBox,
    TrainTransform,
    eval_transform,
    train_transform,
)
from image_classification.devices.accelerator import get_accelerator
from image_classification.engine.build import build_training
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train

SIZE = {"image_size": 24, "resize": 28}
Split = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "digits")


def from_backend(root: Path, backend: str, split: str) -> Split:
    """All images of ``split`` under the validation transform, and their labels."""
    as_val = root.parent / f"{split}-as-val"
    if not as_val.exists():
        as_val.mkdir()
        (as_val / "val").symlink_to(root / split)
    loader = open_loader(
        LoaderSpec(
            data=DataConfig(path=str(as_val), backend=backend, workers=0, **SIZE),
            split="val",
            per_device_batch=128,
            accumulation=1,
            num_classes=10,
            rank=0,
            world_size=1,
            seed=0,
            device="cpu",
            memory_format="nchw",
        )
    )
    try:
        batches = list(loader.epoch(0))
    finally:
        loader.close()
    kept = [(b.images[b.valid], b.labels[b.valid]) for b in batches]
    return torch.cat([k[0] for k in kept]), torch.cat([k[1] for k in kept])


def from_pil(root: Path, split: str) -> Split:
    steps = pil_transforms.Compose(
        [
            pil_transforms.Resize(SIZE["resize"]),
            pil_transforms.CenterCrop(SIZE["image_size"]),
            pil_transforms.PILToTensor(),
        ]
    )
    files = sorted((root / split).glob("*/*.jpg"))
    images = torch.stack([steps(Image.open(file)) for file in files])
    return _normalised(images), torch.tensor([int(file.parent.name) for file in files])


def from_dali_resize(root: Path, split: str) -> Split:
    """The graph of dali-gpu, run on the CPU."""
    decoder_module = pytest.importorskip("image_classification.data.loaders.dali_decode")
    config = DataConfig(**SIZE)
    index = open_index(root, split, 10)
    work = HostSteps(index, eval_transform(config), seed=0)
    samples = [Sample(i, i) for i in range(len(index))]
    work.prepare(0, samples)
    resample = decoder_module.Resample(config.image_size, config.interpolation, config.antialias)
    decoder = decoder_module.DaliDecoder(len(samples), 1, resample, None)
    decoder.submit([work.cut(sample) for sample in samples])
    images = decoder.collect().together.permute(0, 3, 1, 2)
    return _normalised(images), torch.from_numpy(index.labels)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    data = DataConfig()
    return ops.normalize(images.float() / 255, list(data.mean), list(data.std))


def trained(root: Path, workspace: Path) -> torch.nn.Module:
    """A resnet18 trained on the demo data for three epochs, in evaluation mode."""
    config = resolve(
        "resnet18",
        "FP32",
        "convergence",
        "CPU",
        data=str(root),
        overrides={
            **{f"data.{key}": value for key, value in SIZE.items()},
            "data.backend": "dali-cpu",
            "batch.per_device": 32,
            "batch.global": 32,
            "schedule.epochs": 3,
            "schedule.warmup_epochs": 1.0,
            "optim.lr": 0.05,
            "run.validate": False,
            "run.save_checkpoints": False,
            "run.workspace": str(workspace),
        },
    )
    accelerator = get_accelerator("cpu")
    run = build_training(Run(config, WorldInfo(), accelerator, accelerator.device(0), workspace))
    try:
        for _ in train(run, StopRequest()):
            pass
        return run.parts.model.eval()
    finally:
        run.close()


@torch.no_grad()
def top1(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent right."""
    logits = torch.cat([model(some) for some in images.split(128)])
    return 100 * float((logits.argmax(1) == labels).double().mean())


@pytest.mark.slow
def test_a_trained_model_is_as_good_whatever_decodes_its_images(
    digits: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali")
    sources = {
        "PIL": from_pil(digits, "val"),
        "pytorch": from_backend(digits, "pytorch", "val"),
        "dali-cpu": from_backend(digits, "dali-cpu", "val"),
        "DALI's resize": from_dali_resize(digits, "val"),
    }
    model = trained(digits, tmp_path)
    found = {name: top1(model, *split) for name, split in sources.items()}
    assert min(found.values()) > 90
    assert max(found.values()) - min(found.values()) <= 0.3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("box", [CropBox(3, 7, 60, 41), CropBox(0, 0, 90, 110)], ids=str)
def test_a_resized_crop_is_torchvisions(interpolation: str, antialias: bool, box: CropBox) -> None:
    config = DataConfig(interpolation=interpolation, antialias=antialias, image_size=32)
    transform: TrainTransform = train_transform(config)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (90, 110, 3), dtype=torch.uint8, generator=generator)
    for image in (pixels.permute(2, 0, 1), pixels.permute(2, 0, 1).contiguous()):
        wanted = ops.resized_crop(
            image,
            box.top,
            box.left,
            box.height,
            box.width,
            size=[32, 32],
            interpolation=InterpolationMode(interpolation),
            antialias=antialias,
        )
        assert torch.equal(resized_crop(image, box, transform), wanted)
