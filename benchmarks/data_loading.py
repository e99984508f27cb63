#!/usr/bin/env python3
"""Images a second out of a data loader on this machine's CPU: 224 px, training augmentation.

One generated set for all: 1,000 JPEGs of 500 x 375 pixels and ImageNet's mean file size, cut from
scikit-learn's two sample photographs with noise added, listed eight times over. Every contender
gets the same number of workers or threads, hands out batches of 128 normalised float32 images
cropped and flipped at random, and runs in a process of its own; the rounds alternate, and the
medians are compared. Nothing is trained, so the consumer's own time is nil.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, write_record

from image_classification.config.schema import DataConfig
from image_classification.data.loaders import Loader, LoaderSpec, open_loader

IMAGES = 1000
LISTED = 8
CLASSES = 10
WIDTH_PX, HEIGHT_PX = 500, 375
NOISE, QUALITY = 17.0, 90
IMAGE_SIZE_PX = 224
BATCH = 128
WARMUP_BATCHES = 12  # until every buffer of a loader has been used once
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_images(folder: Path) -> int:
    """Write the set as ``folder/train/<class>/<image>.jpg``; return the mean size in bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    total = 0
    for i in range(IMAGES):
        photograph = photographs[i % len(photographs)]
        width = int(random.integers(300, photograph.width))
        height = min(round(width * HEIGHT_PX / WIDTH_PX), photograph.height)
        left = int(random.integers(0, photograph.width - width + 1))
        top = int(random.integers(0, photograph.height - height + 1))
        cut = photograph.crop((left, top, left + width, top + height))
        scaled = cut.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        pixels = np.asarray(scaled) + random.normal(0, NOISE, (HEIGHT_PX, WIDTH_PX, 3))
        target = folder / "train" / f"{i % CLASSES:04d}"
        target.mkdir(parents=True, exist_ok=True)
        first = target / f"{i:04d}-0.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(first, quality=QUALITY)
        total += first.stat().st_size
        for copy in range(1, LISTED):
            os.link(first, target / f"{i:04d}-{copy}.jpg")
    return total // IMAGES


Batches = Iterable[Any]


def pil(folder: Path, workers: int) -> Batches:
    """torchvision's reference recipe: PIL images, transforms in DataLoader workers."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE_PX),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.utils.data.DataLoader(
        ImageFolder(str(folder / "train"), steps),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )


def timm(folder: Path, workers: int) -> Batches:
    """timm's loader as its training script makes it, with crop and flip alone."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=str(folder / "train")),
        input_size=(3, IMAGE_SIZE_PX, IMAGE_SIZE_PX),
        batch_size=BATCH,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        device=torch.device("cpu"),
    )


def open_ours(backend: str, memory_format: str, folder: Path, workers: int) -> Loader:
    """Open the train split of ``folder`` with one of this project's backends."""
    data = DataConfig(path=str(folder), backend=backend, image_size=IMAGE_SIZE_PX, workers=workers)
    return open_loader(
        LoaderSpec(
            data=data,
            split="train",
            per_device_batch=BATCH,
            accumulation=1,
            num_classes=CLASSES,
            rank=0,
            world_size=1,
            seed=0,
            device="cpu",
            memory_format=memory_format,
        )
    )


def ours(backend: str, memory_format: str) -> Callable[[Path, int], Batches]:
    """One of this project's backends."""

    def batches(folder: Path, workers: int) -> Batches:
        return open_ours(backend, memory_format, folder, workers).epoch(0)

    return batches


def dali_usual(folder: Path, workers: int) -> Batches:
    """DALI as its examples have it: antialiased resize, then float CHW out of DALI itself."""
    return _dali(folder, workers, finish=True)


def dali_decode(folder: Path, workers: int) -> Batches:
    """DALI's bare crop-only decode: a random crop of each image and nothing else."""
    return _dali(folder, workers, finish=False)


def _dali(folder: Path, workers: int, finish: bool) -> Batches:
    from nvidia.dali import fn, pipeline_def

    def define() -> Any:
        encoded, _ = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        if not finish:
            return images
        images = fn.resize(images, size=[IMAGE_SIZE_PX, IMAGE_SIZE_PX])
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * v for v in MEAN],
            std=[255 * v for v in STD],
        )

    pipeline = pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)(define)()
    pipeline.build()
    return (pipeline.run() for _ in range(IMAGES * LISTED // BATCH))


CONTENDERS: dict[str, Callable[[Path, int], Batches]] = {
    "PIL DataLoader": pil,
    "timm": timm,
    "pytorch": ours("pytorch", "nhwc"),
    "dali-cpu": ours("dali-cpu", "nhwc"),
    "pytorch nchw": ours("pytorch", "nchw"),
    "dali-cpu nchw": ours("dali-cpu", "nchw"),
    "DALI as usual": dali_usual,
    "DALI bare decode": dali_decode,
}
NEEDS = {"timm": "timm", "dali-cpu": "nvidia.dali", "dali-cpu nchw": "nvidia.dali"}
NEEDS |= dict.fromkeys(("DALI as usual", "DALI bare decode"), "nvidia.dali")
RATIOS = {
    "dali-cpu / PIL DataLoader": 2.0,
    "dali-cpu / timm": 2.0,
    "dali-cpu / DALI bare decode": 0.55,
    "pytorch / PIL DataLoader": 1.5,
}


def measure(name: str, folder: Path, workers: int) -> float:
    """Return images a second of one pass, after the first batches."""
    batches = iter(CONTENDERS[name](folder, workers))
    for _ in itertools.islice(batches, WARMUP_BATCHES):
        pass
    begun = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * BATCH / (time.perf_counter() - begun)


def measure_apart(name: str, folder: Path, workers: int) -> float:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--workers", str(workers)]
    done = subprocess.run(
        [*command, "--images", str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _is_installed(name: str) -> bool:
    top, _, _ = name.partition(".")
    return importlib.util.find_spec(top) is not None and (
        top == name or importlib.util.find_spec(name) is not None
    )


def _versions(names: Iterable[str]) -> list[str]:
    known = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        known.append(name)
    return known


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="workers or threads, for all")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured")
    parser.add_argument("--only", choices=CONTENDERS, help="measure this one once and print it")
    parser.add_argument("--images", type=Path, help="folder of the generated set; made if missing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.images, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.images or Path(scratch)
        mean_bytes = write_images(folder)
        found: dict[str, list[float]] = {}
        for name in CONTENDERS:
            if _is_installed(NEEDS.get(name, "torch")):
                found[name] = []
            else:
                print(f"{name}: {NEEDS[name]} is not installed")
        for _, name in itertools.product(range(arguments.rounds), found):
            found[name].append(measure_apart(name, folder, arguments.workers))
            print(f"{name:<17} {found[name][-1]:7.0f} images/s", flush=True)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    ratios = {}
    for pair, wanted in RATIOS.items():
        above, below = pair.split(" / ")
        if above in medians and below in medians:
            ratios[pair] = {"ratio": round(medians[above] / medians[below], 2), "wanted": wanted}
            print(f"{pair:<30} {ratios[pair]['ratio']:.2f} (wanted: {wanted})")
    figures = {
        "images": IMAGES,
        "mean_file_bytes": mean_bytes,
        "image_px": [WIDTH_PX, HEIGHT_PX],
        "image_size_px": IMAGE_SIZE_PX,
        "batch": BATCH,
        "workers": arguments.workers,
        "images_per_s": {
            name: {"median": round(medians[name]), "rounds": [round(rate) for rate in rates]}
            for name, rates in found.items()
        },
        "ratios": ratios,
        "not_installed": sorted({NEEDS[n] for n in CONTENDERS if n not in found}),
    }
    packages = ["torch", "torchvision", "pillow", "timm", "nvidia-dali-cuda120"]
    print(write_record("data_loading", figures, _versions(packages), arguments.out))


if __name__ == "__main__":
    main()
