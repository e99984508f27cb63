"""Augmentation equals torchvision's: what is drawn, and the pixels after it."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as v1_ops
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as ops

from image_classification.config.schema import DataConfig
from image_classification.data.augment import (
    AUTOAUGMENT_BINS,
    WIDE_BINS,
    Erasure,
    Op,
    apply_augmentation,
    augment,
    draw_augmentation,
    draw_autoaugment,
    draw_color_jitter,
    draw_erasing,
    draw_randaugment,
    draw_trivialaugment,
)
from image_classification.data.loaders import LoaderSpec
from image_classification.data.order import sample_random
from image_classification.data.transforms import CropBox
from tests.support.loaders import assert_same_batches, epoch_of

Table = dict[str, tuple[Callable[[int, int, int], torch.Tensor | None], bool]]
EVERYTHING: dict[str, Any] = {
    "augmentation": "randaugment",
    "colour_jitter_brightness": 0.4,
    "colour_jitter_contrast": 0.4,
    "colour_jitter_saturation": 0.4,
    "colour_jitter_hue": 0.1,
    "random_erasing": 0.5,
}
NAMES = [name for name in v2.AutoAugment._AUGMENTATION_SPACE if name != "Identity"]


def photograph(side: int, seed: int = 0) -> torch.Tensor:
    """Return smooth colors with noise, a white patch, and one channel of half the range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((3, 5, 5), generator=generator)
    smooth = ops.resize(coarse, [side, side], antialias=True)
    grain = torch.randn((3, side, side), generator=generator) * 0.03
    image = (smooth + grain).clamp(0, 1).mul(255).to(torch.uint8)
    image[:, :4, :4] = 255
    image[2] //= 2
    return image


def config(**data: Any) -> DataConfig:
    return DataConfig(**{"image_size": 24, **data})


def torchvision_magnitudes(name: str, side: int) -> list[float]:
    """Return every magnitude of ``name`` in the three policies, in torchvision's units."""
    found = set()
    for policy, bins in ((v2.AutoAugment, 10), (v2.RandAugment, 31), (v2.TrivialAugmentWide, 31)):
        if name not in policy._AUGMENTATION_SPACE:
            continue
        magnitudes, signed = policy._AUGMENTATION_SPACE[name]
        values = magnitudes(bins, side, side)
        for value in [0.0] if values is None else values.tolist():
            found |= {value, -value} if signed else {value}
    return sorted(found)


def to_op(name: str, magnitude: float) -> Op:
    """Return the operation of a magnitude in torchvision's units."""
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
        actual = apply_augmentation(image, (to_op(name, magnitude),), 128)
        assert (actual.dtype, actual.shape) == (torch.uint8, image.shape)
        assert torch.equal(actual, expected), (name, magnitude)


@pytest.mark.parametrize("name", NAMES)
def test_operations_agree_with_torchvisions_v1_transforms(name: str) -> None:
    """Published runs used these; they round some sums the other way, by at most 1 of 255."""
    image = photograph(64)
    for magnitude in torchvision_magnitudes(name, 64):
        theirs = 255 * magnitude if name == "Solarize" else magnitude
        expected = _apply_op(image, name, theirs, InterpolationMode.BILINEAR, [128.0] * 3)
        actual = apply_augmentation(image, (to_op(name, magnitude),), 128)
        assert (actual.int() - expected.int()).abs().max() <= 1, (name, magnitude)


@pytest.mark.parametrize("fill", [0, 128])
def test_pixels_that_move_in_have_the_fill(fill: int) -> None:
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


def test_color_jitter_has_torchvisions_pixels() -> None:
    image = photograph(33)
    data = config(**{k: v for k, v in EVERYTHING.items() if k.startswith("colour")})
    reference = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    order = {"Brightness": 0, "Contrast": 1, "Color": 2, "Hue": 3}
    for index in range(30):
        drawn = draw_augmentation(data, sample_random(0, 0, index))
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


def test_an_erased_rectangle_is_almost_zero_after_normalization() -> None:
    """torchvision erases with zeros after normalization; here the mean is rounded to uint8."""
    data = DataConfig(image_size=24, random_erasing=1.0)
    image = photograph(24)
    (erasure,) = draw_augmentation(data, sample_random(0, 0, 0))
    assert isinstance(erasure, Erasure)
    box = erasure.box
    erased = apply_augmentation(image, (erasure,), 128)
    mean = torch.tensor(data.mean).reshape(3, 1, 1)
    std = torch.tensor(data.std).reshape(3, 1, 1)

    def normalized(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels / 255 - mean) / std

    zeros = torch.zeros(())
    place = (box.top, box.left, box.height, box.width)
    expected = v1_ops.erase(normalized(image), *place, zeros)
    difference = (normalized(erased) - expected).abs()
    assert 0 < difference.max() <= 0.5 / 255 / min(data.std)
    assert int((difference > 0).sum()) == 3 * box.height * box.width


def test_order_is_policy_then_jitter_then_erasing() -> None:
    data = config(**EVERYTHING, randaugment_ops=3)
    drawn = next(
        found
        for found in (draw_augmentation(data, sample_random(0, 0, i)) for i in range(20))
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
    random, untouched = sample_random(3, 1, 4), sample_random(3, 1, 4)
    image = photograph(24)
    assert augment(image, config(), random) is image
    assert random.bit_generator.state == untouched.bit_generator.state


@pytest.mark.parametrize("key", EVERYTHING)
def test_each_setting_alone_augments(key: str) -> None:
    alone = config(**{key: EVERYTHING[key]})
    assert any(draw_augmentation(alone, sample_random(0, 0, i)) for i in range(20))


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_pixels_depend_only_on_the_images_generator(policy: str) -> None:
    data = config(**{**EVERYTHING, "augmentation": policy})
    image = photograph(24)
    before = image.clone()
    torch_state = torch.get_rng_state()
    first = [augment(image, data, sample_random(0, 0, i)) for i in range(30)]
    again = [augment(image, data, sample_random(0, 0, i)) for i in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 30
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_layout_and_threads_change_no_pixel(policy: str) -> None:
    """Decoders return channels_last, and workers have one thread, the main process several."""
    data = config(**{**EVERYTHING, "augmentation": policy, "image_size": 225})
    image = photograph(225)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    threads = torch.get_num_threads()
    try:
        for index in range(8):
            drawn = draw_augmentation(data, sample_random(0, 0, index))
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
        draw_augmentation(config(augmentation="augmix"), np.random.default_rng(0))


def test_erasing_at_the_edge_leaves_the_rest_unchanged() -> None:
    erasure, image = Erasure(CropBox(20, 0, 4, 24), (1, 2, 3)), photograph(24)
    erased = apply_augmentation(image, (erasure,), 0)
    assert torch.equal(image, photograph(24))
    assert erased[:, 20:].flatten(1).unique(dim=1).tolist() == [[1], [2], [3]]
    assert torch.equal(erased[:, :20], photograph(24)[:, :20])


def test_ranks_and_resuming_change_no_image(make_spec: Callable[..., LoaderSpec]) -> None:
    whole = epoch_of(make_spec(accumulation=2, **EVERYTHING), 1)
    ranks = [epoch_of(make_spec(rank=rank, world_size=2, **EVERYTHING), 1) for rank in (0, 1)]
    assert_same_batches(whole, [batch for step in zip(*ranks, strict=True) for batch in step])
    assert_same_batches(epoch_of(make_spec(accumulation=2, **EVERYTHING), 1, 1), whole[2:])
    plain = epoch_of(make_spec(accumulation=2), 1)
    assert not torch.equal(plain[0].images, whole[0].images)


SIDES = (176, 224, 225)
DRAWS = 4000


class Scripted(np.random.Generator):
    """Returns the given numbers, one per call of `random`."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._numbers: Iterator[float] = iter(numbers)

    def random(self, *_: object) -> float:  # type: ignore[override]
        return next(self._numbers)


def choosing(which: int, count: int) -> float:
    return (which + 0.5) / count


def streams() -> Iterator[np.random.Generator]:
    for index in range(DRAWS):
        yield sample_random(0, 0, index)


def torchvision_op(name: str, table: Table, step: int, bins: int, side: int, sign: int) -> Op:
    """Return the operation that torchvision's transform applies."""
    magnitudes, is_signed = table[name]
    values = magnitudes(bins, side, side)
    if values is None:
        return Op(name, 0.0)
    return to_op(name, float(values[step]) * (sign if is_signed else 1))


def assert_op(drawn: Op, expected: Op) -> None:
    assert drawn.name == expected.name
    if drawn.name.startswith(("Translate", "Posterize")):
        assert drawn.magnitude == expected.magnitude
    else:  # torchvision's tables are float32
        assert drawn.magnitude == pytest.approx(expected.magnitude, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sign", [1, -1])
def test_autoaugment_is_torchvisions_imagenet_policy(side: int, sign: int) -> None:
    reference = v2.AutoAugment()
    table = reference._AUGMENTATION_SPACE
    sign_draw = 0.75 if sign > 0 else 0.25
    assert len(reference._policies) == 25
    for which, sub_policy in enumerate(reference._policies):
        numbers = [choosing(which, 25)]
        expected = []
        for name, probability, step in sub_policy:
            numbers.append(probability - 1e-9)  # just below: the operation happens
            if probability == 0:
                continue
            numbers += [sign_draw] if table[name][1] else []
            expected.append(torchvision_op(name, table, step or 0, AUTOAUGMENT_BINS, side, sign))
        if any(probability == 0 for _, probability, _ in sub_policy):
            numbers[1] = 0.0  # an operation of probability 0 never happens
        drawn = draw_autoaugment(Scripted(*numbers), side)
        assert len(drawn) == len(expected)
        for op, wanted in zip(drawn, expected, strict=True):
            assert_op(op, wanted)
        neither = [probability for _, probability, _ in sub_policy]
        if max(neither) < 1:
            assert draw_autoaugment(Scripted(choosing(which, 25), *neither), side) == []


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sign", [1, -1])
def test_randaugment_has_torchvisions_operations_and_magnitudes(side: int, sign: int) -> None:
    table = v2.RandAugment._AUGMENTATION_SPACE
    names = list(table)
    for step in range(WIDE_BINS):
        for which, name in enumerate(names):
            numbers = [choosing(which, len(names)), 0.75 if sign > 0 else 0.25]
            (drawn,) = draw_randaugment(Scripted(*numbers), side, 1, step)
            assert_op(drawn, torchvision_op(name, table, step, WIDE_BINS, side, sign))


@pytest.mark.parametrize("sign", [1, -1])
def test_trivialaugment_has_torchvisions_operations_and_magnitudes(sign: int) -> None:
    table = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    names = list(table)
    for step in range(WIDE_BINS):
        for which, name in enumerate(names):
            numbers = [choosing(which, len(names)), choosing(step, WIDE_BINS)]
            drawn = draw_trivialaugment(Scripted(*numbers, 0.75 if sign > 0 else 0.25))
            expected = torchvision_op(name, table, step, WIDE_BINS, 224, sign)
            if name.startswith("Translate") and step == 15:
                # Half of 32 pixels; in torchvision's float32 table it is 15.999999 and then cut.
                assert (drawn.magnitude, expected.magnitude) == (16 * sign, 15 * sign)
            else:
                assert_op(drawn, expected)


def assert_even(counts: Counter[str], names: list[str], draws: int) -> None:
    """Chi-squared within six standard deviations of its mean: the draws are fixed anyway."""
    assert set(counts) == set(names)
    expected = draws / len(names)
    statistic = sum((counts[name] - expected) ** 2 / expected for name in names)
    freedom = len(names) - 1
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5


def test_trivialaugment_is_uniform_in_operation_magnitude_and_sign() -> None:
    drawn = [draw_trivialaugment(random) for random in streams()]
    names = list(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    assert len(drawn) == DRAWS
    assert_even(Counter(op.name for op in drawn), names, DRAWS)
    factors = np.array([op.magnitude for op in drawn if op.name in ("Color", "Sharpness")])
    assert factors.mean() == pytest.approx(1, abs=0.06)
    assert factors.std() == pytest.approx(0.99 * (1 / 3) ** 0.5, abs=0.04)
    assert (factors.min(), factors.max()) == (pytest.approx(0.01), pytest.approx(1.99))


def test_randaugment_draws_independently_and_with_repetition() -> None:
    drawn = [draw_randaugment(random, 224, 2, 9) for random in streams()]
    assert {len(ops) for ops in drawn} == {2}
    names = list(v2.RandAugment._AUGMENTATION_SPACE)
    assert_even(Counter(a.name for a, _ in drawn), names, DRAWS)
    assert_even(Counter(b.name for _, b in drawn), names, DRAWS)
    twice = sum(a.name == b.name for a, b in drawn) / DRAWS
    assert twice == pytest.approx(1 / 14, abs=0.02)
    rotations = [op.magnitude for ops in drawn for op in ops if op.name == "Rotate"]
    assert set(np.abs(rotations)) == {9.0}  # bin 9 of 0..30 to 30 degrees
    assert np.mean(rotations) == pytest.approx(0, abs=1.5)


def test_autoaugment_draws_as_often_as_the_policy_says() -> None:
    drawn = [draw_autoaugment(random, 224) for random in streams()]
    counts = Counter(op.name for ops in drawn for op in ops)
    expected: Counter[str] = Counter()
    for sub_policy in v2.AutoAugment()._policies:
        for name, probability, _ in sub_policy:
            expected[name] += probability * DRAWS / 25
    assert set(counts) == set(expected)
    for name, number in expected.items():
        assert counts[name] == pytest.approx(number, abs=5 * number**0.5)


def jitter(**data: Any) -> DataConfig:
    return DataConfig(**{f"colour_jitter_{key}": value for key, value in data.items()})


def test_jitter_factors_are_uniform_about_one() -> None:
    data = jitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1)
    drawn = [draw_color_jitter(random, data) for random in streams()]
    assert {tuple(sorted(op.name for op in ops)) for ops in drawn} == {
        ("Brightness", "Color", "Contrast", "Hue")
    }
    ranges = {
        "Brightness": (0.6, 1.4),
        "Contrast": (0.7, 1.3),
        "Color": (0.0, 2.5),
        "Hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        values = np.array([op.magnitude for ops in drawn for op in ops if op.name == name])
        assert low <= values.min() <= values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.03)


def test_jitter_has_every_order_equally() -> None:
    data = jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    orders = Counter(
        "".join(op.name[:3] for op in draw_color_jitter(random, data)) for random in streams()
    )
    assert len(orders) == 24
    assert_even(orders, list(orders), DRAWS)


def test_jitter_draws_only_what_is_on() -> None:
    random = Scripted(0.5)  # a second number would raise
    assert draw_color_jitter(random, jitter(contrast=0.2)) == [Op("Contrast", 1.0)]
    assert draw_color_jitter(Scripted(), jitter()) == []


def erasing(prob: float, **data: Any) -> DataConfig:
    return DataConfig(random_erasing=prob, **data)


def test_erasing_happens_as_often_as_asked() -> None:
    share = sum(bool(draw_erasing(random, erasing(0.25))) for random in streams()) / DRAWS
    assert share == pytest.approx(0.25, abs=0.03)
    assert draw_erasing(Scripted(0.0), erasing(0.0)) == []


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    drawn = [draw_erasing(random, erasing(1.0)) for random in streams()]
    boxes = [erasures[0].box for erasures in drawn if erasures]
    assert len(boxes) == DRAWS
    reference = v2.RandomErasing(p=1.0)
    image = torch.zeros(3, 224, 224)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [reference.make_params([image]) for _ in range(1000)]

    def summary(h: np.ndarray, w: np.ndarray, top: np.ndarray, left: np.ndarray) -> list[float]:
        area, ratio = h * w / 224**2, np.log(h / w)
        place_y, place_x = top / (224 - h), left / (224 - w)
        parts = (area, ratio, place_y, place_x)
        return [float(f) for part in parts for f in (part.mean(), part.std())]

    mine = summary(*np.array([(b.height, b.width, b.top, b.left) for b in boxes]).T)
    other = summary(*np.array([(p["h"], p["w"], p["i"], p["j"]) for p in theirs]).T)
    assert mine == pytest.approx(other, abs=0.045)
    for box in boxes:
        assert 0 <= box.top <= 224 - box.height
        assert 0 <= box.left <= 224 - box.width
        assert 0.019 <= box.height * box.width / 224**2 <= 0.34
        assert 0.28 <= box.height / box.width <= 3.5


def test_a_rectangle_that_never_fits_erases_nothing() -> None:
    largest = [0.999, 0.999] * 10  # a third of the area at ratio 3.3 is higher than the image
    assert draw_erasing(Scripted(0.0, *largest), erasing(1.0)) == []


@pytest.mark.parametrize(
    ("mean", "color"),
    [((0.485, 0.456, 0.406), (124, 116, 104)), ((0.0, 0.5, 1.2), (0, 128, 255))],
)
def test_the_erased_color_is_the_rounded_mean(
    mean: tuple[float, float, float], color: tuple[int, ...]
) -> None:
    (erasure,) = draw_erasing(sample_random(0, 0, 0), erasing(1.0, mean=mean))
    assert erasure.color == color
