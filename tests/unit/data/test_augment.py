"""Pixels after augmentation, held against torchvision's own transforms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as v1_ops
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as ops

from image_classification.config.schema import DataConfig
from image_classification.core.types import Batch
from image_classification.data.augment import (
    Erasure,
    Op,
    apply_augmentation,
    augment,
    draw_augmentation,
)
from image_classification.data.loaders.protocol import LoaderSpec
from image_classification.data.loaders.pytorch import open_loader
from image_classification.data.order import sample_random
from image_classification.data.transforms import CropBox, TrainTransform, train_transform

EVERYTHING: dict[str, object] = {
    "augmentation": "randaugment",
    "colour_jitter_brightness": 0.4,
    "colour_jitter_contrast": 0.4,
    "colour_jitter_saturation": 0.4,
    "colour_jitter_hue": 0.1,
    "random_erasing": 0.5,
}
NAMES = [name for name in v2.AutoAugment._AUGMENTATION_SPACE if name != "Identity"]


def photograph(side: int, seed: int = 0) -> torch.Tensor:
    """Smooth colours with grain, one patch of pure white and one channel short of its range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((3, 5, 5), generator=generator)
    smooth = ops.resize(coarse, [side, side], antialias=True)
    grain = torch.randn((3, side, side), generator=generator) * 0.03
    image = (smooth + grain).clamp(0, 1).mul(255).to(torch.uint8)
    image[:, :4, :4] = 255
    image[2] //= 2
    return image


def transform_of(**data: object) -> TrainTransform:
    return train_transform(DataConfig(**{"image_size": 24, **data}))  # type: ignore[arg-type]


def torchvision_magnitudes(name: str, side: int) -> list[float]:
    """Every magnitude the three policies can ask of ``name``, in torchvision's units."""
    found = set()
    for policy, bins in ((v2.AutoAugment, 10), (v2.RandAugment, 31), (v2.TrivialAugmentWide, 31)):
        if name not in policy._AUGMENTATION_SPACE:
            continue
        magnitudes, signed = policy._AUGMENTATION_SPACE[name]
        values = magnitudes(bins, side, side)
        for value in [0.0] if values is None else values.tolist():
            found |= {value, -value} if signed else {value}
    return sorted(found)


def ours(name: str, magnitude: float) -> Op:
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return Op(name, 1.0 + magnitude)
    if name == "Solarize":
        return Op(name, 255.0 * magnitude)
    return Op(name, int(magnitude) if name.startswith(("Translate", "Posterize")) else magnitude)


@pytest.mark.parametrize("side", [24, 33, 64])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_has_torchvisions_pixels(name: str, side: int) -> None:
    image = photograph(side)
    reference = v2.AutoAugment()
    fill = {torch.Tensor: 128.0, "others": 128.0}
    for magnitude in torchvision_magnitudes(name, side):
        expected = reference._apply_image_or_video_transform(
            image, name, magnitude, InterpolationMode.BILINEAR, fill
        )
        actual = apply_augmentation(image, (ours(name, magnitude),), 128)
        assert (actual.dtype, actual.shape) == (torch.uint8, image.shape)
        assert torch.equal(actual, expected), (name, magnitude)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_generation_of_torchvisions_policies_agrees(name: str) -> None:
    """Published runs used these; they round some sums the other way, by one level at most."""
    image = photograph(64)
    for magnitude in torchvision_magnitudes(name, 64):
        theirs = 255 * magnitude if name == "Solarize" else magnitude
        expected = _apply_op(image, name, theirs, InterpolationMode.BILINEAR, [128.0] * 3)
        actual = apply_augmentation(image, (ours(name, magnitude),), 128)
        assert (actual.int() - expected.int()).abs().max() <= 1, (name, magnitude)


@pytest.mark.parametrize("fill", [0, 128])
def test_what_moves_in_has_the_fill(fill: int) -> None:
    image = torch.full((3, 24, 24), 200, dtype=torch.uint8)
    right = apply_augmentation(image, (Op("TranslateX", 5),), fill)
    assert (right[:, :, :5] == fill).all()
    assert (right[:, :, 5:] == 200).all()
    up = apply_augmentation(image, (Op("TranslateY", -5),), fill)
    assert (up[:, -5:] == fill).all()
    gone = apply_augmentation(image, (Op("TranslateY", -24),), fill)
    assert (gone == fill).all()
    turned = apply_augmentation(image, (Op("Rotate", 45.0),), fill)
    assert turned[:, 0, 0].tolist() == [fill] * 3
    assert turned[:, 12, 12].tolist() == [200] * 3


def test_colour_jitter_has_torchvisions_pixels() -> None:
    image = photograph(33)
    transform = transform_of(**{k: v for k, v in EVERYTHING.items() if k.startswith("colour")})
    reference = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    order = {"Brightness": 0, "Contrast": 1, "Color": 2, "Hue": 3}
    for index in range(30):
        drawn = draw_augmentation(transform, sample_random(0, 0, index))
        factors = {op.name: op.magnitude for op in drawn if isinstance(op, Op)}
        expected = reference.transform(
            image,
            {
                "fn_idx": [order[op.name] for op in drawn if isinstance(op, Op)],
                "brightness_factor": factors["Brightness"],
                "contrast_factor": factors["Contrast"],
                "saturation_factor": factors["Color"],
                "hue_factor": factors["Hue"],
            },
        )
        assert torch.equal(apply_augmentation(image, drawn, 128), expected)


def test_an_erased_rectangle_is_next_to_zero_once_normalised() -> None:
    """torchvision erases after normalising, with zeros; here the mean is rounded to a level."""
    data = DataConfig(image_size=24, random_erasing=1.0)
    image = photograph(24)
    (erasure,) = draw_augmentation(train_transform(data), sample_random(0, 0, 0))
    assert isinstance(erasure, Erasure)
    box = erasure.box
    erased = apply_augmentation(image, (erasure,), 128)
    mean = torch.tensor(data.mean).reshape(3, 1, 1)
    std = torch.tensor(data.std).reshape(3, 1, 1)

    def normalised(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels / 255 - mean) / std

    zeros = torch.zeros(())
    place = (box.top, box.left, box.height, box.width)
    expected = v1_ops.erase(normalised(image), *place, zeros)
    difference = (normalised(erased) - expected).abs()
    assert 0 < difference.max() <= 0.5 / 255 / min(data.std)
    assert int((difference > 0).sum()) == 3 * box.height * box.width


def test_order_is_policy_then_jitter_then_erasing() -> None:
    transform = transform_of(**EVERYTHING, randaugment_ops=3)
    drawn = next(
        found
        for found in (draw_augmentation(transform, sample_random(0, 0, i)) for i in range(20))
        if isinstance(found[-1], Erasure)
    )
    assert len(drawn) == 3 + 4 + 1
    assert sorted(op.name for op in drawn[3:7] if isinstance(op, Op)) == [
        "Brightness",
        "Color",
        "Contrast",
        "Hue",
    ]


def test_everything_off_draws_nothing_and_returns_the_image_itself() -> None:
    """So a run without augmentation has the pixels and random numbers it had before it existed."""
    random, untouched = sample_random(3, 1, 4), sample_random(3, 1, 4)
    image = photograph(24)
    assert augment(image, transform_of(), random) is image
    assert random.bit_generator.state == untouched.bit_generator.state


@pytest.mark.parametrize("key", EVERYTHING)
def test_one_setting_is_an_augmentation(key: str) -> None:
    """A backend asks this before it leaves the step out, so no setting may be missing from it."""
    alone = transform_of(**{key: EVERYTHING[key]})
    assert any(draw_augmentation(alone, sample_random(0, 0, i)) for i in range(20))


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_an_image_depends_on_its_stream_alone(policy: str) -> None:
    transform = transform_of(**{**EVERYTHING, "augmentation": policy})
    image = photograph(24)
    before = image.clone()
    torch_state = torch.get_rng_state()
    first = [augment(image, transform, sample_random(0, 0, i)) for i in range(30)]
    again = [augment(image, transform, sample_random(0, 0, i)) for i in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 30
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_layout_and_threads_change_no_pixel(policy: str) -> None:
    """A decoder may hand over channels last, and a worker has one thread where a loop has many."""
    transform = transform_of(**{**EVERYTHING, "augmentation": policy, "image_size": 225})
    image = photograph(225)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    threads = torch.get_num_threads()
    try:
        for index in range(8):
            drawn = draw_augmentation(transform, sample_random(0, 0, index))
            torch.set_num_threads(1)
            expected = apply_augmentation(image, drawn, 128)
            assert torch.equal(apply_augmentation(channels_last, drawn, 128), expected)
            torch.set_num_threads(3)
            assert torch.equal(apply_augmentation(image, drawn, 128), expected)
    finally:
        torch.set_num_threads(threads)


def test_unknown_operations_and_policies_are_refused() -> None:
    with pytest.raises(KeyError, match="Blur"):
        apply_augmentation(photograph(24), (Op("Blur", 1.0),), 128)
    with pytest.raises(ValueError, match="no augmentation policy 'augmix'"):
        draw_augmentation(transform_of(augmentation="augmix"), np.random.default_rng(0))


def test_erasing_takes_a_box_at_the_edge() -> None:
    erasure, image = Erasure(CropBox(20, 0, 4, 24), (1, 2, 3)), photograph(24)
    erased = apply_augmentation(image, (erasure,), 0)
    assert torch.equal(image, photograph(24))
    assert erased[:, 20:].flatten(1).unique(dim=1).tolist() == [[1], [2], [3]]
    assert torch.equal(erased[:, :20], photograph(24)[:, :20])


MakeSpec = Callable[..., LoaderSpec]


def epoch_images(spec: LoaderSpec, start_step: int = 0) -> list[Batch]:
    loader = open_loader(spec)
    try:
        return list(loader.epoch(1, start_step))
    finally:
        loader.close()


def test_ranks_and_resuming_change_no_image(make_spec: MakeSpec) -> None:
    whole = epoch_images(make_spec(accumulation=2, **EVERYTHING))
    halves = [epoch_images(make_spec(rank=rank, world_size=2, **EVERYTHING)) for rank in (0, 1)]
    for step in range(2):
        for rank in (0, 1):
            assert torch.equal(whole[2 * step + rank].images, halves[rank][step].images)
    resumed = epoch_images(make_spec(accumulation=2, **EVERYTHING), start_step=1)
    assert len(resumed) == 2
    for a, b in zip(resumed, whole[2:], strict=True):
        assert torch.equal(a.images, b.images)
    plain = epoch_images(make_spec(accumulation=2))
    assert not torch.equal(plain[0].images, whole[0].images)
