"""Make an ImageNet-like set of JPEG folders from scikit-learn's two sample photographs.

It is for trying out loaders, checks and packers without ImageNet's 150 GB. Image and file sizes are
distributed as ImageNet's (most long sides are 500 px, the mean file has about 110 KB), and its
known oddities occur: CMYK JPEGs, a PNG named ``.JPEG``, gray images, EXIF orientations. Classes
differ in color and texture, so that a model can learn something.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from image_classification.core.errors import DataError
from image_classification.data.tools.parallel import Progress, no_progress, run_parallel

ODDITIES = {"cmyk": 0.002, "png": 0.001, "grey": 0.015, "exif": 0.005}
"""Fraction of each kind of odd image; at least one of each if there are `ODD_FROM` images."""

BROKEN = {"truncated": 0.0005, "empty": 0.0005, "text": 0.0005}
"""Fraction of each kind of undecodable file; only in train/: validation skips no image."""

ODD_FROM = 16

_SIDE_MIN_PX, _SIDE_MAX_PX = 75, 3000
_NOISE_PX = 512
_EXIF_ORIENTATION = 0x0112
_STREAMS = {"train": 0, "val": 1, "class": 2, "kinds": 3, "noise": 4}


@dataclass(frozen=True)
class FakeSpec:
    """What `make_fake` makes; the same spec gives the same files."""

    num_images: int
    num_classes: int
    num_val_images: int
    broken: bool = False
    seed: int = 0


@dataclass(frozen=True)
class FakeReport:
    """What was made: images and bytes per split, names of odd and broken files per kind."""

    seed: int
    num_classes: int
    num_images: dict[str, int]
    num_bytes: dict[str, int]
    odd: dict[str, list[str]]
    broken: dict[str, list[str]]


class _Task(NamedTuple):
    """One image to make. kind: '' for an ordinary JPEG."""

    split: str
    number: int
    kind: str = ""


def make_fake(
    out: Path, spec: FakeSpec, *, workers: int = 0, progress: Progress = no_progress
) -> FakeReport:
    """Write the data set to ``out`` (new or empty), whole or not at all.

    The report is also written to ``out/manifest.json``.

    Raises:
        DataError: ``out`` is not empty or cannot be written, or there are fewer images than
            classes.
    """
    _check(spec)
    kinds = _choose_kinds(spec)
    tasks = [_Task("train", i, kinds.get(i, "")) for i in range(spec.num_images)]
    tasks += [_Task("val", i) for i in range(spec.num_val_images)]
    names: dict[str, list[str]] = {kind: [] for kind in (*ODDITIES, *BROKEN)}
    for index, kind in sorted(kinds.items()):
        names[kind].append(relative_path("train", index, spec.num_classes))
    num_bytes = {"train": 0, "val": 0}
    report = FakeReport(
        seed=spec.seed,
        num_classes=spec.num_classes,
        num_images={"train": spec.num_images, "val": spec.num_val_images},
        num_bytes=num_bytes,
        odd={kind: names[kind] for kind in ODDITIES},
        broken={kind: names[kind] for kind in BROKEN},
    )
    out = out.absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} is not an empty folder: name a new one for the fake data set")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            built = Path(scratch) / "built"
            for label in range(spec.num_classes):
                for split in num_bytes:
                    (built / split / _class_name(label)).mkdir(parents=True)
            sizes = run_parallel(_write_image, (spec, built), tasks, workers)
            for done, (task, size) in enumerate(zip(tasks, sizes, strict=True), start=1):
                num_bytes[task.split] += size
                progress("images", done, len(tasks))
            text = json.dumps(dataclasses.asdict(report), indent=1) + "\n"
            (built / "manifest.json").write_text(text, encoding="utf-8")
            os.rename(built, out)
    except OSError as error:
        raise DataError(
            f"cannot write the fake data set to {out}: {error.strerror}: free space there, or "
            f"name another folder"
        ) from error
    return report


def relative_path(split: str, index: int, num_classes: int) -> str:
    """Return the path of image ``index`` of ``split``, named as in ImageNet."""
    synset = _class_name(index % num_classes)
    if split == "train":
        return f"train/{synset}/{synset}_{index // num_classes}.JPEG"
    return f"val/{synset}/ILSVRC2012_val_{index + 1:08d}.JPEG"


def _class_name(number: int) -> str:
    return f"n{number + 1:08d}"  # in the form of a synset


def draw_size(random: np.random.Generator) -> tuple[int, int]:
    """Draw (width, height) in pixels, distributed as ImageNet's: median about 500 x 375."""
    u = random.random()
    long_side: float
    if u < 0.66:
        long_side = 500
    elif u < 0.88:
        long_side = float(np.clip(random.lognormal(np.log(260), 0.45), _SIDE_MIN_PX, 500))
    elif u < 0.995:
        long_side = float(np.clip(random.lognormal(np.log(750), 0.35), 501, 2000))
    else:
        long_side = random.uniform(2000, _SIDE_MAX_PX)
    if random.random() < 0.65:
        ratio = (4 / 3, 3 / 2, 1.0)[int(np.searchsorted([0.68, 0.93], random.random()))]
    else:
        ratio = min(4.0, float(np.exp(abs(random.normal(0.3, 0.2)))))
    short_side = max(float(_SIDE_MIN_PX), long_side / ratio)
    width, height = round(max(long_side, short_side)), round(short_side)
    return (height, width) if random.random() < 0.22 else (width, height)


def _check(spec: FakeSpec) -> None:
    if spec.num_classes < 1:
        raise DataError("a data set needs at least one class: give --classes 1 or more")
    for count, option in ((spec.num_images, "--images"), (spec.num_val_images, "--val-images")):
        if count < spec.num_classes:
            raise DataError(
                f"{option} {count} is too few for {spec.num_classes} classes: give at least one "
                f"image per class"
            )
    if spec.seed < 0:
        raise DataError(f"--seed {spec.seed} is below 0: give 0 or more")
    if spec.broken and spec.num_images < ODD_FROM:
        raise DataError(f"--broken needs --images {ODD_FROM} or more, {spec.num_images} given")


def _choose_kinds(spec: FakeSpec) -> dict[int, str]:
    """Return the kinds of the odd and broken train images, by image number."""
    if spec.num_images < ODD_FROM:
        return {}
    shares = ODDITIES | (BROKEN if spec.broken else {})
    order = iter(_random(spec.seed, "kinds", 0).permutation(spec.num_images).tolist())
    kinds: dict[int, str] = {}
    for kind, share in shares.items():
        for _ in range(max(1, round(share * spec.num_images))):
            kinds[next(order)] = kind
    return kinds


def _random(seed: int, stream: str, number: int) -> np.random.Generator:
    sequence = np.random.SeedSequence([seed, _STREAMS[stream], number])
    return np.random.Generator(np.random.Philox(sequence))


def _write_image(shared: tuple[FakeSpec, Path], task: _Task) -> int:
    """Write one file; return its size in bytes."""
    spec, root = shared
    path = root / relative_path(task.split, task.number, spec.num_classes)
    return path.write_bytes(_encode(spec, *task))


def _encode(spec: FakeSpec, split: str, index: int, kind: str = "") -> bytes:
    if kind == "empty":
        return b""
    if kind == "text":
        return b"<html><body>404 Not Found</body></html>\n"
    random = _random(spec.seed, split, index)
    image = Image.fromarray(_paint(spec.seed, index % spec.num_classes, random))
    quality = int(random.integers(88, 97))
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG")
        return buffer.getvalue()
    if kind in ("cmyk", "grey"):
        image = image.convert({"cmyk": "CMYK", "grey": "L"}[kind])
    exif = Image.Exif()
    if kind == "exif":
        exif[_EXIF_ORIENTATION] = 6
    image.save(buffer, "JPEG", quality=quality, exif=exif.tobytes() if kind == "exif" else b"")
    content = buffer.getvalue()
    return content[: len(content) // 2] if kind == "truncated" else content


def _paint(seed: int, label: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return one image ``[H, W, 3]``: a crop of a sample photograph in the colors of its class."""
    class_random = _random(seed, "class", label)
    photo = _photos()[int(class_random.integers(2))]
    gains = class_random.uniform(0.55, 1.25, 3) * random.uniform(0.85, 1.15, 3)
    grain = class_random.uniform(6, 14)
    width, height = draw_size(random)
    # A crop in the wanted shape, as large as the photograph allows or smaller by a random share.
    full_width, full_height = photo.size
    share = random.uniform(0.45, 1.0) * min(full_width / width, full_height / height)
    cut_width, cut_height = width * share, height * share
    box_left = random.uniform(0, full_width - cut_width)
    box_top = random.uniform(0, full_height - cut_height)
    box = (box_left, box_top, box_left + cut_width, box_top + cut_height)
    piece = photo.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(piece, dtype=np.float32)
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = pixels * gains.astype(np.float32)
    # A random window of one tile of noise, which is faster than drawing noise for each pixel.
    top, left = random.integers(0, _NOISE_PX, 2).tolist()
    rows = (np.arange(height) + top) % _NOISE_PX
    columns = (np.arange(width) + left) % _NOISE_PX
    pixels += _grain()[rows[:, None], columns[None, :], None] * np.float32(grain)
    return pixels.clip(0, 255).astype(np.uint8)


@functools.cache
def _grain() -> npt.NDArray[np.float32]:
    return _random(0, "noise", 0).standard_normal((_NOISE_PX, _NOISE_PX), dtype=np.float32)


@functools.cache
def _photos() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(image) for image in load_sample_images().images)
