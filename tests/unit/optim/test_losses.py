import pytest
import torch
import torch.nn.functional as F

from image_classification.config.schema import LossConfig, MixingConfig
from image_classification.optim.losses import (
    Mixer,
    build_loss,
    cut_box,
    cutmix,
    mixup,
    soften,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_int_labels_equals_torch_and_the_formula(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    loss = build_loss(LossConfig(label_smoothing=smoothing))(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    log_p = logits.log_softmax(1)
    nll = -log_p[torch.arange(6), labels]
    by_hand = ((1 - smoothing) * nll - smoothing * log_p.mean(1)).mean()
    torch.testing.assert_close(loss, by_hand)


def test_soft_targets_are_smoothed_too() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(4, 5), torch.rand(4, 5).softmax(1)
    loss = build_loss(LossConfig(label_smoothing=0.2))(logits, soft)
    smoothed = 0.8 * soft + 0.2 / 5
    torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(1)).sum(1).mean())


def test_loss_of_one_hot_targets_equals_that_of_int_labels() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    loss = build_loss(LossConfig(label_smoothing=0.1))
    torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 5).float()))


def test_half_precision_logits_are_converted_to_float32() -> None:
    logits, labels = torch.randn(4, 1000).bfloat16(), torch.tensor([0, 1, 2, 4])
    loss = build_loss(LossConfig())(logits, labels)
    assert loss.dtype == torch.float32 and loss.dim() == 0
    assert torch.equal(loss, F.cross_entropy(logits.float(), labels))


def test_labels_of_another_batch_size_are_refused() -> None:
    with pytest.raises(AssertionError):
        build_loss(LossConfig())(torch.randn(4, 5), torch.zeros(3, dtype=torch.int64))


def batch(n: int = 8, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, size, size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(n) % 5


def test_mixup_formula() -> None:
    images, labels = batch(4)
    targets, perm = soften(labels, 5), torch.tensor([2, 0, 3, 1])
    mixed, soft = mixup(images, targets, perm, 0.25)
    torch.testing.assert_close(mixed, 0.25 * images + 0.75 * images[perm])
    torch.testing.assert_close(soft, 0.25 * targets + 0.75 * targets[perm])


def test_cutmix_pastes_the_patch_and_weights_targets_by_area() -> None:
    images, labels = batch(4)
    targets, perm = soften(labels, 5), torch.tensor([2, 0, 3, 1])
    mixed, soft = cutmix(images, targets, perm, (4, 8, 0, 16))
    assert torch.equal(mixed[:, :, 4:8], images[perm][:, :, 4:8])
    assert torch.equal(mixed[:, :, :4], images[:, :, :4])
    assert torch.equal(mixed[:, :, 8:], images[:, :, 8:])
    torch.testing.assert_close(soft, 0.75 * targets + 0.25 * targets[perm])


def test_cut_box() -> None:
    assert cut_box(100, 200, 0.75, 50, 100) == (25, 75, 50, 150)  # a quarter of the area
    assert cut_box(100, 200, 0.75, 0, 199) == (0, 25, 149, 200)  # clipped
    assert cut_box(100, 200, 1.0, 50, 100) == (50, 50, 100, 100)  # nothing


@pytest.mark.parametrize(
    "cfg", [MixingConfig(mixup=0.2), MixingConfig(cutmix=1.0), MixingConfig(mixup=0.2, cutmix=1.0)]
)
def test_mixing_depends_only_on_seed_and_micro_batch(cfg: MixingConfig) -> None:
    images, labels = batch()
    first = Mixer(cfg, 5, seed=7)
    for k in (3, 0, 9):
        first(images, labels, k)
    torch.manual_seed(123)
    second = Mixer(cfg, 5, seed=7)(images, labels, 4)
    for a, b in zip(first(images, labels, 4), second, strict=True):
        assert torch.equal(a, b)
    other_id = Mixer(cfg, 5, seed=7)(images, labels, 5)
    other_seed = Mixer(cfg, 5, seed=8)(images, labels, 4)
    assert not torch.equal(second[0], other_id[0])
    assert not torch.equal(second[0], other_seed[0])


@pytest.mark.parametrize("cfg", [MixingConfig(mixup=0.2), MixingConfig(cutmix=1.0)])
def test_mixing_keeps_inputs_dtype_and_memory_format(cfg: MixingConfig) -> None:
    images, labels = batch()
    images = images.bfloat16()
    before, labels_before, rng = images.clone(), labels.clone(), torch.get_rng_state()
    mixed, soft = Mixer(cfg, 5, 0)(images, labels, 1)
    assert torch.equal(images, before) and torch.equal(labels, labels_before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert soft.shape == (8, 5) and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(8))


def lambdas(cfg: MixingConfig, n: int) -> torch.Tensor:
    """Return lambdas: the weight of the own class where the partner has another class."""
    images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    mixer = Mixer(cfg, 2, 0)
    soft = torch.stack([mixer(images, labels, k)[1][0, 0] for k in range(n)])
    return soft[soft < 1]


def test_mixup_lambda_has_its_beta_distribution() -> None:
    lam = lambdas(MixingConfig(mixup=0.4), 2000).double()
    assert len(lam) == pytest.approx(1000, abs=100)  # half of the permutations swap the images
    assert lam.mean().item() == pytest.approx(0.5, abs=0.04)
    # Var[Beta(a, a)] = 1 / (4 (2a + 1)).
    assert lam.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.012)


def test_mixup_and_cutmix_are_equally_frequent() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    mixer = Mixer(MixingConfig(mixup=5.0, cutmix=1.0), 4, 0)
    # CutMix copies pixels, which stay integers; mixup blends them.
    blended = [
        not torch.equal(mixed, mixed.round())
        for mixed in (mixer(images, torch.arange(4), k)[0] for k in range(400))
    ]
    assert 160 <= sum(blended) <= 240


def test_mixer_without_mixing_is_an_error() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Mixer(MixingConfig(), 5, 0)
