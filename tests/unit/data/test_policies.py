"""What is drawn, held against torchvision's own tables and samplers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from image_classification.config.schema import DataConfig
from image_classification.data.augment import (
    AUTOAUGMENT_BINS,
    WIDE_BINS,
    Op,
    draw_autoaugment,
    draw_color_jitter,
    draw_erasing,
    draw_randaugment,
    draw_trivialaugment,
)
from image_classification.data.order import sample_random
from image_classification.data.transforms import TrainTransform, train_transform

SIDES = (176, 224, 225)
DRAWS = 4000


class Scripted(np.random.Generator):
    """Gives the numbers it was made with, and no others."""

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


def torchvision_op(name: str, table: object, step: int, bins: int, side: int, sign: int) -> Op:
    """What torchvision's transform would call its kernel with, in the units of `Op`."""
    magnitudes, signed = table[name]  # type: ignore[index]
    values = magnitudes(bins, side, side)
    if values is None:
        return Op(name, 0.0)
    at = float(values[step]) * (sign if signed else 1)
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return Op(name, 1 + at)
    if name == "Solarize":
        return Op(name, 255 * at)
    return Op(name, int(at) if name.startswith(("Translate", "Posterize")) else at)


def assert_op(drawn: Op, expected: Op) -> None:
    assert drawn.name == expected.name
    if drawn.name.startswith(("Translate", "Posterize")):
        assert drawn.magnitude == expected.magnitude
    else:  # torchvision's tables are float32
        assert drawn.magnitude == pytest.approx(expected.magnitude, rel=1e-6, abs=1e-6)


def is_signed(name: str, table: object) -> bool:
    return bool(table[name][1])  # type: ignore[index]


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
            numbers += [sign_draw] if is_signed(name, table) else []
            expected.append(torchvision_op(name, table, step or 0, AUTOAUGMENT_BINS, side, sign))
        if any(probability == 0 for _, probability, _ in sub_policy):
            numbers[1] = 0.0  # and one of probability 0 never does
        drawn = draw_autoaugment(Scripted(*numbers), side)
        assert len(drawn) == len(expected)
        for op, wanted in zip(drawn, expected, strict=True):
            assert_op(op, wanted)
        neither = [probability for _, probability, _ in sub_policy]
        if max(neither) < 1:
            assert draw_autoaugment(Scripted(choosing(which, 25), *neither), side) == ()


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
            (drawn,) = draw_trivialaugment(Scripted(*numbers, 0.75 if sign > 0 else 0.25))
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
    drawn = [op for random in streams() for op in draw_trivialaugment(random)]
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
            expected[name] += probability * DRAWS / 25  # type: ignore[assignment]
    assert set(counts) == set(expected)
    for name, number in expected.items():
        assert counts[name] == pytest.approx(number, abs=5 * number**0.5)


def jitter(**data: float) -> TrainTransform:
    return train_transform(DataConfig(**{f"colour_jitter_{k}": v for k, v in data.items()}))  # type: ignore[arg-type]


def test_jitter_factors_are_uniform_about_one() -> None:
    transform = jitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1)
    drawn = [draw_color_jitter(random, transform) for random in streams()]
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
    transform = jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    orders = Counter(
        "".join(op.name[:3] for op in draw_color_jitter(random, transform)) for random in streams()
    )
    assert len(orders) == 24
    assert_even(orders, list(orders), DRAWS)


def test_jitter_draws_only_what_is_on() -> None:
    random = Scripted(0.5)  # a second number would raise
    assert draw_color_jitter(random, jitter(contrast=0.2)) == (Op("Contrast", 1.0),)
    assert draw_color_jitter(Scripted(), jitter()) == ()


def erasing(prob: float, **data: object) -> TrainTransform:
    return train_transform(DataConfig(random_erasing=prob, **data))  # type: ignore[arg-type]


def test_erasing_happens_as_often_as_asked() -> None:
    share = sum(bool(draw_erasing(random, erasing(0.25))) for random in streams()) / DRAWS
    assert share == pytest.approx(0.25, abs=0.03)
    assert draw_erasing(Scripted(0.0), erasing(0.0)) == ()


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
    assert draw_erasing(Scripted(0.0, *largest), erasing(1.0)) == ()


def test_the_erased_colour_is_the_rounded_mean() -> None:
    assert erasing(1.0).erasing_color == (124, 116, 104)
    assert erasing(1.0, mean=(0.0, 0.5, 1.2)).erasing_color == (0, 128, 255)
    assert replace(erasing(1.0), erasing_color=(1, 2, 3)).erasing_color == (1, 2, 3)
